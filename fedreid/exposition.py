"""How do a program's figures get out? Read from its state, then as text, one reader at a time."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    disable_created_metrics,
    generate_latest,
    make_wsgi_app,
)

import fedreid
from fedreid.versions import revision

disable_created_metrics()  # type: ignore[no-untyped-call]  # a third of all series, which say when this process began

TEXT = "text/plain; version=0.0.4; charset=utf-8"


def declare_build(registry: CollectorRegistry) -> None:
    """Expose which version of the program runs."""
    build = Gauge(
        "fedreid_build_info", "1, with the version and the source revision that run here.",
        ["version", "revision"], registry=registry,
    )  # fmt: skip
    build.labels(fedreid.__version__, revision()).set(1)


class Exposition:
    """The figures of one program."""

    def __init__(
        self, registry: CollectorRegistry, refresh: Callable[[], None] = lambda: None
    ) -> None:
        """``refresh`` sets the figures that show a state rather than count events."""
        self._registry = registry
        self._refresh = refresh
        self._app = make_wsgi_app(registry)
        self._reading = threading.Lock()

    def text(self) -> bytes:
        """All figures as of now, in Prometheus' text format."""
        with self._reading:
            self._refresh()
            return generate_latest(self._registry)

    def answer(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """All figures as of now, in the format that a scraper asks for."""
        with self._reading:
            self._refresh()
            answer: Iterable[bytes] = self._app(environ, start_response)
            return answer
