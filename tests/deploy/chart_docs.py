"""What do a chart's values mean, and which are allowed? ``python -m tests.deploy.chart_docs .``

``README.md`` and ``values.schema.json`` of a chart come from its ``values.yaml`` alone: the comment
above a key says what it means, its default says of which type it is, and a line ``# @schema {…}``
narrows it further. A table whose keys are known allows no other; an empty one allows any.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHARTS = ("coordinator", "silo-agent")
_SCHEMA = "# @schema "
_FREE = frozenset({"resources"})
"""Tables that Kubernetes defines: taken over as they are, whatever their default."""
_TYPES = {str: "string", bool: "boolean", int: "integer", list: "array"}


def written(chart: Path) -> dict[str, str]:
    """The generated files of a chart by name."""
    text = (chart / "values.yaml").read_text("utf-8")
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    lines = text.splitlines()
    schema = {
        "$schema": "https://json-schema.org/draft-07/schema#",
        **_schema_of(root, lines),
    }
    schema["properties"]["global"] = {"type": "object", "description": "Helm's own."}
    about = yaml.safe_load((chart / "Chart.yaml").read_text("utf-8"))
    rows = [
        f"| `{key}` | `{default}` | {meaning} |".replace("| `` |", "| |")
        for key, default, meaning in _rows(root, lines, "")
    ]
    readme = [
        f"# {about['name']}",
        "",
        f"{about['description']}.",
        "",
        "```",
        _INSTALL[about["name"]],
        "```",
        "",
        _PROSE[about["name"]].strip(),
        "",
        "## Values",
        "",
        "Generated from `values.yaml`; an unknown key is refused.",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
        *rows,
        "",
    ]
    return {
        "README.md": "\n".join(readme),
        "values.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
    }


_INSTALL = {
    "coordinator": "helm install federation helm/coordinator "
    "--set federation.name=harbour --set 'federation.hostnames={coordinator.example}'",
    "silo-agent": "kubectl create secret generic join-token --from-file=token=TOKENFILE\n"
    "helm install north helm/silo-agent --set coordinator=coordinator.example:443 \\\n"
    "  --set token.existingSecret=join-token --set dataset.existingClaim=images",
}

_PROSE = {
    "coordinator": """
A job makes the federation's keys and an administrator's identity before anything else, as Secrets
that belong to no release: installing again, upgrading and uninstalling leave them as they are. Back
them up, and the volume as `coordinator backup` does. To have a new administrator's identity, delete
its Secret and upgrade. After `coordinator ca drop` the Secrets hold an authority that nobody trusts
any more: replace `ca.crt` and `ca.key` by those of the data folder, and delete the administrator's.

The settings come from the values at each start. TLS must reach the pod unopened: through a Service,
or a Gateway with a TLSRoute; an Ingress that opens TLS can't work. Where the volume is lost but the
Secrets are not, silos trust the coordinator still, but have to be let in again.
""",
    "silo-agent": """
The token is read by one container, while the silo has no identity; then its Secret may be deleted.
The identity lies on the pod's volume and is renewed by the agent. Values that are changed take
effect with the next upgrade; the policy's default is that of docs/egress.md.
""",
}


def _entries(
    node: yaml.MappingNode, lines: list[str]
) -> Iterator[tuple[str, yaml.Node, str, dict[str, Any]]]:
    """Each key with its value, what its comment says, and how that narrows it."""
    for key, value in node.value:
        said: list[str] = []
        narrowed: dict[str, Any] = {}
        row = key.start_mark.line - 1
        indent = " " * key.start_mark.column
        while row >= 0 and lines[row].startswith(f"{indent}#"):
            line = lines[row].strip()
            if line.startswith(_SCHEMA):
                narrowed = json.loads(line.removeprefix(_SCHEMA))
            else:
                said.insert(0, line.removeprefix("#").strip())
            row -= 1
        yield key.value, value, " ".join(said), narrowed


def _value(node: yaml.Node) -> Any:
    return yaml.safe_load(yaml.serialize(node))


def _schema_of(node: yaml.MappingNode, lines: list[str]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for key, value, meaning, narrowed in _entries(node, lines):
        if isinstance(value, yaml.MappingNode):
            closed = value.value and key not in _FREE
            found = _schema_of(value, lines) if closed else {"type": "object"}
        else:
            found = {"type": _TYPES[type(_value(value))]}
        properties[key] = {"description": meaning, **found, **narrowed}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _rows(node: yaml.MappingNode, lines: list[str], above: str) -> Iterator[tuple[str, str, str]]:
    for key, value, meaning, _ in _entries(node, lines):
        name = f"{above}{key}"
        if isinstance(value, yaml.MappingNode) and value.value and key not in _FREE:
            yield name, "", meaning
            yield from _rows(value, lines, f"{name}.")
        else:
            yield name, json.dumps(_value(value)), meaning


if __name__ == "__main__":
    for name in CHARTS:
        chart = Path(sys.argv[1]) / "helm" / name
        for file, text in written(chart).items():
            (chart / file).write_text(text, "utf-8")
