"""What does a run look like at one moment, to those who run the federation?"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from coordinator.client import admin_of, tree_of
from fedreid.console import instant, table_of, text_of
from fedreid.limits import CALL_S
from fedreid.v1 import admin_pb2, federation_pb2
from fedreid.watching import Look

if TYPE_CHECKING:
    from fedreid.v1.admin_pb2_grpc import AdminStub

UNDER_WAY = ("running", "paused")
_ROUNDS_SHOWN = 5
_SILOS_SHOWN = 20
"""A terminal has some fifty lines; 'coordinator silo list' shows all of them."""
_BAR_WIDTH = 40


def look_at_run(data: Path, coordinator: str | None, *, drawn: bool) -> Look:
    """The current run now; with its silos and last rounds where a picture is ``drawn``.

    The connection is made anew each time, so a coordinator that was moved, restarted or given
    another certificate meanwhile is found again.

    Raises:
        ConnectionFailed: nobody answers.
    """
    with admin_of(data, coordinator) as admin:
        run = admin.GetRun(admin_pb2.GetRunRequest(), timeout=CALL_S)
        return Look(
            line=line_of(run),
            tree=tree_of(run),
            picture=_picture(admin, run) if drawn else "",
            ended=run.state not in UNDER_WAY,
        )


def line_of(run: admin_pb2.GetRunResponse) -> str:
    """The run in one line."""
    return (
        f"{run.run or 'no run'} {run.state}: {run.rounds_published} of "
        f"{run.rounds_planned} models; round {run.round.number} {run.round.phase}; "
        f"{run.reason}"
    )


def _picture(admin: "AdminStub", run: admin_pb2.GetRunResponse) -> RenderableType:
    first = max(1, run.round.number + 1 - _ROUNDS_SHOWN)
    silos = admin.ListSilos(admin_pb2.ListSilosRequest(), timeout=CALL_S).silos
    rounds = admin.ListRounds(admin_pb2.ListRoundsRequest(first=first), timeout=CALL_S).rounds
    figures = admin.ListEvaluations(
        admin_pb2.ListEvaluationsRequest(first=first), timeout=CALL_S
    ).evaluations
    parts: list[RenderableType] = [
        text_of(f"{run.run or 'no run'} is {run.state}: {run.reason}"),
        _models(run),
    ]
    if run.round.number:
        parts.append(text_of(_round_line(run.round)))
    parts.append(_silos(silos, run.round))
    if rounds:
        parts.append(_rounds(rounds, figures))
    return Group(*parts)


def _models(run: admin_pb2.GetRunResponse) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    bar = ProgressBar(run.rounds_planned or 1, run.rounds_published, width=_BAR_WIDTH)
    grid.add_row(
        bar, text_of(f"{run.rounds_published} of {run.rounds_planned} models are published")
    )
    return grid


def _round_line(state: admin_pb2.RoundSummary) -> str:
    until = f", until {instant(state.deadline_s)} at the latest" if state.deadline_s else ""
    return (
        f"round {state.number}: {state.phase}, {len(state.participants)} of "
        f"{len(state.invited)} updates{until}"
    )


def _silos(silos: Sequence[admin_pb2.Silo], state: admin_pb2.RoundSummary) -> RenderableType:
    rows = [
        (
            silo.name,
            silo.state,
            f"{silo.phase} {silo.progress:.0%}" if silo.phase else "",
            update_of(silo.name, state),
            instant(silo.last_seen_s) if silo.last_seen_s else "never",
        )
        for silo in silos[:_SILOS_SHOWN]
    ]
    table = table_of("Silos", ("silo", "state", "does", "update", "last seen"), rows)
    if (more := len(silos) - _SILOS_SHOWN) <= 0:
        return table
    return Group(table, text_of(f"and {more} more: coordinator silo list"))


def update_of(silo: str, state: admin_pb2.RoundSummary) -> str:
    """What has become of a silo's update in a round."""
    if silo in state.refused:
        return f"refused: {state.refused[silo]}"
    if silo in state.declined:
        return f"declined: {state.declined[silo]}"
    for part in state.participants:
        if part.silo == silo:
            return ", ".join(("accepted", *part.flags))
    return "awaited" if silo in state.invited else ""


def _rounds(
    rounds: Sequence[admin_pb2.RoundSummary], figures: Sequence[admin_pb2.SiloEvaluation]
) -> RenderableType:
    rows = [
        (
            str(state.number),
            state.phase,
            f"{len(state.participants)}/{len(state.invited)}",
            f"{sum(state.phase_seconds.values()):.1f} s",
            _mean_map(figures, state.number),
            state.reason or state.model_digest[:12],
        )
        for state in reversed(rounds)
    ]
    columns = ("round", "phase", "updates", "time", "mAP at the silos", "model or reason")
    return table_of("Last rounds", columns, rows)


def _mean_map(figures: Sequence[admin_pb2.SiloEvaluation], number: int) -> str:
    """Of the published model, over the silos that have measured it."""
    of_round = [
        one.evaluation.map
        for one in figures
        if one.round == number
        and one.silo
        and one.evaluation.model == federation_pb2.MODEL_KIND_GLOBAL
    ]
    return f"{fmean(of_round):.1%} of {len(of_round)}" if of_round else ""
