"""Do probes and scrapers get their answers, by the program's own readiness and registry?"""

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from fedreid.errors import ConfigRefused
from fedreid.exposition import Exposition
from fedreid.health import Health

NONE = Exposition(CollectorRegistry())


class Served:
    """A health port whose program is ready when a test says so."""

    def __init__(self) -> None:
        self.ready = False
        registry = CollectorRegistry()
        Gauge("fedreid_example", "An example.", registry=registry).set(7)
        self.health = Health("127.0.0.1:0", ready=lambda: self.ready, figures=Exposition(registry))

    def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.health.port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""


@pytest.fixture
def served() -> Iterator[Served]:
    """It answers until the test has ended."""
    served = Served()
    served.health.start()
    yield served
    served.health.close()


def test_a_program_lives_before_it_is_ready_and_is_ready_only_while_it_says_so(
    served: Served,
) -> None:
    assert [served.get(path)[0] for path in ("/livez", "/readyz", "/startupz")] == [200, 503, 503]
    served.ready = True
    assert [served.get(path)[0] for path in ("/livez", "/readyz", "/startupz")] == [200] * 3
    served.ready = False
    assert served.get("/readyz")[0] == 503


def test_the_figures_are_those_of_the_programs_registry_and_nothing_else(served: Served) -> None:
    status, text = served.get("/metrics")
    assert status == 200 and "fedreid_example 7.0" in text and "python_info" not in text
    assert served.get("/elsewhere")[0] == 404


@pytest.mark.parametrize("address", ["127.0.0.1:notaport", "127.0.0.1:99999", "9464x", ""])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigRefused, match="--metrics"):
        Health(address, ready=lambda: True, figures=NONE)


def test_a_taken_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigRefused, match=f"127.0.0.1:{port}"):
            Health(f"127.0.0.1:{port}", ready=lambda: True, figures=NONE)
