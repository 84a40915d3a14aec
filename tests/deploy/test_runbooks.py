"""Does every alert have a runbook, and does every command in it exist?"""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from coordinator.cli import app as coordinator
from silo_agent.cli import app as silo_agent
from tests.deploy.test_prometheus import NAMES, ROOT

RUNBOOKS = sorted((ROOT / "deploy/runbooks").glob("*.md"))
SECTIONS = ["Meaning", "Impact", "Diagnose", "Mitigate", "Escalate"]
PROGRAMS = {"coordinator": get_command(coordinator), "silo-agent": get_command(silo_agent)}
OF_THE_SYSTEM = {"curl", "df", "du", "grep", "journalctl"}
PORTS = {"/metrics", "/livez", "/readyz", "/startupz"}


def check_command(command: str) -> None:
    """Check that a program has the command, with its options."""
    for part in command.split(" | "):
        words = shlex.split(part)
        if words[0] in OF_THE_SYSTEM:
            for url in re.findall(r"http://[\w.:]+(/\w+)", part):
                assert url in PORTS
            continue
        at, rest = PROGRAMS[words[0]], words[1:]
        while (commands := getattr(at, "commands", None)) is not None:
            if not rest:
                return
            assert rest[0] in commands, command
            at, rest = commands[rest[0]], rest[1:]
        known = {option for parameter in at.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, command


def test_each_alert_has_a_runbook_and_no_runbook_is_left_over() -> None:
    assert [path.stem for path in RUNBOOKS] == sorted(NAMES)


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_a_runbook_has_its_sections_and_three_commands_that_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.startswith(f"# {path.stem}\n")
    assert re.findall(r"^## (.+)$", text, re.M) == SECTIONS
    commands = re.findall(r"^\$ (.+)$", text, re.M)
    assert len(commands) == 3
    for command in commands:
        check_command(command)


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_commands_in_a_runbooks_text_exist_too(path: Path) -> None:
    for command in re.findall(r"`((?:coordinator|silo-agent) [a-z][^`]*)`", path.read_text()):
        check_command(command)


def test_a_command_that_does_not_exist_is_noticed() -> None:
    for wrong in ("coordinator rounds list", "coordinator silo list --none"):
        with pytest.raises(AssertionError):
            check_command(wrong)
