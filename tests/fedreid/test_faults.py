"""Does every durable step have a named fault point, and does each point do what it is armed for?"""

import ast
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedreid import faults
from fedreid.errors import ConfigRefused, ExitCode, StorageError
from fedreid.files import write_bytes

ROOT = Path(faults.__file__).parents[1]
SOURCES = {
    str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8"))
    for program in ("fedreid", "coordinator", "silo_agent")
    for path in sorted((ROOT / program).rglob("*.py"))
    if path != Path(faults.__file__) and "v1" not in path.parts
}

NO_STEP = {
    ("fedreid/files.py", "sync_folder"): "its callers call it within their step",
    ("fedreid/files.py", "replacing"): "removes the temporary neighbour of a write that failed",
    ("fedreid/files.py", "_opened"): "makes that neighbour of a spare, which nobody misses",
    ("fedreid/spares.py", "take"): "a spare becomes a file in which nothing lies that counts yet",
    ("fedreid/spares.py", "_make_place"): "a spare is removed, which nobody misses",
    ("fedreid/audit.py", "_end"): "called by append alone, within its step",
    ("fedreid/audit.py", "_write"): "called by append alone, within its step",
    ("fedreid/audit.py", "_locked"): "a lock's file, which stays empty",
    ("fedreid/wire/stream.py", "_take_up"): "nothing lies in the file that counts yet",
    ("fedreid/datasets/synthetic/rendering.py", "_draw_task"): "images made up for a demo",
    ("silo_agent/using/formats.py", "run"): "a copy in a temporary folder",
}
"""Where something is written outside of a step, and why that may be."""

_OF_OS = {
    "replace", "rename", "renames", "link", "symlink", "fsync", "fdatasync", "unlink", "remove",
    "rmdir", "removedirs", "truncate", "ftruncate", "rmtree", "move",
}  # fmt: skip
_OF_PATHS = {
    "unlink", "rename", "rmdir", "write_bytes", "write_text", "touch", "symlink_to", "hardlink_to",
}  # fmt: skip


def calls_of_faults(tree: ast.AST, kind: str) -> list[str]:
    """The names that a module hands to ``faults.step`` or ``faults.point``, literally."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"faults.{kind}":
            (argument,) = node.args
            assert isinstance(argument, ast.Constant), ast.unparse(node)
            found.append(str(argument.value))
    return found


def is_durable(call: ast.Call) -> bool:
    """Whether a call makes something durable, or takes it away."""
    if not isinstance(call.func, ast.Attribute):
        return False
    owner, name = ast.unparse(call.func.value), call.func.attr
    if owner in ("os", "shutil"):
        return name in _OF_OS
    if name == "replace":  # of a path; of a text it has two arguments
        return len(call.args) == 1 and not call.keywords
    if name == "begin":  # of SQLAlchemy
        return owner.endswith("engine")
    if name == "open":
        modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
        return any(set(str(mode)) & set("wax+") for mode in modes)
    return name in _OF_PATHS


def written_outside_of_steps(node: ast.AST, function: str = "") -> Iterator[str]:
    """Functions that make something durable, but for calls within ``with faults.step(...)``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.With | ast.AsyncWith):
            heads = [ast.unparse(item.context_expr) for item in child.items]
            if any(head.startswith("faults.step(") for head in heads):
                continue
        if isinstance(child, ast.Call) and is_durable(child):
            yield function
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from written_outside_of_steps(child, child.name)
        else:
            yield from written_outside_of_steps(child, function)


@pytest.mark.parametrize(
    ("kind", "documented"),
    [("step", {**faults.SEAMS, **faults.STEPS}), ("point", faults.MOMENTS)],
    ids=["steps", "moments"],
)
def test_every_point_is_reached_once_where_it_is_documented(
    kind: str, documented: dict[str, str]
) -> None:
    found = Counter(
        (name, path) for path, tree in SOURCES.items() for name in calls_of_faults(tree, kind)
    )
    assert found == Counter(documented.items())


def test_everything_durable_is_written_within_a_step() -> None:
    found = {
        (path, function)
        for path, tree in SOURCES.items()
        for function in written_outside_of_steps(tree)
    }
    assert found == set(NO_STEP)


def test_the_walk_sees_what_lies_outside_of_a_step() -> None:
    text = """
def moved(path):
    os.replace(path, to)
def done(path):
    with open(path), faults.step("file.move"):
        os.replace(path, to)
def renamed(path):
    path.replace(to)
def kept(text):
    with faults.point("x"):
        (folder / "a").write_text(text.replace("a", "b"))
def appended(path):
    path.open("ab")
"""
    found = list(written_outside_of_steps(ast.parse(text)))
    assert found == ["moved", "renamed", "kept", "appended"]


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A queue that this very process reads."""
    path = tmp_path / "faults"
    path.write_text("")
    monkeypatch.setattr(faults, "queue", path)
    return path


def fired(queue: Path) -> list[str]:
    path = faults.fired(queue)
    return path.read_text().splitlines() if path.exists() else []


def test_an_error_of_the_disk_strikes_at_its_count_and_once(queue: Path, tmp_path: Path) -> None:
    queue.write_text("file.replace:before 2 enospc\n")
    write_bytes(tmp_path / "a", b"1")
    with pytest.raises(StorageError, match="the disk is full"):
        write_bytes(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    write_bytes(tmp_path / "a", b"3")
    assert (tmp_path / "a").read_bytes() == b"3"
    assert fired(queue) == [f"file.replace:before {os.getpid()}"]


def test_an_error_after_a_step_comes_when_all_is_written(queue: Path, tmp_path: Path) -> None:
    queue.write_text("durable:after 1 eio\n")
    with pytest.raises(StorageError, match="I/O error"):
        write_bytes(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"


def test_an_error_that_stays_is_gone_when_the_test_takes_it_away(
    queue: Path, tmp_path: Path
) -> None:
    queue.write_text("durable:before * erofs\n")
    for _ in range(3):
        with pytest.raises(StorageError, match="read-only"):
            write_bytes(tmp_path / "a", b"1")
    queue.write_text("")
    write_bytes(tmp_path / "a", b"1")
    assert len(fired(queue)) == 3


def test_only_the_first_line_is_armed(queue: Path, tmp_path: Path) -> None:
    queue.write_text("distil.step 1 pass\nfile.replace:before 1 eio\n")
    write_bytes(tmp_path / "a", b"1")
    faults.point("distil.step")
    with pytest.raises(StorageError):
        write_bytes(tmp_path / "a", b"2")
    assert [line.split()[0] for line in fired(queue)] == ["distil.step", "file.replace:before"]
    assert queue.read_text() == ""


def test_a_step_that_fails_is_not_over(queue: Path) -> None:
    queue.write_text("upload.place:after 1 pass\n")
    with pytest.raises(KeyError), faults.step("upload.place"):
        raise KeyError
    assert fired(queue) == []


def test_an_unknown_name_is_a_programmers_error(queue: Path) -> None:
    with pytest.raises(AssertionError):
        faults.step("publish.unknown")
    with pytest.raises(AssertionError):
        faults.point("publish.rename")


def test_unarmed_points_are_one_object_that_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "queue", None)
    assert faults.step("file.replace") is faults.step("journal.commit")
    faults.point("distil.step")


_CHILD = """
import pathlib, subprocess, sys
from fedreid.files import write_bytes
inner = [sys.executable, "-c", "from fedreid import faults; faults.point('train.step')"]
ended = subprocess.run(inner).returncode
for name in ("a", "b"):
    write_bytes(pathlib.Path(sys.argv[1]) / name, b"whole")
sys.exit(-ended)
"""


def child(queue: Path, tmp_path: Path) -> int:
    """How a process ends whose own child reaches ``train.step``, and which writes two files."""
    environment = {**os.environ, faults.VARIABLE: str(queue), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path)], env=environment, start_new_session=True
    ).returncode


def test_a_kill_ends_the_process_there_and_then(tmp_path: Path) -> None:
    queue = tmp_path / "faults"
    queue.write_text("file.replace:after 2 kill\n")
    assert child(queue, tmp_path) == -signal.SIGKILL
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()
    assert queue.read_text() == ""
    assert child(queue, tmp_path) == 0


def test_a_kill_in_a_child_leaves_its_parent_and_a_crash_takes_both(tmp_path: Path) -> None:
    queue = tmp_path / "faults"
    queue.write_text("train.step 1 kill\n")
    assert child(queue, tmp_path) == signal.SIGKILL  # what the parent tells of its child
    queue.write_text("train.step 1 crash\n")
    assert child(queue, tmp_path) == -signal.SIGKILL


@pytest.mark.parametrize(
    "line",
    [
        "publish.renamed:before 1 kill",
        "publish.rename 1 kill",
        "publish.rename:before 0 kill",
        "publish.rename:before 1 nuke",
        "publish.rename:before kill",
        "publish.rename:before 1 kill now",
    ],
)
def test_what_can_not_be_armed_is_refused(queue: Path, line: str) -> None:
    queue.write_text(f"{line}\n")
    with pytest.raises(ConfigRefused, match="can't be armed") as refused:
        faults.check_queue()
    assert line in str(refused.value)


@pytest.mark.parametrize("program", ["coordinator", "silo_agent"])
def test_no_program_starts_with_an_unknown_fault(tmp_path: Path, program: str) -> None:
    queue = tmp_path / "faults"
    queue.write_text("publish.renamed:before 1 kill\n")
    done = subprocess.run(
        [sys.executable, "-m", program, "--help"],
        env={**os.environ, faults.VARIABLE: str(queue), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == ExitCode.USAGE
    assert "publish.renamed:before" in done.stderr and "FEDREID_FAULTS" in done.stderr
