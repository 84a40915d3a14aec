"""Which keys may a plan have? The tables of their page, from ``fedreid/plan.py`` itself.

``python -m tests.docs.plan_page`` writes ``docs/plan.md`` anew, up to what was written by hand.
"""

import ast
import inspect
import itertools
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from fedreid.plan import Plan, Section

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"
BY_HAND = "## Changing a run"
"""The heading from which on the page is written by hand."""

_HEAD = """# The plan

One run of a federation, as TOML. Unknown keys are errors that name the nearest known one.
Only `name` and `rounds` have no default. Section numbers are those of [reid-spec](reid-spec.md).
"""
_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def tables() -> str:
    """The generated part of the page."""
    parts = [_HEAD, *_table(Plan)]
    for field in msgspec.structs.fields(Plan):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            (first, *_) = (field.type.__doc__ or "").splitlines()
            parts += [f"\n## `[{field.name}]`\n\n{first}\n", *_table(field.type)]
    return "".join([*parts, "\n"])


def page() -> str:
    """The whole page: what is generated, and what stands there by hand."""
    written = PAGE.read_text("utf-8")
    return tables() + written[written.index(BY_HAND) :]


def _table(kind: type[Section]) -> list[str]:
    said, types = _docstrings(kind), get_type_hints(kind, include_extras=True)
    rows = ["\n| key | values | default | meaning |\n|---|---|---|---|\n"]
    for field in msgspec.structs.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, Section):
            continue
        default = "–"
        if field.default is not msgspec.NODEFAULT:
            default = f"`{msgspec.json.encode(field.default).decode()}`"
        values = _values(types[field.name])
        rows.append(f"| `{field.name}` | {values} | {default} | {said.get(field.name, '')} |\n")
    return rows


def _docstrings(kind: type[Section]) -> dict[str, str]:
    """What stands below each key of a table, on one line."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for key, below in itertools.pairwise(tree.body):
        match key, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=told)):
                found[name] = " ".join(str(told).split())
    return found


def _values(kind: Any) -> str:
    if get_origin(kind) is Literal:
        choices = [c if isinstance(c, str) else json.dumps(c) for c in get_args(kind)]
        return ", ".join(f"`{choice}`" for choice in choices)
    if get_origin(kind) is Annotated:
        base, *metas = get_args(kind)
        return _bounded(base, next(m for m in metas if isinstance(m, msgspec.Meta)))
    if get_origin(kind) is tuple:
        return f"list of {_values(get_args(kind)[0])}s"
    return {bool: "true, false", int: "integer", float: "number"}.get(kind, "text")


def _bounded(base: Any, meta: msgspec.Meta) -> str:
    bounds = {sign: getattr(meta, sign) for sign in _SIGNS if getattr(meta, sign) is not None}
    if base is float and bounds == {"ge": 0, "le": 1}:
        return "0 to 1"
    told = ", ".join(f"{_SIGNS[sign]} {_number(bound)}" for sign, bound in bounds.items())
    return f"{_values(base)} {told}".strip()


def _number(bound: float) -> str:
    return "2⁶³−1" if bound == 2**63 - 1 else f"{bound:g}" if bound < 1e5 else str(bound)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
