"""Are the images' recipe and the federation of containers what they say?"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer
import yaml

import coordinator.cli
import silo_agent.cli
from fedreid.plan import load_plan
from tests.deploy.rendering import ROOT

DOCKER = ROOT / "deploy/docker"
APPS = {"coordinator": coordinator.cli.app, "silo-agent": silo_agent.cli.app}
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SILOS = ("campus", "mall", "station")


def ours() -> dict[str, dict[str, Any]]:
    """The services that run our images."""
    return {
        name: service
        for name, service in COMPOSE["services"].items()
        if service["image"].startswith("fedreid/")
    }


def test_hadolint_has_nothing_to_say() -> None:
    binary = shutil.which("hadolint") or str(Path(sys.executable).parent / "hadolint")
    done = subprocess.run([binary, str(DOCKER / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_takes_what_it_copies_and_nothing_else() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    taken = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied: set[str] = set()
    for line in (DOCKER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY") and "--from" not in line:
            copied.update(line.split()[1:-1])
    assert copied == taken
    assert all((ROOT / path).exists() for path in taken)


def test_the_recipe_leads_to_no_package_index_but_the_one_that_pip_is_set_up_for() -> None:
    for name in ("Dockerfile", "install.sh", "compose.yaml"):
        text = (DOCKER / name).read_text()
        assert "://" not in re.sub(r"http://(?:127\.0\.0\.1|localhost):", "", text), name
    assert "ARG TORCH_INDEX\n" in (DOCKER / "Dockerfile").read_text()


def test_images_run_as_the_user_of_the_charts() -> None:
    users = set(re.findall(r"USER (\S+)", (DOCKER / "Dockerfile").read_text()))
    values = yaml.safe_load((ROOT / "helm/coordinator/values.yaml").read_text())
    assert users == {f"{values['runAsUser']}:{values['runAsUser']}"}


def test_every_service_of_ours_is_confined() -> None:
    for name, service in ours().items():
        if name == "volumes":  # it gives the volumes to the others, and ends
            assert service["network_mode"] == "none" and service["entrypoint"][0] == "chown"
            continue
        assert service["user"] == "10001:10001", name
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def _check_command(program: str, words: list[str]) -> None:
    """Let the program parse a command, as far as its options are known."""
    command: Any = typer.main.get_command(APPS[program])
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used <= known, f"{program} has no {used - known}"


def test_every_command_is_one_of_the_program_in_its_image() -> None:
    checked = 0
    for service in ours().values():
        program = service["image"].removeprefix("fedreid/").split(":")[0]
        if "command" in service:
            _check_command(program, list(service["command"]))
            checked += 1
        script = service.get("entrypoint", [""])[-1]
        for line in re.findall(r"coordinator (?:token|run) [^\n]+", script):
            _check_command("coordinator", shlex.split(line)[1:])
            checked += 1
    assert checked == 7


def test_what_is_mounted_from_here_exists() -> None:
    for service in COMPOSE["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
            else:
                assert source in COMPOSE["volumes"], source
    assert load_plan(DOCKER / "plan.toml").name == "compose"


def test_the_generated_silos_are_those_that_join(tmp_path: Path) -> None:
    script = COMPOSE["services"]["images"]["entrypoint"][-1].replace("/silos", str(tmp_path))
    script = script.replace("identities=6", "identities=2").replace(
        "=24", "=2"
    )  # names are the same
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ})
    for silo in SILOS:
        arguments = COMPOSE["services"][silo]["command"]
        (dataset,) = (a.split("=")[1] for a in arguments if a.startswith("--dataset="))
        assert (tmp_path / dataset.removeprefix("/silos/")).is_dir()
        assert f"--token-file=/tokens/{silo}" in arguments
    targets = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    assert targets[1]["static_configs"][0]["targets"] == [f"{silo}:9465" for silo in SILOS]
