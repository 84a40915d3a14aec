"""What does a person see of an audit log? The same in both programs."""

from collections import deque
from pathlib import Path

import msgspec

from fedreid.audit import AuditLine, read_audit, verify
from fedreid.console import instant, print_json, say


def print_verified(folder: Path, *, as_json: bool) -> None:
    """Check the chain and print its length and head; AuditBroken if it does not hold."""
    summary = verify(folder)
    if as_json:
        print_json(
            {
                "lines": summary.lines,
                "head": summary.head,
                "cut_off_bytes": summary.cut_off_bytes,
            }
        )
        return
    say(f"{folder}: {summary.lines} lines, the chain holds")
    say(f"head {summary.head} (note it elsewhere: only then can nobody cut off the end unseen)")
    if summary.cut_off_bytes:
        say(f"the last {summary.cut_off_bytes} bytes are a line whose writing was cut off")


def print_lines(folder: Path, *, last: int, as_json: bool) -> None:
    """Print the newest lines, oldest first."""
    lines = deque(read_audit(folder), maxlen=last or None)
    if as_json:
        print_json([msgspec.to_builtins(line) for line in lines])
        return
    for line in lines:
        say(_line(line))


def _line(line: AuditLine) -> str:
    fields = " ".join(f"{name}={_shown(value)}" for name, value in line.fields.items())
    return f"{line.number} {instant(line.at_s)} {line.event} {fields}".rstrip()


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{name}:{_shown(one)}" for name, one in value.items())
    return str(value)
