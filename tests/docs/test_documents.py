"""Documents name what exists, completely."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from fedreid.plan import Section
from fedreid.v1 import enrolment_pb2, federation_pb2
from silo_agent.config import Policy
from tests.docs.plan_page import PAGE, page

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def test_the_page_of_the_plan_is_current() -> None:
    assert PAGE.read_text("utf-8") == page(), "run: python -m tests.docs.plan_page"


def test_every_policy_key_is_documented_with_its_default() -> None:
    text = (ROOT / "docs/egress.md").read_text()
    plain = [f for f in msgspec.structs.fields(Policy) if not isinstance(f.default, Section)]
    for field in plain:
        default = msgspec.json.encode(field.default).decode()
        assert f"\n| `{field.name}` | `{default}` |" in text


def test_every_call_of_an_agent_is_documented_with_what_it_carries() -> None:
    text = (ROOT / "docs/egress.md").read_text()
    table = text[: text.index("## The policy")]
    for file in (enrolment_pb2, federation_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert f"\n| `{method.name}` |" in table


def test_every_event_of_an_agents_audit_log_is_documented() -> None:
    text = (ROOT / "docs/egress.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "silo_agent").glob("*.py"))
    events = set(re.findall(r'(?:\.append[,(]|SENT =)\s*"([a-z]+\.[a-z]+)"', source))
    assert len(events) >= 6
    for event in events:
        assert f"\n| `{event}` |" in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_in_documents_exist(document: Path) -> None:
    text = document.read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / target).exists(), target
    for path in re.findall(r"`((?:tests|fedreid|coordinator|silo_agent|benchmark)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    text = (ROOT / "docs/dependencies.md").read_text()
    for requirement in {r for wanted in lists for r in wanted if not r.startswith("fedreid")}:
        name = re.split(r"[<>=\[]", requirement)[0]
        assert name in text or name.startswith("types-"), name


def test_constraints_pin_versions_and_hold_no_address() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines and all(re.fullmatch(r"[A-Za-z0-9._-]+==\S+", line) for line in lines)
