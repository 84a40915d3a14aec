"""Programs that have the names of Flower's and do next to nothing."""

import argparse
import json
import signal
import socket
import sys
import tomllib
from pathlib import Path

from tests.benchmark.peers import made_up_environment

VERSION = "1.41.7"
SECONDS = 0.25
PEAK_MB = 50.0


def make(folder: Path, *, mode: str = "", version: str = VERSION) -> Path:
    """The environment's interpreter; ``mode`` says what goes wrong in it."""
    programs = ("flower-superlink", "flower-supernode", "flwr")
    return made_up_environment.make(
        folder, package="flwr", version=version, programs=programs, run=Path(__file__), mode=mode
    )


def superlink(words: list[str], mode: str) -> None:
    parser = argparse.ArgumentParser()
    for name in ("--host", "--port", "--ssl-certfile", "--ssl-keyfile", "--ssl-ca-certfile"):
        parser.add_argument(name, required=True)
    parser.add_argument("--enable-supernode-auth", action="store_true", required=True)
    options = parser.parse_args(words)
    assert all(
        "-----BEGIN" in Path(path).read_text()
        for path in (options.ssl_certfile, options.ssl_keyfile, options.ssl_ca_certfile)
    )
    if mode == "superlink ends":
        sys.exit("no room here")
    with socket.create_server(("127.0.0.1", int(options.port))):
        signal.pause()


def supernode(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    for name in ("--superlink", "--root-certificates", "--auth-supernode-private-key", "--port"):
        parser.add_argument(name, required=True)
    parser.add_argument("--node-config", choices=("silo=0", "silo=1"), required=True)
    options = parser.parse_args(words)
    assert "OPENSSH PRIVATE KEY" in Path(options.auth_supernode_private_key).read_text()
    signal.pause()


def flwr(words: list[str], mode: str) -> None:
    if words[0] == "supernode":
        assert words[1] == "register" and words[3] == "local"
        assert Path(words[2]).read_text().startswith("ecdsa-sha2-nistp384 ")
        if mode == "no node is wanted":
            sys.exit("this node is not wanted")
        return
    assert words[0] == "run" and words[2] == "local"
    app = tomllib.loads((Path(words[1]) / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    module, _, _ = app["components"]["serverapp"].partition(":")
    assert (Path(words[1]) / f"{module}.py").is_file()
    task = json.loads(Path(app["config"]["task"]).read_text())
    written = Path(app["config"]["report"])
    with written.open("a", buffering=1) as report:
        for _ in range(task["rounds"]):
            if mode == "app fails":
                report.write(json.dumps({"failed": "the mean is off"}) + "\n")
            elif mode == "app ends early":
                with (written.parent / "superlink.log").open("a") as log:
                    log.write("Finished task 1\n")
            else:
                line = {"seconds": SECONDS, "serverapp_peak_mb": PEAK_MB}
                report.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    program, mode, *words = sys.argv[1:]
    if program == "flower-superlink":
        superlink(words, mode)
    elif program == "flower-supernode":
        supernode(words)
    else:
        flwr(words, mode)
