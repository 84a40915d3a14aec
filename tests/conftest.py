"""Which fixtures do tests of several packages share?"""

import time

import pytest

from tests.parties import FakeClock, Federation


@pytest.fixture
def clock() -> FakeClock:
    """A clock that a test moves."""
    return FakeClock()


@pytest.fixture(scope="session")
def federation() -> Federation:
    """A federation founded now by the machine's clock, which TLS itself reads."""
    return Federation.founded(now_s=time.time())
