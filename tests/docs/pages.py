"""What does a page tell people to type? Its blocks, and what the page says of running them.

A comment right before a block of a page is a mark; readers of the site never see it::

    <!-- not run: REASON -->                       it installs, or is an example
    <!-- run by tests/…: REASON -->                another test runs these commands
    <!-- keeps running until it says: TEXT -->     a program that stays, once it has said so
    <!-- stops: COMMAND -->                        that program ends before the block is run
    <!-- file: NAME -->                            the block is written into this file

``<!-- meanwhile: WHAT -->`` stands alone: somebody else does something, which the test plays.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
SESSIONS = tuple(
    ROOT / "docs" / f"{name}.md" for name in ("quickstart", "coordinator", "silo", "upgrading")
)
"""Pages whose blocks are typed from top to bottom, in one folder."""

_MARKS = ("not run", "run by", "keeps running until it says", "stops", "file", "meanwhile")
_PARTS = re.compile(
    r"^<!-- (?P<mark>[^:]*?)(?::| (?=tests/)) ?(?P<value>.*?) -->$"
    r"|^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block with its mark, or a mark that stands alone."""

    page: Path
    language: str
    text: str
    mark: str = ""
    value: str = ""

    @property
    def is_typed(self) -> bool:
        """Whether people are to type it into a shell."""
        return self.language in ("sh", "") and bool(self.commands())

    def commands(self) -> list[list[str]]:
        """The words of each line that calls one of our programs or make."""
        found = []
        for line in self.text.replace("\\\n", " ").splitlines():
            if re.match(r"(coordinator|silo-agent|fedreid-bench|make|pytest) ", line):
                words = shlex.split(line, comments=True)
                found.append(words[: words.index(">")] if ">" in words else words)
        return found


def blocks(page: Path) -> Iterator[Block]:
    """All blocks of a page, in their order."""
    mark, value = "", ""
    for found in _PARTS.finditer(page.read_text("utf-8")):
        if found["mark"] is not None:
            mark, value = found["mark"], found["value"]
            assert mark in _MARKS, f"{page.name}: {found[0]}"
            if mark == "meanwhile":
                yield Block(page=page, language="", text="", mark=mark, value=value)
                mark, value = "", ""
            continue
        yield Block(
            page=page, language=found["language"], text=found["text"], mark=mark, value=value
        )
        mark, value = "", ""
