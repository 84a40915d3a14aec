"""Which grid of methods, scenarios and seeds is to be run? ``BENCH.toml``, strictly read.

::

    name = "methods"
    seeds = [0, 1, 2]

    [datasets.market1501]            # a folder each; or a table [generated] instead
    path = "/data/Market-1501"

    [override.backbone]              # of every method's plan
    name = "resnet18"

    [[scenarios]]
    kind = "by-dataset"

    [[methods]]
    name = "fedpav"
    plan = "fedpav.toml"             # beside this file, or among benchmark/plans
"""

import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import msgspec
import tomli_w
from msgspec import Meta

from benchmark.attack import Attack
from benchmark.cells import CellKind, ScenarioKind, Transport
from fedreid.datasets.layouts import REPEATS
from fedreid.datasets.synthetic import SyntheticSpec
from fedreid.errors import PlanRefused
from fedreid.names import check_label
from fedreid.plan import Count, Plan, Section, parse_plan, parse_toml
from silo_agent.config import Policy

PUBLIC = "public"
"""What a method's plan says in ``distillation.images`` for the bench's public images."""
PRETRAINED = "pretrained"
"""What ``backbone.start`` says for the bench's own start weights."""

Tree = dict[str, Any]


class GeneratedSilos(Section, frozen=True, kw_only=True):
    """Silos of procedural pedestrians, drawn anew for each seed; see SyntheticSpec."""

    silos: Count = 4
    ratio: tuple[int, ...] = (12, 6, 3, 1)
    unit_identities: Count = 15
    test_identities: Count = 48
    cameras_per_identity: Count = 3
    images_per_identity_and_camera: Count = 2
    distractors: int = 40
    junk: int = 8
    public_images: int = 400
    height_px: int = 128
    width_px: int = 64
    pretraining_rounds: Annotated[int, Meta(ge=0)] = 0
    """Ordinary training on people of its own that gives the weights which ``backbone.start =
    "pretrained"`` means (:mod:`benchmark.pretraining`)."""

    def spec(self, seed: int) -> SyntheticSpec:
        """What is drawn for a seed; UsageError if it can't be."""
        values = msgspec.structs.asdict(self)
        del values["pretraining_rounds"]
        return SyntheticSpec(seed=seed, **values)


class DatasetFolder(Section, frozen=True, kw_only=True):
    """A dataset on this machine."""

    path: str
    layout: str = "auto"
    split: Annotated[int, Meta(ge=0, lt=REPEATS)] | None = None
    """Which drawn split of a small set; by default the seed's own, so that ten seeds run all."""
    withdrawn_confirmed: bool = False
    """You answer for using a set that its owners have withdrawn."""


class ScenarioSpec(Section, frozen=True, kw_only=True):
    """How images are divided into silos (reid-spec §10)."""

    kind: ScenarioKind
    name: str = ""
    """By default its kind."""
    datasets: tuple[str, ...] = ()
    """By default all; ``by-camera`` and ``by-identity`` divide one."""
    silos: Count = 4
    """Of ``by-identity``."""

    @property
    def label(self) -> str:
        """The scenario's name."""
        return self.name or self.kind


class MethodSpec(Section, frozen=True, kw_only=True):
    """A row of the table: a plan, and what is different from it."""

    name: str
    plan: str
    """File beside the bench file, or one of benchmark/plans."""
    kind: CellKind = "federated"
    attack: Attack | None = None
    """A silo that wants to do harm; only in one process, where updates can be got at."""
    override: Tree = msgspec.field(default_factory=dict)
    """Keys of the plan, section by section."""
    policy: Policy = Policy()
    """Of every silo; another than the usual one only on the ``local`` transport."""


class Bench(Section, frozen=True, kw_only=True):
    """A grid."""

    name: str
    scenarios: tuple[ScenarioSpec, ...]
    methods: tuple[MethodSpec, ...]
    seeds: tuple[Annotated[int, Meta(ge=0)], ...] = (0,)
    transport: Transport = "local"
    workers: Count = 1
    """Cells at a time, each a process of its own; ``grpc`` cells run one at a time."""
    generated: GeneratedSilos | None = None
    datasets: dict[str, DatasetFolder] = msgspec.field(default_factory=dict)
    public: str = ""
    """Folder of public images; generated silos bring their own."""
    override: Tree = msgspec.field(default_factory=dict)
    """Keys of every method's plan, before the method's own."""
    best: str = "best"
    """The method whose claims are judged,"""
    reference: str = "reference"
    """and the one that it is compared with."""


def load_bench(path: Path, *, transport: str = "", workers: int = 0, seeds: str = "") -> Bench:
    """The bench in a TOML file; ``path`` may name one of benchmark/plans.

    The other arguments take the place of what the file says, where they are given.

    Raises:
        PlanRefused: it can't be read, or says what can't be done.
    """
    bench = parse_toml(_text(path, path.parent), Bench, what=f"bench file {path}")
    given: Tree = {"transport": transport, "workers": workers}
    if seeds:
        given["seeds"] = [
            int(seed) if seed.strip().isdigit() else seed for seed in seeds.split(",")
        ]
    changes = {key: value for key, value in given.items() if value}
    try:
        bench = msgspec.convert(msgspec.to_builtins(bench) | changes, Bench)
    except msgspec.ValidationError as error:
        raise PlanRefused("The benchmark can't be run so", why=str(error)) from error
    _check(bench)
    return bench


def method_plan(
    bench: Bench,
    method: MethodSpec,
    folder: Path,
    *,
    name: str,
    seed: int,
    public: str,
    start: Path | None = None,
) -> Plan:
    """The plan of a cell: the method's file, the bench's overrides, then the method's.

    ``public`` and ``start`` are what the bench has of public images and start weights.

    Raises:
        PlanRefused: the file is missing, or the outcome is no plan.
    """
    tree = tomllib.loads(_text(Path(method.plan), folder))
    merged = _merged(_merged(tree, bench.override), method.override)
    merged |= {"name": name, "seed": seed}
    distillation = merged.setdefault("distillation", {})
    if distillation.get("images") == PUBLIC:
        if not public:
            raise PlanRefused(
                f"The method {method.name} needs public images, and the bench names none",
                next_step="Set public = FOLDER in the bench file.",
            )
        distillation["images"] = public
    backbone = merged.setdefault("backbone", {})
    if backbone.get("start") == PRETRAINED:
        if start is None:
            raise PlanRefused(
                "The bench has no start weights of its own",
                next_step="Set pretraining_rounds in [generated], or another backbone.start.",
            )
        backbone["start"] = str(start)
    plan = parse_plan(tomli_w.dumps(merged))
    if plan.evaluation.folder:
        raise PlanRefused(
            f"The method {method.name} sets evaluation.folder",
            next_step="Leave it out: a benchmark measures on the silos' own test sets.",
        )
    return plan


def _merged(tree: Tree, changes: Mapping[str, Any]) -> Tree:
    merged = dict(tree)
    for key, value in changes.items():
        deeper = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if deeper else value
    return merged


def _text(path: Path, folder: Path) -> str:
    """The text of a file as it is named, beside ``folder``, or among benchmark/plans."""
    for found in (path, folder / path):
        if found.is_file():
            return found.read_text("utf-8")
    packaged = files("benchmark") / "plans" / path.name
    if packaged.is_file():
        return packaged.read_text("utf-8")
    known = sorted(item.name for item in (files("benchmark") / "plans").iterdir())
    raise PlanRefused(
        f"There is no file {path}",
        next_step=f"Name an existing one; those that come with the benchmark: {', '.join(known)}.",
    )


def _check(bench: Bench) -> None:
    for what, names in (
        ("scenario", [scenario.label for scenario in bench.scenarios]),
        ("method", [method.name for method in bench.methods]),
    ):
        if not names or len(set(names)) < len(names):
            raise PlanRefused(f"The bench needs {what}s with names of their own")
        for name in names:
            check_label(name, what=f"{what} name")
    for method in bench.methods:
        if method.attack and (method.kind, bench.transport) != ("federated", "local"):
            raise PlanRefused(
                f"The method {method.name} has an attack, which only a federation in one process "
                "can have",
                next_step='Leave kind out, and set transport = "local".',
            )
    check_label(bench.name, what="bench name")
    if (bench.generated is None) == (not bench.datasets):
        raise PlanRefused("A bench has either [generated] silos or [datasets]")
    if bench.transport != "local" and any(m.policy != Policy() for m in bench.methods):
        raise PlanRefused(
            "A method with a policy of its own runs on the transport local only",
            next_step="Leave out the policy, or the transport.",
        )
    for scenario in bench.scenarios:
        unknown = [
            name for name in scenario.datasets if bench.datasets and name not in bench.datasets
        ]
        if unknown:
            raise PlanRefused(
                f"The scenario {scenario.label} has an unknown dataset {unknown[0]!r}"
            )
