"""Programs that have the names of FLARE's and do next to nothing, and the kits that they make."""

import argparse
import json
import signal
import socket
import sys
from pathlib import Path

from tests.benchmark.peers import made_up_environment

VERSION = "2.9.3"
SECONDS = 0.25
PEAK_MB = 50.0


def make(folder: Path, *, mode: str = "", version: str = VERSION) -> Path:
    """The environment's interpreter; ``mode`` says what goes wrong in it."""
    return made_up_environment.make(
        folder,
        package="nvflare",
        version=version,
        programs=("nvflare",),
        run=Path(__file__),
        mode=mode,
    )


def provision(words: list[str], mode: str) -> None:
    """A kit for each participant, whose script runs this file as what it is for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", type=Path, required=True)
    parser.add_argument("-w", type=Path, required=True)
    options = parser.parse_args(words)
    project = options.p.read_text()
    if mode == "no kits":
        sys.exit("this project is not liked")
    port = project.partition("fed_learn_port: ")[2].partition(",")[0]
    kits = options.w / "null_round" / "prod_00"
    for line in project.splitlines():
        name, _, rest = line.partition("{name: ")[2].partition(", type: ")
        if not name:
            continue
        startup = kits / name / "startup"
        startup.mkdir(parents=True)
        role = rest.partition(",")[0]
        command = made_up_environment.command(sys.executable, Path(__file__))
        script = f'[ "$1" = --once ] && exec {command} {role} "{mode}" {port}\n'
        (startup / "sub_start.sh").write_text(script)


def server(port: int, mode: str) -> None:
    if mode == "server ends":
        sys.exit("no room here")
    with socket.create_server(("127.0.0.1", port)):
        signal.pause()


def submit(words: list[str], mode: str) -> None:
    """Write what the job would."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-j", type=Path, required=True)
    parser.add_argument("--startup-kit", type=Path, required=True)
    options = parser.parse_args(words)
    assert (options.startup_kit / "startup").is_dir()
    meta = json.loads((options.j / "meta.json").read_text())
    app = options.j / next(iter(meta["deploy_map"]))
    (workflow,) = json.loads((app / "config/config_fed_server.json").read_text())["workflows"]
    module, _, _ = workflow["path"].partition(".")
    (executor,) = json.loads((app / "config/config_fed_client.json").read_text())["executors"]
    script = executor["executor"]["args"]["task_script_path"]
    assert (app / "custom" / f"{module}.py").is_file() and (app / "custom" / script).is_file()
    task = json.loads(Path(workflow["args"]["task"]).read_text())
    assert meta["min_clients"] == task["silos"]
    written = Path(workflow["args"]["report"])
    with written.open("a", buffering=1) as report:
        for _ in range(task["rounds"]):
            if mode == "job fails":
                report.write(json.dumps({"failed": "the mean is off"}) + "\n")
            elif mode == "job ends early":
                with (written.parent / "localhost.log").open("a") as log:
                    log.write("Server runner finished.\n")
            else:
                line = {"seconds": SECONDS, "job_peak_mb": PEAK_MB}
                report.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    program, mode, *words = sys.argv[1:]
    if program == "server":
        server(int(words[0]), mode)
    elif program == "client":
        signal.pause()
    elif words[0] == "provision":
        provision(words[1:], mode)
    else:
        assert words[:2] == ["job", "submit"]
        submit(words[2:], mode)
