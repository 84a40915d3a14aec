"""How does a kubelet or Prometheus, which have no client certificate, look in? Plain HTTP."""

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from fedreid.errors import ConfigRefused
from fedreid.exposition import Exposition

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Probes every few seconds are no news."""


class Health:
    """Serves /livez, /readyz, /startupz and /metrics in a thread of its own."""

    def __init__(
        self,
        address: str,
        *,
        ready: Callable[[], bool],
        figures: Exposition,
    ) -> None:
        """Bind ``HOST:PORT``; ``ready`` is asked whether the program does what it is there for.

        Raises:
            ConfigRefused: it is taken, or not ours to bind.
        """
        self._ready = ready
        self._problem = ""
        self._figures = figures
        host, _, port = address.rpartition(":")
        try:
            self._server = make_server(
                host.strip("[]"), int(port), self._answer, server_class=_Server,
                handler_class=_Quiet,
            )  # fmt: skip
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigRefused(
                f"Can't serve metrics on {address}",
                why=getattr(error, "strerror", None) or str(error),
                next_step="Choose another HOST:PORT with --metrics.",
            ) from error
        self.port = int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, name="health")

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def tell_problem(self, problem: str) -> None:
        """Let /readyz say why the coordinator can't do its work; nothing: it can."""
        self._problem = problem

    def close(self) -> None:
        """Stop answering and release the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            return self._figures.answer(environ, start_response)
        plain = [("Content-Type", "text/plain; charset=utf-8")]
        ready = self._ready()
        whole = ready and not self._problem
        if path == "/livez" or (path == "/startupz" and ready) or (path == "/readyz" and whole):
            start_response("200 OK", plain)
            return [b"ok\n"]
        if path in ("/readyz", "/startupz"):
            start_response("503 Service Unavailable", plain)
            return [f"{self._problem or 'not ready'}\n".encode()]
        start_response("404 Not Found", plain)
        return [b"not found\n"]
