"""Is every command that a document shows one that exists, and that some test runs?"""

import re
from pathlib import Path

import pytest

from tests.docs.commands import PAGE, PROGRAMS, leaves, reference
from tests.docs.pages import PAGES, ROOT, SESSIONS, Block, blocks

COMMANDS = {name: command for p, c in PROGRAMS.items() for name, command in leaves(p, c)}
BLOCKS = [block for page in PAGES for block in blocks(page)]

ELSEWHERE = {
    "fedreid-bench demo": "tests/federation/test_interrupt.py",
    "fedreid-bench run": "tests/benchmark/test_bench.py",
    "fedreid-bench ranking": "tests/benchmark/test_ranking.py",
    "fedreid-bench training": "tests/benchmark/test_training.py",
    "fedreid-bench distillation": "tests/benchmark/test_distilling.py",
    "fedreid-bench transport": "tests/benchmark/test_transport.py",
    "fedreid-bench starting": "tests/benchmark/test_starting.py",
    "fedreid-bench serving-load": "tests/benchmark/test_serving_load.py",
    "fedreid-bench indexing": "tests/benchmark/test_indexing.py",
    "coordinator silo approve": "tests/federation/test_life_cycle.py",
    "coordinator silo register": "tests/federation/test_life_cycle.py",
    "coordinator ca prepare": "tests/federation/test_life_cycle.py",
    "coordinator ca activate": "tests/federation/test_life_cycle.py",
    "coordinator ca drop": "tests/federation/test_life_cycle.py",
    "silo-agent join --rejoin": "tests/federation/test_life_cycle.py",
}
"""Commands that no session types, and the test that runs them."""


def name_of(words: list[str]) -> str:
    """The command's full name: as many words as name one."""
    for count in (3, 2):
        if " ".join(words[:count]) in COMMANDS:
            return " ".join(words[:count])
    raise AssertionError(f"no such command: {' '.join(words)}")


def of_ours(block: Block) -> list[list[str]]:
    return [words for words in block.commands() if words[0] in PROGRAMS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_shows_can_be_typed(page: Path) -> None:
    for block in blocks(page):
        for words in of_ours(block):
            name = name_of(words)
            command, arguments = COMMANDS[name], words[len(name.split()) :]
            try:
                command.make_context(name, list(arguments)).close()
            except Exception as error:
                raise AssertionError(f"{' '.join(words)}: {error}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_sentence_names_exists(page: Path) -> None:
    known = {tuple(name.split()) for name in COMMANDS}
    groups = {name[:count] for name in known for count in range(1, len(name) + 1)}
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for found in re.findall(r"`((?:coordinator|silo-agent|fedreid-bench)(?: [^`]*)?)`", text):
        words = tuple(re.match(r"[a-z-]+(?: [a-z][a-z-]*)*", found)[0].split())  # type: ignore[index]
        assert words[:2] in groups and (words[:2] in known or words[:3] in groups), found


def test_every_command_that_a_page_shows_is_run_by_a_test() -> None:
    run = {
        name_of(words)
        for block in BLOCKS
        if block.page in SESSIONS and block.mark not in ("not run", "run by")
        for words in of_ours(block)
    }
    shown = {name_of(words) for block in BLOCKS for words in of_ours(block)}
    assert len(run) > 40
    assert shown - run <= set(ELSEWHERE), shown - run - set(ELSEWHERE)


def test_what_is_run_elsewhere_is_run_there() -> None:
    marked = [
        (words, block.value.partition(":")[0])
        for block in BLOCKS
        if block.mark == "run by"
        for words in of_ours(block)
    ]
    listed = [(name.split(), path) for name, path in ELSEWHERE.items()]
    for words, path in marked + listed:
        test = ROOT / path
        text = test.read_text("utf-8")
        verb = next(word for word in reversed(words[:3]) if not word.startswith(("-", "/")))
        assert verb.removeprefix("--") in text.replace("_", "-"), (words, path)


def test_every_block_of_a_session_is_typed_written_or_marked() -> None:
    for block in BLOCKS:
        if block.page not in SESSIONS or block.mark == "meanwhile":
            continue
        kept = block.mark in ("not run", "run by", "file")
        assert kept or (block.language == "sh" and block.is_typed), block.text


def test_every_target_of_make_that_a_page_names_exists() -> None:
    text = (ROOT / "Makefile").read_text()
    for block in BLOCKS:
        for words in block.commands():
            if words[0] == "make":
                assert f"\n{words[1]}:" in text, words


def test_the_reference_of_commands_is_current() -> None:
    assert PAGE.read_text("utf-8") == reference(), "run: python -m tests.docs.commands"
