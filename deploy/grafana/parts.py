"""What is a board made of? Panels, variables, annotations and links, as Grafana 10 reads them.

Whatever can be empty in a healthy federation says why: Grafana shows that instead of "No data", and
the test that runs every query accepts no other emptiness.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grafana_foundation_sdk.builders import common, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.builders import dashboard as boards
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model

TAG = "fedreid"
SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
Kind = Literal["line", "stacked", "states", "number"]
_HEIGHT, _NUMBER_HEIGHT = 8, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What Prometheus is asked, and how its series are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One graph or number."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: Kind = "line"
    width: int = 12
    """Of 24."""
    empty: str = ""
    """Why there may be nothing to show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A choice at the top of a board, of the values that a label has."""

    name: str
    label: str
    query: str
    several: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One board; its ``uid`` never changes, so that links to it hold."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """A mark in every graph, at each moment at which a query has a value."""

    name: str
    expr: str
    colour: str

    def to_json(self) -> dict[str, Any]:
        """As Grafana's Prometheus source reads it."""
        return {
            "name": self.name,
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "enable": True,
            "expr": self.expr,
            "iconColor": self.colour,
            "step": "60s",
            "titleFormat": self.name,
        }


def one(expr: str, legend: str = "") -> tuple[Query, ...]:
    """A panel's only query."""
    return (Query(expr=expr, legend=legend),)


def board_json(board: Board, annotations: Sequence[Annotation]) -> str:
    """The file that Grafana imports."""
    builder = (
        boards.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags([TAG])
        .editable()
        .timezone("browser")
        .refresh("30s")
        .time("now-6h", "now")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .link(
            boards.DashboardLink("Federation boards")
            .type(model.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(
            boards.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
    )
    for variable in board.variables:
        builder = builder.with_variable(_variable(variable))
    for row in board.rows:
        builder = builder.with_row(boards.Row(row.title))
        for panel in row.panels:
            builder = builder.with_panel(_made(panel))
    made = json.loads(JSONEncoder().encode(builder.build()))
    del made["style"]  # of Grafana 10 alone; the user's own theme is meant in any case
    for number, panel_made in enumerate(made["panels"], start=1):
        panel_made["id"] = number
    made["annotations"] = {"list": [annotation.to_json() for annotation in annotations]}
    return json.dumps(made, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _variable(variable: Variable) -> boards.QueryVariable:
    made = (
        boards.QueryVariable(variable.name)
        .label(variable.label)
        .datasource(SOURCE)
        .query(variable.query)
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
    )
    if variable.several:
        made = made.multi(True).include_all(True).all_value(".*")
    return made


def _made(panel: Panel) -> timeseries.Panel | statetimeline.Panel | stat.Panel:
    if panel.kind == "number":
        return _number(panel)
    return _states(panel) if panel.kind == "states" else _graph(panel)


def _states(panel: Panel) -> statetimeline.Panel:
    made = (
        statetimeline.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(SOURCE)
        .height(_HEIGHT)
        .span(panel.width)
        .show_value(common_model.VisibilityMode.NEVER)
    )
    if panel.empty:
        made = made.no_value(panel.empty)
    for query, letter in zip(panel.queries, "ABCDEF", strict=False):
        made = made.with_target(_target(query, letter))
    return made


def _graph(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(SOURCE)
        .height(_HEIGHT)
        .span(panel.width)
        .line_width(1)
        .fill_opacity(40 if panel.kind == "stacked" else 5)
        .show_points(common_model.VisibilityMode.AUTO)
        .tooltip(common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI))
    )
    if panel.kind == "stacked":
        made = made.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))
    if panel.empty:
        made = made.no_value(panel.empty)
    for query, letter in zip(panel.queries, "ABCDEF", strict=False):
        made = made.with_target(_target(query, letter))
    return made


def _number(panel: Panel) -> stat.Panel:
    made = (
        stat.Panel()
        .title(panel.title)
        .description(panel.description)
        .unit(panel.unit)
        .datasource(SOURCE)
        .height(_NUMBER_HEIGHT)
        .span(panel.width)
        .graph_mode(common_model.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    if panel.empty:
        made = made.no_value(panel.empty)
    for query, letter in zip(panel.queries, "ABCDEF", strict=False):
        made = made.with_target(_target(query, letter))
    return made


def _target(query: Query, letter: str) -> prometheus.Dataquery:
    return (
        prometheus.Dataquery()
        .expr(query.expr)
        .legend_format(query.legend)
        .range()
        .datasource(SOURCE)
        .ref_id(letter)
    )
