"""Are the boards in deploy/grafana what their code makes, and whole?"""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana.generate import FOLDER, files
from tests.deploy.test_prometheus import ROOT
from tests.deploy.typescript import type_faults

BOARDS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))}
PANELS = [
    pytest.param(uid, panel, id=f"{uid}: {panel['title']}")
    for uid, board in BOARDS.items()
    for panel in board["panels"]
    if panel["type"] != "row"
]

_PANELS = {"timeseries": "timeseries", "stat": "stat", "state-timeline": "statetimeline"}
"""The kinds of panels, and where Grafana's package has their types."""
_PLAIN = """
import type { AnnotationQuery, Dashboard, VariableModel } from "@grafana/schema";
type Automatic = { auto: boolean; auto_count: number; auto_min: string; id: string };
// What Prometheus adds to an annotation, and the generator's library to every variable.
type Board = Omit<Dashboard, "annotations" | "templating"> & {
  annotations: { list: (AnnotationQuery & { expr: string; step: string; titleFormat: string })[] };
  templating: { list: (VariableModel & Automatic)[] };
};
// As JSON writes it: the names of enumerations are plain strings there.
type Plain<T> = T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
"""


def test_the_files_are_current() -> None:
    there = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.json")}
    assert there == files(), "python -m deploy.grafana.generate"


def test_there_are_five_boards_that_know_each_other_and_can_be_imported_together() -> None:
    assert sorted(BOARDS) == [
        f"fedreid-{name}" for name in ("coordinator", "federation", "rounds", "security", "silo")
    ]
    for uid, board in BOARDS.items():
        assert board["uid"] == uid and board["tags"] == ["fedreid"] and board["description"]
        assert board["schemaVersion"] >= 36 and "id" not in board
        assert board["links"][0]["tags"] == ["fedreid"]
        assert len(board["annotations"]["list"]) == 3
        names = [variable["name"] for variable in board["templating"]["list"]]
        assert names[:2] == ["datasource", "job"]
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("uid", "panel"), PANELS)
def test_a_panel_says_what_it_shows_and_in_what_unit(uid: str, panel: dict[str, Any]) -> None:
    assert panel["title"] and panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["targets"]
    known = {f"${variable['name']}" for variable in BOARDS[uid]["templating"]["list"]}
    for target in panel["targets"]:
        asked = set(re.findall(r"\$\w+", target["expr"]))
        assert asked <= known | {"$__rate_interval"}


def test_boards_are_as_grafanas_own_types_say(tmp_path: Path) -> None:
    """Wrong values and unknown fields, of boards and of what each kind of panel may say."""
    known = BOARDS["fedreid-rounds"]
    wrong = json.loads(json.dumps(known))
    graphs = [each for each in wrong["panels"] if each["type"] == "timeseries"]
    graphs[0]["options"]["legend"]["placement"] = "left"
    graphs[1]["fieldConfig"]["defaults"]["custom"]["unheardOf"] = 1
    graphs[2]["unheardOf"] = 1
    lines = [_PLAIN, *map(_imported, _PANELS)]
    for number, board in enumerate([*BOARDS.values(), wrong]):
        lines.append(f"const board{number}: Plain<Board> = {json.dumps(board)};")
        lines += [_typed(number, panel) for panel in board["panels"] if panel["type"] in _PANELS]
    told = type_faults("\n".join(lines), tmp_path)
    # What was spoilt is refused, and nothing else.
    assert len(told) == 3, "\n".join(told)
    assert "left" in told[0] + told[1] and all("error TS2" in line for line in told)


def _imported(panel: str) -> str:
    types = f"./node_modules/@grafana/schema/dist/types/raw/composable/{_PANELS[panel]}"
    return f'import type * as {_PANELS[panel]} from "{types}/panelcfg/x/types.gen";'


def _typed(board: int, panel: dict[str, Any]) -> str:
    kind, number = _PANELS[panel["type"]], f"{board}_{panel['id']}"
    options = f"const options{number}: Plain<Partial<{kind}.Options>> = "
    options += f"{json.dumps(panel.get('options', {}))};"
    custom = panel["fieldConfig"]["defaults"].get("custom")
    if custom is None:
        return options
    return f"{options}\nconst custom{number}: Plain<{kind}.FieldConfig> = {json.dumps(custom)};"


def test_no_two_panels_of_a_board_lie_on_each_other() -> None:
    for board in BOARDS.values():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(at["x"], at["x"] + at["w"])
                for y in range(at["y"], at["y"] + at["h"])
            }
            assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
            taken |= cells


def test_the_provisioning_names_the_folder_of_the_boards() -> None:
    text = (ROOT / "deploy/grafana/provisioning/dashboards/fedreid.yml").read_text()
    assert "deploy/grafana/dashboards" in text and "type: file" in text
