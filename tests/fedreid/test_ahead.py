import threading
from collections.abc import Iterator

import pytest

from fedreid.ahead import made_ahead


def test_everything_is_made_once_and_in_order() -> None:
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return 10 * item

    assert list(made_ahead(make, range(5))) == [0, 10, 20, 30, 40]
    assert made == [0, 1, 2, 3, 4]


def test_nothing_gives_nothing() -> None:
    assert list(made_ahead(str, ())) == []


def test_the_next_is_made_while_the_caller_works_and_none_beyond_it() -> None:
    begun = [threading.Event() for _ in range(3)]

    def make(item: int) -> int:
        begun[item].set()
        return item

    coming = made_ahead(make, range(3))
    assert next(coming) == 0
    assert begun[1].wait(10.0)
    assert not begun[2].is_set()


def test_an_error_is_raised_where_its_result_was_due() -> None:
    def make(item: int) -> int:
        if item == 1:
            raise ValueError("the second")
        return item

    coming: Iterator[int] = made_ahead(make, range(3))
    assert next(coming) == 0
    with pytest.raises(ValueError, match="the second"):
        next(coming)
