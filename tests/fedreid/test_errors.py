"""Is the error tree what its docstring draws, and can every error be told and carried?"""

import errno
import inspect
import os
import re
from pathlib import Path
from typing import Any

import grpc
import pytest

from fedreid import errors
from fedreid.errors import (
    ExitCode,
    FedreidError,
    NameRefused,
    Refusal,
    StorageError,
    UpdateRefused,
    grpc_status_name,
    storage_errors,
)


def tree(root: type[FedreidError] = FedreidError) -> list[type[FedreidError]]:
    """``root`` and all below it that the module declares, each before its children."""
    declared: list[Any] = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
    below = [kind for kind in declared if kind.__base__ is root]
    return [root, *(kind for child in below for kind in tree(child))]


ALL = tree()


def drawn() -> list[tuple[int, str, int | None]]:
    """Depth, name and exit code of each class in the docstring's tree."""
    assert errors.__doc__ is not None
    found = []
    for line in errors.__doc__.splitlines():
        match = re.fullmatch(r"    ((?:[│ ]   )*)([├└]── )?(\w+)(?: {2,}.*?)?(?:exit (\d+))?", line)
        if match is not None and hasattr(errors, match[3]):
            depth = len(match[1]) // 4 + (match[2] is not None)
            found.append((depth, match[3], int(match[4]) if match[4] else None))
    return found


def depth_of(kind: type[FedreidError]) -> int:
    return kind.__mro__.index(FedreidError)


def test_the_docstring_draws_exactly_the_classes_that_exist_in_their_places() -> None:
    assert [(depth, name) for depth, name, _ in drawn()] == [
        (depth_of(kind), kind.__name__) for kind in ALL
    ]


def test_the_docstring_names_each_branchs_exit_code() -> None:
    codes = {name: code for _, name, code in drawn() if code is not None}
    branches = [kind for kind in ALL if depth_of(kind) == 1]
    assert codes == {kind.__name__: int(kind.exit_code) for kind in branches}


def test_every_class_has_a_code_of_its_own() -> None:
    codes = [kind.code for kind in ALL]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)
    assert all("code" in vars(kind) for kind in ALL)


def test_every_class_says_what_it_is() -> None:
    assert all(kind.__doc__ for kind in ALL)


def test_every_branch_has_an_exit_code_of_its_own_that_its_classes_share() -> None:
    branches = [kind for kind in ALL if depth_of(kind) == 1]
    assert len({kind.exit_code for kind in branches}) == len(branches)
    for kind in ALL:
        branch = kind.__mro__[max(0, depth_of(kind) - 1)]
        assert issubclass(branch, FedreidError)
        assert kind.exit_code == branch.exit_code
        assert kind.exit_code not in (ExitCode.OK, ExitCode.INTERRUPTED)


def made(kind: type[FedreidError]) -> FedreidError:
    if issubclass(kind, UpdateRefused):
        return kind(Refusal.NORM, "what")
    if issubclass(kind, NameRefused):
        return kind(what="silo name", text="A B")
    return kind("what")


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.code)
def test_every_class_has_a_grpc_status_that_is_a_failure(kind: type[FedreidError]) -> None:
    status = grpc.StatusCode[grpc_status_name(made(kind))]
    assert status is not grpc.StatusCode.OK
    assert (status is grpc.StatusCode.INTERNAL) == (kind is FedreidError)


def test_a_class_that_is_added_later_takes_its_ancestors_status() -> None:
    class StillRefused(errors.TokenRefused):
        """Made for this test."""

    assert grpc_status_name(StillRefused("no")) == "PERMISSION_DENIED"


def test_only_what_passes_by_itself_or_by_others_doing_is_retryable() -> None:
    retryable = {kind.code for kind in ALL if kind.retryable}
    assert retryable == {
        "connection_failed",
        "limit_reached",
        "silo_suspended",
        "versions_apart",
    }


def test_an_error_reads_as_sentences() -> None:
    error = FedreidError("It broke", why="the cause", next_step="Do this")
    assert str(error) == "It broke: the cause. Do this."
    assert str(FedreidError("It broke.", next_step="Did you mean that?")) == (
        "It broke. Did you mean that?"
    )
    assert str(FedreidError("It broke")) == "It broke."
    assert (error.brief, FedreidError("It broke").brief) == ("It broke: the cause", "It broke")


def test_refusals_are_a_closed_set_of_labels() -> None:
    assert all(re.fullmatch(r"[a-z_]+", reason.value) for reason in Refusal)


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "denied"),
        (errno.EIO, "I/O error"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_what_the_disk_says_becomes_a_storage_error_with_its_cause(number: int, why: str) -> None:
    failed = OSError(number, os.strerror(number))
    with pytest.raises(StorageError) as told, storage_errors("write", Path("model")):
        raise failed
    assert "write model" in told.value.what
    assert why in told.value.why
    assert told.value.__cause__ is failed


def test_other_errors_pass_a_storage_block_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), storage_errors("write", Path("model")):
        raise ZeroDivisionError


def test_a_file_name_that_is_no_utf8_can_be_told() -> None:
    error = FedreidError("The image caf\udce9.jpg can't be read", why="\udce9", next_step="Go.")
    assert str(error).encode() == b"The image caf?.jpg can't be read: ? Go."
