"""How do the coordinator's parts come together and run until they are told to stop?"""

import asyncio
import contextlib
import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from msgspec.structs import replace
from prometheus_client import REGISTRY

import fedreid
from coordinator.admin import AdminServicer
from coordinator.calls import Calls
from coordinator.config import Config, load_config, load_model_key
from coordinator.disk import look_back, watch_disk
from coordinator.folders import Folders
from coordinator.readings import Readings, show_past
from coordinator.rounds.attending import Attending
from coordinator.rounds.chronicle import audit_of, commits_seen
from coordinator.rounds.commands import Commands
from coordinator.rounds.conductor import Conductor
from coordinator.rounds.current import Current
from coordinator.rounds.departures import Departures
from coordinator.rounds.intake import Intake
from coordinator.rounds.journal import Journal, check_not_set_back
from coordinator.rounds.phases import Phases
from coordinator.rounds.presence import Presence
from coordinator.rounds.publishing import Models
from coordinator.rounds.recovery import recover
from coordinator.rounds.turns import Turns
from coordinator.service import EnrolmentServicer, FederationServicer
from coordinator.trust.access import Access
from coordinator.trust.authorities import Authorities
from coordinator.trust.denials import Denials
from coordinator.trust.enrolment import Enrolment
from coordinator.trust.keeping import Keeper
from coordinator.trust.known_calls import server_of_known_calls
from coordinator.trust.port import connections_told, port_options, room_for_connections
from coordinator.trust.registry import Registry
from coordinator.trust.rollover import RollOver
from coordinator.trust.tls import server_credentials
from fedreid.clock import SystemClock
from fedreid.errors import ConfigRefused, StorageError
from fedreid.exposition import Exposition
from fedreid.files import held_alone, write_bytes
from fedreid.health import Health
from fedreid.jobs import Worker
from fedreid.limits import DENIALS_S, OBJECTS_BEFORE_COLLECTING, THREAD_SWITCH_S
from fedreid.names import FederationName
from fedreid.notify import Supervisor
from fedreid.pki.signing import public_bytes
from fedreid.v1 import admin_pb2_grpc, enrolment_pb2_grpc, federation_pb2_grpc
from fedreid.work import off_loop

_WORKER = "coordinator.learning.worker"
_STOP_GRACE_S = 2.0


class Coordinator:
    """One coordinator on one data folder."""

    def __init__(self, folders: Folders, config: Config) -> None:
        clock = SystemClock()
        federation = FederationName(config.federation)
        self._journal = Journal(folders.journal)
        check_not_set_back(self._journal, commits_seen(folders))
        self._audit = audit_of(folders, self._journal, clock)
        authorities = Authorities(folders.authority)
        self._keeper = Keeper(folders, config, authorities, self._audit, clock)
        self._worker = Worker(_WORKER)
        self.registry = Registry(
            self._journal,
            federation,
            clock,
            issued_here=authorities.issued,
            external=config.pki.outside,
        )
        presence = Presence(clock)
        key = load_model_key(folders)
        models = Models(folders, self._journal, federation, key, kept=config.models_kept)
        self._denials = Denials()
        self._access = Access(self.registry, self._denials)
        self._current = Current(self._journal, self._audit, clock)
        recover(self._current, self.registry, folders, models)
        phases = Phases(
            federation=federation,
            folders=folders,
            journal=self._journal,
            models=models,
            worker=self._worker,
            tell=self._current.tell,
        )
        departures = Departures(
            current=self._current,
            registry=self.registry,
            presence=presence,
            end_calls=self._shut_out,
        )
        self._conductor = Conductor(
            current=self._current,
            folders=folders,
            models=models,
            registry=self.registry,
            presence=presence,
            departures=departures,
            phases=phases,
            clock=clock,
        )
        self._enrolment = Enrolment(
            journal=self._journal,
            registry=self.registry,
            authorities=authorities,
            audit=self._audit,
            clock=clock,
            leaf_life_s=config.leaf_life_s,
            approval=config.approval,
            external=config.pki.outside,
        )
        rollover = RollOver(
            authorities=authorities,
            registry=self.registry,
            keeper=self._keeper,
            audit=self._audit,
            clock=clock,
            external=config.pki.outside,
        )
        self._enrolments = EnrolmentServicer(self._enrolment, public_bytes(key))
        downloads = Turns(lambda: self._current.transfers)
        self._federation = FederationServicer(
            federation=federation,
            current=self._current,
            attending=Attending(
                current=self._current,
                models=models,
                registry=self.registry,
                presence=presence,
                downloads=downloads,
                clock=clock,
            ),
            departures=departures,
            intake=Intake(folders=folders, models=models, current=self._current),
            models=models,
            presence=presence,
            rollover=rollover,
            downloads=downloads,
            clock=clock,
        )
        self.readings = Readings(
            folders=folders,
            current=self._current,
            presence=presence,
            authorities=authorities,
            rollover=rollover,
            registry=self.registry,
            clock=clock,
        )
        show_past(self._journal)
        self._folders = folders
        self._admin = AdminServicer(
            current=self._current,
            commands=Commands(current=self._current, models=models, phases=phases, clock=clock),
            departures=departures,
            journal=self._journal,
            models=models,
            presence=presence,
            registry=self.registry,
            enrolment=self._enrolment,
            authorities=authorities,
            rollover=rollover,
            audit=self._audit,
        )

    async def serve(
        self,
        config: Config,
        *,
        stop: asyncio.Event,
        say: Callable[[str], None],
        supervisor: Supervisor,
    ) -> None:
        """Serve until ``stop`` is set; then end every call and the worker.

        Raises:
            ConfigRefused: a port can't be bound.
        """
        sys.setswitchinterval(THREAD_SWITCH_S)
        connections = room_for_connections()
        options = port_options(connections)
        server = server_of_known_calls((Calls(), self._access), options)
        enrolment_pb2_grpc.add_EnrolmentServicer_to_server(self._enrolments, server)
        federation_pb2_grpc.add_FederationServicer_to_server(self._federation, server)
        admin_pb2_grpc.add_AdminServicer_to_server(self._admin, server)
        grpc_health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(grpc_health, server)
        credentials = server_credentials(self._keeper.identity, self._keeper.changed)
        port = _bind(server, config.listen, credentials)
        serving = asyncio.Event()
        figures = Exposition(REGISTRY, self.readings.take)
        health = Health(config.metrics, ready=serving.is_set, figures=figures)
        health.start()
        self._audit.append("coordinator.started", version=fedreid.__version__)
        try:
            await server.start()
            serving.set()
            await grpc_health.set("", health_pb2.HealthCheckResponse.SERVING)
            host, _ = _host_port(config.listen)
            write_bytes(self._folders.endpoint, f"{_reachable(host)}:{port}\n".encode())
            say(f"serving the federation {config.federation} on {host}:{port}")
            say(f"health and metrics on port {health.port}")
            if few := connections_told(connections):
                say(few)
            async with supervisor.watching():
                await self._run(stop, server, health, supervisor.heard(say))
        finally:
            serving.clear()
            await server.stop(_STOP_GRACE_S)
            await self._worker.close()
            health.close()
            self._journal.close()
            self._denials.write(self._audit)
            self._audit.append("coordinator.stopped")

    async def _shut_out(self, silo: str) -> None:
        """End what a silo has under way, and every TLS session that could be resumed."""
        await self._access.end_calls(silo)
        self._keeper.forget_sessions()

    async def _run(
        self,
        stop: asyncio.Event,
        server: grpc.aio.Server,
        health: Health,
        say: Callable[[str], None],
    ) -> None:
        """Move rounds on until told to stop; an unforeseen error ends the service."""
        rounds = asyncio.create_task(self._conductor.serve())
        denials = asyncio.create_task(self._write_denials())
        keeping = asyncio.create_task(self._keeper.serve(say))
        disk = asyncio.create_task(
            watch_disk(self._folders.root, say=say, tell=health.tell_problem)
        )
        looking = asyncio.create_task(look_back(self._folders.audit, say=say))
        stopped = asyncio.create_task(stop.wait())
        # Shielded, because gRPC's own stop waits for what this waits for.
        port = asyncio.shield(asyncio.create_task(server.wait_for_termination()))
        tasks: tuple[asyncio.Future[Any], ...] = (rounds, denials, keeping, disk, stopped, port)
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, looking):
            task.cancel()
        await asyncio.gather(*tasks, looking, return_exceptions=True)
        for task in done:
            task.result()

    async def _write_denials(self) -> None:
        while True:
            await asyncio.sleep(DENIALS_S)
            with contextlib.suppress(StorageError):  # they are kept; the rounds tell of the disk
                await off_loop(self._denials.write, self._audit)


def serve(
    data: Path, *, listen: str | None, metrics: str | None, say: Callable[[str], None]
) -> None:
    """Serve the data folder until SIGTERM or SIGINT.

    Raises:
        ConfigRefused: no coordinator there, a second one on the folder, or a port is taken.
        IdentityBroken, StorageError: the folder is damaged.
    """
    folders = Folders(data)
    config = load_config(folders)
    config = replace(config, listen=listen or config.listen, metrics=metrics or config.metrics)
    gc.freeze()  # what is imported stays
    gc.set_threshold(OBJECTS_BEFORE_COLLECTING)
    with held_alone(folders.root, by="coordinator"):
        asyncio.run(_serve_until_signal(folders, config, say))


async def _serve_until_signal(folders: Folders, config: Config, say: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    supervisor = Supervisor()
    await Coordinator(folders, config).serve(config, stop=stop, say=say, supervisor=supervisor)
    say("stopped")


def _bind(server: grpc.aio.Server, listen: str, credentials: grpc.ServerCredentials) -> int:
    try:
        return server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise ConfigRefused(
            f"Can't listen on {listen}",
            why="the address is taken, or not this machine's, or the port needs privileges",
            next_step="Choose another one with --listen HOST:PORT.",
        ) from error


def _host_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _reachable(host: str) -> str:
    """Where somebody on this machine dials to reach a socket bound to ``host``."""
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
