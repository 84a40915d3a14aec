"""Which fixtures do tests of several packages share?"""

import importlib
import os
import time

import pytest

from tests.parties import FakeClock, Federation

# Two pytest processes share two cores; torch's own threads in each would only fight for them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Hypothesis reads this strategy's module only when it is first drawn from, and pytest rewrites the
# module's syntax tree then. CPython 3.11 fails at that if a finaliser happens to run in the middle
# ("AST constructor recursion depth mismatch"), so it is read now.
importlib.import_module("hypothesis.strategies._internal.regex")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many schedules of ``tests/simulation`` are played, and which."""
    parser.addoption("--schedules", type=int, default=400, help="play so many schedules")
    parser.addoption("--seed", type=int, default=None, help="play the schedule of this seed alone")


@pytest.fixture
def clock() -> FakeClock:
    """A clock that a test moves."""
    return FakeClock()


@pytest.fixture(scope="session")
def federation() -> Federation:
    """A federation founded now by the machine's clock, which TLS itself reads."""
    return Federation.founded(now_s=time.time())
