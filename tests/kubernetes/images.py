"""How are the images made that a cluster runs? By the recipe of ``deploy/docker``, with buildah.

The base image is Debian's Python, for no registry of images is asked. Packages come from the index
that this machine's pip is set up for: its settings are mounted while an image is built, and are no
part of it.
"""

import ast
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.deploy.rendering import ROOT
from tests.kubernetes.needs import CACHE, node_program
from tests.kubernetes.processes import done

_FOLDER = CACHE / "images"
_BASE = "localhost/fedreid/python:3.11"
_PAUSE = "localhost/fedreid/pause:1"
_BASE_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
_BUILD_S = 3600.0
_BUILDAH = ("buildah", "--root", str(_FOLDER / "storage"), "--runroot", str(_FOLDER / "run"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One image, built here."""

    name: str
    size: str
    """Of all its layers unpacked, as buildah says it."""
    seconds: float
    """What building it took; nearly nothing where it was there already."""

    @property
    def repository(self) -> str:
        """The name without its tag."""
        return self.name.rpartition(":")[0]

    @property
    def tag(self) -> str:
        """The tag."""
        return self.name.rpartition(":")[2]


def build(program: str, *, torch: str) -> Image:
    """One program's image, built unless there is one of just these sources."""
    began_s = time.monotonic()
    repository = f"localhost/fedreid/{program}"
    name = f"{repository}:{_digest_of_sources(torch)}"
    if not _is_there(name):
        _forget(repository)
        _build_base()
        with _pip_settings() as settings:
            _bud(
                ROOT, ROOT / "deploy/docker/Dockerfile", name,
                "--pull-never", f"--target={program}", f"--build-arg=PYTHON_IMAGE={_BASE}",
                f"--build-arg=TORCH={torch}", f"--volume={settings}:/etc/pip.conf:ro",
                f"--volume={_AUTHORITIES}:{_AUTHORITIES}:ro",
            )  # fmt: skip
    seconds = time.monotonic() - began_s
    (listed,) = json.loads(done([*_BUILDAH, "images", "--json", name]))
    return Image(name=name, size=listed["size"], seconds=seconds)


def _digest_of_sources(torch: str) -> str:
    """Of all that an image is made of, but for packages, whose versions are among it."""
    digest = hashlib.sha256(torch.encode())
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    taken = [ROOT / line.removeprefix("!") for line in lines if line.startswith("!")]
    for place in sorted([*taken, ROOT / "deploy/docker/Dockerfile"]):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and path.suffix != ".pyc":
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _is_there(name: str) -> bool:
    return (
        subprocess.run([*_BUILDAH, "images", "--quiet", name], capture_output=True).returncode == 0
    )


def _forget(repository: str) -> None:
    """Delete images of other sources, which take 6 GB each."""
    for listed in json.loads(done([*_BUILDAH, "images", "--json"])):
        for name in listed["names"] or []:
            if name.startswith(f"{repository}:"):
                done([*_BUILDAH, "rmi", name])


def build_pause() -> str:
    """The name of the image in which a pod's shared namespaces live."""
    recipe = _recipe("pause", 'FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n')
    _bud(Path(node_program("pause")).parent, recipe, _PAUSE)
    return _PAUSE


def give(name: str, taker: Sequence[str]) -> None:
    """Pipe an image, as an archive, into a command that takes one."""
    archive = f"docker-archive:/dev/stdout:{name}"
    giving = subprocess.Popen([*_BUILDAH, "push", "--quiet", name, archive], stdout=subprocess.PIPE)
    taking = subprocess.Popen(taker, stdin=giving.stdout, stdout=subprocess.DEVNULL)
    assert giving.stdout is not None
    giving.stdout.close()  # so that buildah ends where the taker does
    assert (taking.wait(), giving.wait()) == (0, 0), f"{name} was not taken by {' '.join(taker)}"


def _build_base() -> None:
    root = _FOLDER / "base.tar"
    if not root.exists():
        _FOLDER.mkdir(parents=True, exist_ok=True)
        made = root.with_suffix(".new.tar")
        release = done(["sh", "-c", '. /etc/os-release; echo "$VERSION_CODENAME"']).strip()
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={_BASE_PACKAGES}"]
        done([*command, release, str(made)], timeout_s=_BUILD_S)
        made.rename(root)
    _bud(_FOLDER, _recipe("base", "FROM scratch\nADD base.tar /\n"), _BASE)


def _recipe(name: str, text: str) -> Path:
    _FOLDER.mkdir(parents=True, exist_ok=True)
    path = _FOLDER / f"{name}.Dockerfile"
    path.write_text(text)
    return path


@contextmanager
def _pip_settings() -> Iterator[Path]:
    """What pip is set up for here, as a file; it may hold secrets, so it is deleted at once."""
    options: dict[str, str] = {}
    for line in done([sys.executable, "-m", "pip", "config", "list"]).splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in ("global", "install", ":env:"):  # the first listed goes first
            options.setdefault(option, ast.literal_eval(value))
    path = _FOLDER / "pip.conf"
    path.touch(mode=0o600)
    lines = [f"{option} = {value}" for option, value in options.items()]
    path.write_text("\n".join(["[global]", *lines, ""]))
    try:
        yield path
    finally:
        path.unlink()


def _bud(context: Path, recipe: Path, name: str, *flags: str) -> None:
    command = [*_BUILDAH, "bud", "--quiet", "--isolation=chroot", "--layers=false", *flags]
    try:
        done([*command, f"--file={recipe}", f"--tag={name}", str(context)], timeout_s=_BUILD_S)
    finally:
        done([*_BUILDAH, "rm", "--all"])  # what a build that was broken off leaves
