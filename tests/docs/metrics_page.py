"""What does docs/metrics.md say? ``python -m tests.docs.metrics_page`` writes it anew.

Names, types, labels and meanings come from the two programs' definitions; so do the values of a
label, wherever they are there from the start.
"""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from coordinator import calls
from coordinator import metrics as of_coordinator
from fedreid.contract import ModelKind
from silo_agent import metrics as of_agent

PAGE = Path(__file__).parents[2] / "docs/metrics.md"
HEAD = """# Metrics

Made from the definitions in `coordinator/metrics.py` and `silo_agent/metrics.py` by
`python -m tests.docs.metrics_page`; a test holds it against them.

Both programs answer plain HTTP on a port of their own, since a kubelet and Prometheus have no
client certificate: `coordinator serve --metrics HOST:PORT` (default 127.0.0.1:9464) and
`silo-agent run --metrics HOST:PORT` (default: none). `/metrics` holds the figures; `/livez` answers
while the process lives, `/startupz` once it has started, `/readyz` while it can do its work. Bind
them where only Prometheus can reach them.

**A silo that nobody scrapes** writes the same figures to a file:
`silo-agent run --metrics-textfile /var/lib/node_exporter/textfile/fedreid.prom`, or the key
`metrics_textfile` of `agent.toml`. The file is replaced in one step every 15 seconds and taken away
when the agent stops; node_exporter reads it with
`--collector.textfile.directory=/var/lib/node_exporter/textfile`, and
`node_textfile_mtime_seconds` says when it was written last.

Names follow Prometheus' rules: base units, `_total` on counters, instants and never ages (write
`time() - fedreid_silo_last_seen_timestamp_seconds`). Every label has a closed set of values, or is
bounded by the registry: `silo` names registered silos that may take part, up to 2000, and those
beyond are counted together as `other`; one that leaves or is revoked loses its series. No label
holds a round, a digest, an address or anything of a person or an image. Counters and histograms of
a closed set are there from the start, at 0. Every scrape also has the `process_*` figures.

The files that go with them: scrape configuration, rules and alerts (`deploy/prometheus`),
boards (`deploy/grafana`), runbooks (`deploy/runbooks`).
"""
SILO = "registered silos"
WITHOUT_START: dict[tuple[str, str], tuple[str, ...]] = {
    **{(f"fedreid_{of}_{name}_ratio", "model"): get_args(ModelKind)
       for of in ("silo",) for name in ("rank1", "map")},
    **{(f"fedreid_model_{name}_ratio", "dataset"): of_coordinator.DATASETS
       for name in ("rank1", "map")},
    ("fedreid_distillation_loss", "stage"): ("before", "after"),
    ("fedreid_silo_updates", "outcome"): ("accepted", "rejected"),
    ("fedreid_build_info", "version"): ("of the program",),
    ("fedreid_build_info", "revision"): ("of its source",),
}  # fmt: skip
assert calls  # declares the gRPC methods


def families(module: ModuleType, registry: Any = None) -> Iterator[Any]:
    """The metrics that a module declares, in its order."""
    build = (registry or module.REGISTRY)._names_to_collectors["fedreid_build_info"]
    yield build
    for name, kind in vars(module).items():
        if not name.startswith("_") and isinstance(kind, MetricWrapperBase):
            yield kind


def row(metric: Any) -> str:
    """A line of the table."""
    (described,) = metric.describe()
    name = described.name + ("_total" if described.type == "counter" else "")
    labels = ", ".join(f"`{label}`: {bound(metric, label)}" for label in metric._labelnames)
    return f"| `{name}` | {described.type} | {labels or '–'} | {described.documentation} |"


def bound(metric: Any, label: str) -> str:
    """What a label's values can be."""
    (described,) = metric.describe()
    if label == "silo":
        return SILO
    if (known := WITHOUT_START.get((described.name, label))) is not None:
        return ", ".join(known)
    if label == "grpc_method":
        return "the contract's calls"
    (family,) = metric.collect()
    values = list(dict.fromkeys(sample.labels[label] for sample in family.samples))
    assert values, (described.name, label)
    return ", ".join(values)


def table(module: ModuleType, registry: Any = None) -> str:
    """The metrics of one program."""
    rows = [row(metric) for metric in families(module, registry)]
    return "\n".join(["| name | type | labels | meaning |", "|---|---|---|---|", *rows])


def page() -> str:
    """The whole document."""
    return "\n".join(
        [
            HEAD,
            "## The coordinator",
            "",
            table(of_coordinator, REGISTRY),
            "",
            "## The silo agent",
            "",
            table(of_agent),
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
