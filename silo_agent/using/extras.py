"""What if a package that only some commands need is not installed? The error names its extra."""

from collections.abc import Iterator
from contextlib import contextmanager

from fedreid.errors import UsageError


@contextmanager
def needed(doing: str, *, extra: str) -> Iterator[None]:
    """Turn an ``ImportError`` of the block into the way to install what is missing."""
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"{doing} needs packages that are not installed",
            why=str(error),
            next_step=f"Install them: pip install 'fedreid[{extra}]'.",
        ) from error
