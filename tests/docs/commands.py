"""Which commands do the programs have? Their reference, from the programs themselves.

``python -m tests.docs.commands`` writes ``docs/commands.md``.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main

from benchmark.cli import app as benchmark_app
from coordinator.cli import app as coordinator_app
from silo_agent.cli import app as agent_app

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"
PROGRAMS: dict[str, Any] = {
    "coordinator": typer.main.get_command(coordinator_app),
    "silo-agent": typer.main.get_command(agent_app),
    "fedreid-bench": typer.main.get_command(benchmark_app),
}
"""Click's commands; typer brings a click of its own along, whose types are its own business."""

_HEAD = """# Commands

Made from the programs by `python -m tests.docs.commands`; a test keeps it current. `--help` says
the same.

Exit codes are the same everywhere: 0 done, 1 a mistake of ours, 2 a wrong command, plan or setting,
3 trust, 4 connection, 5 dataset, 6 disk or a damaged file, 7 an update refused, 8 forbidden by the
policy, 9 a run or job failed, 130 Ctrl-C. `--json` prints one value for machines, and one a line
with `--watch`.
"""


def leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its full name."""
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for child, sub in children.items():
        yield from leaves(f"{name} {child}", sub)


def reference() -> str:
    """The page."""
    parts = [_HEAD]
    for program, command in PROGRAMS.items():
        parts.append(f"\n## {program}\n\n{_line(command.help)}\n")
        parts += [_section(name, leaf) for name, leaf in leaves(program, command)]
    return "".join(parts)


def _section(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = " ".join([name, *(_metavar(p) for p in arguments), *(["[OPTIONS]"] if options else [])])
    rows = [f"| `{_metavar(p)}` | {_default(p)} | {_line(p.help)} |" for p in arguments]
    rows += [f"| {_flags(p)} | {_default(p)} | {_line(p.help)} |" for p in options]
    table = ["| | default | |", "|---|---|---|", *rows] if rows else []
    return "\n".join(
        ["", f"### {name}", "", _line(command.help), "", f"    {usage}", "", *table, ""]
    )


def _metavar(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    return f"{name}…" if parameter.nargs == -1 else name


def _flags(parameter: Any) -> str:
    flags = ", ".join(f"`{flag}`" for flag in parameter.opts)
    if parameter.secondary_opts:
        return f"{flags} / " + ", ".join(f"`{flag}`" for flag in parameter.secondary_opts)
    if parameter.is_flag:
        return flags
    return f"{flags} {_kind(parameter)}"


def _kind(parameter: Any) -> str:
    """What stands after an option's name."""
    if parameter.metavar:
        return str(parameter.metavar)
    annotation = parameter.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        return "\\|".join(f"`{choice}`" for choice in get_args(annotation))
    return "PATH" if "Path" in str(annotation) else "N" if annotation is int else "TEXT"


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "needed"
    if value is None or value == "" or value is False or str(value) == sys.executable:
        return ""
    return "yes" if value is True else f"`{value}`"


def _line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(reference(), "utf-8")
