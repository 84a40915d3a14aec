"""What do several boards share? Variables, selections, words for an empty panel, annotations."""

from deploy.grafana.parts import Annotation, Panel, Variable, one

OF = 'job="$job"'
"""Selects the chosen coordinator."""
OF_S = 'job="$job", silo=~"$silo"'
"""Selects the chosen silos of it."""
JOB = Variable(name="job", label="Coordinator", query="label_values(fedreid_round_current, job)")
SILOS = Variable(
    name="silo",
    label="Silo",
    query='label_values(fedreid_silo_last_seen_timestamp_seconds{job="$job"}, silo)',
    several=True,
)
AGENT = Variable(
    name="agent", label="Agents", query="label_values(fedreid_agent_connected, job)", several=True
)
NO_FIGURES = "No silo has measured a model yet, or none is told what it scores."
NO_UPDATE = "No round has ended yet."
WITHHELD = "No round has ended yet, or the silo withholds it (noise is on)."
NOT_SCRAPED = "This Prometheus scrapes no silo agent."

ANNOTATIONS = (
    Annotation(
        name="Model published",
        expr=f"changes(fedreid_model_version{{{OF}}}[1m]) > 0",
        colour="blue",
    ),
    Annotation(
        name="Silo joined",
        expr=f'(changes(fedreid_silos{{{OF}, state="active"}}[1m]) > 0) '
        f'and (delta(fedreid_silos{{{OF}, state="active"}}[1m]) > 0)',
        colour="green",
    ),
    Annotation(
        name="Silo revoked",
        expr=f'changes(fedreid_silos{{{OF}, state="revoked"}}[1m]) > 0',
        colour="red",
    ),
)


def number(title: str, description: str, unit: str, expr: str, *, empty: str = "") -> Panel:
    """A panel that shows one number."""
    return Panel(
        title=title, description=description, unit=unit, queries=one(expr), kind="number",
        width=4, empty=empty,
    )  # fmt: skip
