"""How does the agent keep taking part until it is told to stop?"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
from msgspec.structs import replace

from fedreid import __version__
from fedreid.audit import AuditLog
from fedreid.clock import SystemClock
from fedreid.console import instant, progress_shown
from fedreid.errors import (
    AccessDenied,
    ConnectionFailed,
    JobFailed,
    PolicyRefused,
    SiloSuspended,
    StorageError,
    storage_errors,
)
from fedreid.exposition import Exposition
from fedreid.files import held_alone
from fedreid.health import Health
from fedreid.jobs import Worker
from fedreid.limits import JOB_ATTEMPTS
from fedreid.notify import Supervisor
from fedreid.pki.identity import JOIN_AGAIN, Identity, check_not_expired
from silo_agent import metrics
from silo_agent.config import (
    AgentConfig,
    Folders,
    Membership,
    identities,
    load_config,
    load_membership,
)
from silo_agent.contact import Contact
from silo_agent.doing import Notes
from silo_agent.egress import check_destination
from silo_agent.outbox import Outbox
from silo_agent.rounds import Participant
from silo_agent.textfile import check_textfile, keep_textfile
from silo_agent.trust.channel import Line, pauses_s
from silo_agent.trust.renewal import Renewal, check_is_ours

TRAINER = "silo_agent.learning.worker"
_GROUP = "silo_agent.learning.group"
_LONG_ENOUGH_S = 60.0
"""A connection that lasted this long starts the pauses between attempts anew."""


def run(
    folders: Folders,
    say: Callable[[str], None],
    *,
    metrics_at: str | None = None,
    textfile: Path | None = None,
    trainer: str = TRAINER,
) -> None:
    """Take part until SIGTERM or SIGINT; ``trainer`` is the module of the training process.

    ``metrics_at`` is where health and metrics are served, and ``textfile`` where metrics are
    written to, if not where the settings say.

    Raises:
        FedreidError: something that a person has to mend; local state stays as it is.
    """
    supervisor = Supervisor()
    with held_alone(folders.root, by="agent"), progress_shown() as show:
        config = load_config(folders)
        config = replace(
            config,
            metrics=config.metrics if metrics_at is None else metrics_at,
            metrics_textfile=config.metrics_textfile if textfile is None else str(textfile),
        )
        asyncio.run(
            _run_until_signal(folders, config, trainer, supervisor.heard(say), show, supervisor)
        )
    say("stopped; everything is kept, start again to go on")


async def _run_until_signal(
    folders: Folders,
    config: AgentConfig,
    trainer: str,
    say: Callable[[str], None],
    show: Callable[[str, float], None],
    supervisor: Supervisor,
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    clock = SystemClock()
    check_destination(config.coordinator, config.policy)
    membership = load_membership(folders)
    notes = Notes(folders, clock)

    def shown(doing: str, share: float) -> None:
        notes.note(doing, share)
        show(doing, share)

    audit = AuditLog(folders.audit, clock)
    note_started(audit, config, membership)
    worker = training_worker(trainer, config.processes)
    contact = Contact(clock, say, shown)
    participant = Participant(
        folders=folders,
        config=config,
        membership=membership,
        worker=worker,
        audit=audit,
        clock=clock,
        contact=contact,
        say=say,
        show=shown,
    )
    outbox = Outbox(folders)
    figures = Exposition(metrics.REGISTRY, lambda: metrics.OUTBOX_DEPTH.set(outbox.depth()))
    async with (
        _health_served(config.metrics, figures, contact, say),
        _textfile_kept(config.metrics_textfile, figures, say),
    ):
        taking_part = asyncio.create_task(_take_part_for_ever(folders, participant, contact, say))
        stopped = asyncio.create_task(stop.wait())
        noting = asyncio.create_task(notes.keep())
        try:
            async with supervisor.watching():
                await asyncio.wait({taking_part, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if taking_part.done():
                await taking_part
        finally:
            for task in (taking_part, stopped, noting):
                task.cancel()
            await asyncio.gather(taking_part, stopped, noting, return_exceptions=True)
            await worker.close()


@contextlib.asynccontextmanager
async def _textfile_kept(
    path: str, figures: Exposition, say: Callable[[str], None]
) -> AsyncIterator[None]:
    """Write the figures to a file meanwhile, if there is a name for it."""
    if not path:
        yield
        return
    check_textfile(Path(path))
    writing = asyncio.create_task(keep_textfile(Path(path), figures, say))
    try:
        yield
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


@contextlib.asynccontextmanager
async def _health_served(
    address: str, figures: Exposition, contact: Contact, say: Callable[[str], None]
) -> AsyncIterator[None]:
    """Answer probes and Prometheus meanwhile, if there is an address for it."""
    if not address:
        yield
        return
    health = Health(address, ready=lambda: contact.connected, figures=figures)
    health.start()
    say(f"health and metrics on port {health.port}")
    try:
        yield
    finally:
        health.close()


def note_started(audit: AuditLog, config: AgentConfig, membership: Membership) -> None:
    """Write down under which policy this agent takes part."""
    audit.append(
        "agent.started",
        version=__version__,
        federation=membership.federation,
        silo=membership.silo,
        coordinator=config.coordinator,
        policy=msgspec.to_builtins(config.policy),
    )


def training_worker(trainer: str, processes: int) -> Worker:
    """The training process, or the group of them that torchrun starts."""
    if processes == 1:
        return Worker(trainer)
    return Worker(_GROUP, (str(processes), trainer), survives_refusal=False)


async def _take_part_for_ever(
    folders: Folders, participant: Participant, contact: Contact, say: Callable[[str], None]
) -> None:
    store = identities(folders, load_config(folders))
    pauses = pauses_s()
    failed_jobs, told = 0, ""
    while True:
        began_s, jobs_done = asyncio.get_running_loop().time(), participant.jobs_done
        lost: ConnectionFailed | SiloSuspended | None = None
        try:
            with storage_errors("work in", folders.root):
                identity = store.load()
                await _take_part(folders, identity, participant, say)
        except (ConnectionFailed, SiloSuspended) as error:
            lost = error
        except StorageError as error:  # people free space or mend the disk while the agent waits
            if str(error) != told:
                say(f"{error} Trying again.")
            told = str(error)
            contact.missed("waiting for the disk")
            metrics.note_waiting("disk")
        except AccessDenied as error:
            if store.load() == identity:
                raise
            say(f"{error} Trying again with the newer identity.")
        except PolicyRefused as refused:
            if refused.again_at_s is None:
                raise
            say(str(refused))
            # Silent until then: a silo that is not heard of is not invited, and nobody waits for
            # an update that its policy keeps here.
            contact.missed(f"waiting until {instant(refused.again_at_s)}, as its policy says")
            metrics.note_waiting("policy")
            await asyncio.sleep(max(0.0, refused.again_at_s - SystemClock().now_s()))
        except JobFailed as error:
            in_a_row = participant.jobs_done == jobs_done
            failed_jobs = failed_jobs + 1 if in_a_row else 1
            if failed_jobs >= JOB_ATTEMPTS:
                raise
            say(str(error))
            contact.missed("waiting to try again")
            metrics.note_waiting("retry")
        if asyncio.get_running_loop().time() - began_s > _LONG_ENOUGH_S:
            pauses, failed_jobs, told = pauses_s(), 0, ""
        pause_s = next(pauses)
        if lost is not None:
            contact.lost(lost, pause_s=pause_s)
        await asyncio.sleep(pause_s)


async def _take_part(
    folders: Folders, identity: Identity, participant: Participant, say: Callable[[str], None]
) -> None:
    """Take part over one line, whose identity is kept good meanwhile, until something fails."""
    config, membership, clock = load_config(folders), load_membership(folders), SystemClock()
    check_is_ours(identity, membership)
    outside = f"Let your PKI renew the files in {config.identity}."
    check_not_expired(identity, clock, remedy=outside if config.identity else JOIN_AGAIN)
    async with Line(config.coordinator, identity) as line:
        renewal = Renewal(
            line,
            folders=folders,
            config=config,
            membership=membership,
            audit=AuditLog(folders.audit, clock),
            clock=clock,
            say=say,
        )
        tasks = (
            asyncio.create_task(participant.take_part(line, renewal.asked)),
            asyncio.create_task(renewal.serve()),
        )
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
