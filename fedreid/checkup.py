"""What did a look through a data folder find, and how is it told? The same in both programs."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from fedreid.audit import AuditLog, verify
from fedreid.console import print_json, say
from fedreid.errors import ExitCode, FedreidError, storage_errors
from fedreid.files import others_may_read

State = Literal["ok", "note", "repaired", "wrong"]
"""``note``: worth knowing, and mended by itself; ``wrong``: a person has to act."""

REPAIR = "Run it again with --repair."


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check has shown."""

    name: str
    state: State
    told: str
    next_step: str = ""


Check = Callable[[], Iterable[Finding]]


class Checkup:
    """The checks of one folder; with ``repair`` they mend what can be mended."""

    def __init__(self, *, repair: bool) -> None:
        self.repair = repair

    def findings(self, checks: Mapping[str, Check]) -> Iterator[Finding]:
        """Make one check after the other; an error of one is what it found."""
        for name, check in checks.items():
            try:
                yield from check()
            except FedreidError as error:
                yield wrong(name, error)

    def mended(self, name: str, told: str, mend: Callable[[], object]) -> Finding:
        """Something that can be mended, and is if that was asked for."""
        if not self.repair:
            return Finding(name=name, state="wrong", told=told, next_step=REPAIR)
        mend()
        return Finding(name=name, state="repaired", told=told)

    def private(self, name: str, paths: Iterable[Path]) -> Iterator[Finding]:
        """Files and folders that nobody else may read."""
        count = 0
        with storage_errors("look at", Path(name)):
            for path in paths:
                count += 1
                if others_may_read(path):
                    told = f"{path} can be read by other users"
                    yield self.mended(name, told, partial(_make_private, path))
        yield fine(name, f"{count} private files and folders")

    def left_over(
        self, name: str, paths: Iterable[Path], remove: Callable[[Path], None]
    ) -> Finding:
        """What writes and jobs that were cut off have left."""
        found = list(paths)
        if not found:
            return fine(name, "nothing is left over")
        return self.mended(
            name,
            f"left over: {', '.join(str(path) for path in found)}",
            partial(_each, remove, found),
        )

    def audit(self, folder: Path, log: AuditLog) -> Iterator[Finding]:
        """The chain of the audit log; a torn last line is dropped by writing the next one."""
        summary = verify(folder)
        if summary.cut_off_bytes:
            told = f"the last {summary.cut_off_bytes} bytes are a line that was cut off"
            yield self.mended("audit", told, lambda: log.append("audit.checked"))
        yield fine("audit", f"{summary.lines} lines, the chain holds; head {summary.head}")


def fine(name: str, told: str) -> Finding:
    """Nothing to do."""
    return Finding(name=name, state="ok", told=told)


def wrong(name: str, error: FedreidError) -> Finding:
    """An error, as what a check found."""
    return Finding(name=name, state="wrong", told=error.brief, next_step=error.next_step)


def print_findings(findings: Iterable[Finding], *, as_json: bool) -> ExitCode:
    """A line for each as it comes; STORAGE while something is wrong."""
    done = []
    for finding in findings:
        done.append(finding)
        if not as_json:
            say(f"{finding.state:<9}{finding.name:<10}{finding.told}")
            if finding.next_step:
                say(f"{'':<19}next: {finding.next_step}")
    if as_json:
        print_json([msgspec.to_builtins(finding) for finding in done])
    return ExitCode.STORAGE if any(f.state == "wrong" for f in done) else ExitCode.OK


def _each(remove: Callable[[Path], None], paths: list[Path]) -> None:
    for path in paths:
        remove(path)


def _make_private(path: Path) -> None:
    with storage_errors("make private", path):
        path.chmod(0o700 if path.is_dir() else 0o600)
