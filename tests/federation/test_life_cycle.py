"""Does a federation live on while keys, certificates and authorities are replaced under it?

Real processes over real mTLS; the agents train nothing, so that rounds follow each other quickly.
"""

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from benchmark.federation import LocalFederation, Program
from coordinator.config import load_authority
from coordinator.folders import Folders as CoordinatorFolders
from fedreid.audit import read_audit, verify
from fedreid.errors import ExitCode, RunError
from fedreid.names import Principal, Role
from fedreid.pki.certificates import key_from_pem, to_pem
from fedreid.pki.identity import Identity, IdentityStore
from fedreid.v1 import admin_pb2
from silo_agent.config import Folders
from tests.federation.conftest import Founding, write_plan
from tests.parties import Federation

pytestmark = pytest.mark.timeout(300)
_WAIT_S = 120.0
_LEAF_S = 15.0
"""Short, but an agent on a busy machine has five seconds left when renewal is due."""


def running(local: LocalFederation, tmp_path: Path, *, min_silos: int = 1) -> None:
    """Null agents, and a run that does not end by itself."""
    for silo in local.silos:
        local.join_without_training(silo)
    start_endless_run(local, tmp_path, min_silos=min_silos)


def start_endless_run(local: LocalFederation, tmp_path: Path, *, min_silos: int = 1) -> None:
    quorum = {"min_silos": min_silos, "deadline_s": 60.0}
    local.start_run(write_plan(tmp_path / "plan.toml", rounds=10_000, quorum=quorum))


def until(local: LocalFederation, reached: Callable[[], bool]) -> None:
    local.wait_until(lambda run: reached(), timeout_s=_WAIT_S)


def further(local: LocalFederation, rounds: int = 2) -> None:
    """Wait for some more rounds."""
    with local.admin() as admin:
        before = admin.GetRun(admin_pb2.GetRunRequest()).rounds_published
    local.wait_until(lambda run: run.rounds_published >= before + rounds, timeout_s=_WAIT_S)


def events(folder: Path) -> list[str]:
    return [line.event for line in read_audit(folder)]


def identity_of(local: LocalFederation, silo: str) -> Identity:
    return IdentityStore(Folders(local.agent_data(silo)).identity).load()


def admin_says(local: LocalFederation, *arguments: str) -> str:
    return local.command("coordinator", *arguments, "--data", str(local.data))


def states(local: LocalFederation) -> dict[str, tuple[str, str]]:
    with local.admin() as admin:
        silos = admin.ListSilos(admin_pb2.ListSilosRequest()).silos
    return {silo.name: (silo.state, silo.reason) for silo in silos}


def finished_rounds(local: LocalFederation) -> list[admin_pb2.RoundSummary]:
    admin_says(local, "run", "stop")
    with local.admin() as admin:
        rounds = admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds
    return [state for state in rounds if state.reason != "stopped by admin"]


def test_renewals_in_the_middle_of_rounds_lose_no_update(found: Founding, tmp_path: Path) -> None:
    local = found(leaf_life_s=_LEAF_S)
    running(local, tmp_path, min_silos=2)
    audit = CoordinatorFolders(local.data).audit

    def renewals() -> Counter[str]:
        """Of each silo since the first round began."""
        lines = list(read_audit(audit))
        begun = next((line.number for line in lines if line.event == "round.opened"), len(lines))
        return Counter(
            str(line.fields["silo"]) for line in lines[begun:] if line.event == "silo.renewed"
        )

    until(local, lambda: min(renewals()[silo] for silo in local.silos) >= 3)
    for agent in local.agents.values():
        assert "too late" not in agent.log
    rounds = finished_rounds(local)
    print(f"{len(rounds)} rounds, renewals: {dict(renewals())}")
    assert {state.phase for state in rounds} == {"published"}
    assert {tuple(p.silo for p in state.participants) for state in rounds} == {tuple(local.silos)}
    assert "update.refused" not in events(audit)
    for silo, agent in local.agents.items():
        assert agent.running()
        assert "Trying again" not in agent.log
        folders = Folders(local.agent_data(silo))
        assert len(list(folders.identity.glob("v*"))) == 3  # the older ones are gone
        assert events(folders.audit).count("identity.renewed") >= 3
        assert verify(folders.audit).cut_off_bytes == 0
    assert verify(audit).cut_off_bytes == 0


def test_an_agent_that_is_killed_at_any_time_goes_on_renewing(
    found: Founding, tmp_path: Path
) -> None:
    local = found(leaf_life_s=_LEAF_S)
    running(local, tmp_path)
    (killed, agent), *_ = local.agents.items()
    keys = {identity_of(local, killed).key_pem}
    while len(keys) < 4:  # each time just after the link was flipped, or a little later
        agent.kill()
        agent.start()
        until(local, lambda: identity_of(local, killed).key_pem not in keys)
        keys.add(identity_of(local, killed).key_pem)
    further(local)
    assert agent.running()


def test_a_roll_over_of_the_authority_locks_nobody_out(found: Founding, tmp_path: Path) -> None:
    local = found()
    running(local, tmp_path)
    away, _ = local.silos
    old = load_authority(CoordinatorFolders(local.data)).certificate_pem
    further(local, 1)

    def awaited() -> list[str]:
        with local.admin() as admin:
            return list(admin.GetAuthorities(admin_pb2.GetAuthoritiesRequest()).awaited)

    def trusted(silo: str) -> int:
        return len(x509.load_pem_x509_certificates(identity_of(local, silo).authorities_pem))

    local.agents[away].stop()
    with pytest.raises(RunError, match="no prepared authority"):
        admin_says(local, "ca", "activate")
    admin_says(local, "ca", "prepare")
    until(local, lambda: awaited() == [away])
    with pytest.raises(RunError, match=f"{away} would be locked out"):
        admin_says(local, "ca", "activate")

    local.agents[away].start()
    until(local, lambda: awaited() == [])
    assert {trusted(silo) for silo in local.silos} == {2}
    admin_says(local, "ca", "activate")
    issuing = load_authority(CoordinatorFolders(local.data))
    assert issuing.certificate_pem != old
    until(local, lambda: awaited() == [])
    for silo in local.silos:
        assert identity_of(local, silo).holder().issuer_key_id == issuing.key_id

    admin_says(local, "ca", "drop")
    until(local, lambda: {trusted(silo) for silo in local.silos} == {1})
    assert "settled" in admin_says(local, "ca", "status")
    further(local)
    local.agents[away].stop()  # what everybody holds now is enough to connect anew
    local.agents[away].start()
    local.coordinator.stop()
    local.restart_coordinator()
    further(local)
    steps = [name for name in events(CoordinatorFolders(local.data).audit) if name[:3] == "ca."]
    assert steps == ["ca.prepared", "ca.activated", "ca.dropped"]
    assert old not in b"".join(p.read_bytes() for p in local.data.glob("authority/*/*.pem"))


def test_a_suspended_silo_waits_and_comes_back(found: Founding, tmp_path: Path) -> None:
    local = found()
    running(local, tmp_path)
    suspended, _ = local.silos
    agent = local.agents[suspended]
    further(local, 1)
    admin_says(local, "silo", "suspend", suspended, "--reason", "the site is being moved")
    assert states(local)[suspended] == ("suspended", "the site is being moved")
    until(local, lambda: "is suspended: the site is being moved" in agent.log)
    further(local)
    assert agent.running()
    with pytest.raises(RunError, match="is suspended"):
        local.token(suspended)
    admin_says(local, "silo", "resume", suspended)
    assert states(local)[suspended] == ("active", "")

    def back() -> bool:
        with local.admin() as admin:
            newest = admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds[-1]
        return suspended in {part.silo for part in newest.participants}

    until(local, back)
    assert any(suspended not in state.invited for state in finished_rounds(local))
    assert "silo.resumed" in events(CoordinatorFolders(local.data).audit)


FINGERPRINT = re.compile(r"(?:[A-Z2-7]{4}-){3}[A-Z2-7]{4}")


def shown(program: Program) -> str:
    """The fingerprint that a joining agent shows, as soon as it does."""
    until_s = time.monotonic() + _WAIT_S
    while not (found := FINGERPRINT.findall(program.log_of_this_start)):
        assert program.running() and time.monotonic() < until_s, program.log
    return str(found[-1])


def test_a_new_silo_waits_for_its_approval_whoever_is_restarted(found: Founding) -> None:
    local = found(approval=True)
    silo, _ = local.silos
    joining = Program((*local.join_arguments(silo), "--enrol-only"), local.root / "join.log")
    local.agents[silo] = joining  # it is stopped with the others
    joining.start()
    fingerprint = shown(joining)
    assert states(local)[silo][0] == "pending"
    assert fingerprint in admin_says(local, "silo", "list")

    joining.kill()
    joining.start()
    assert shown(joining) == fingerprint
    local.coordinator.kill()
    local.restart_coordinator()
    with pytest.raises(RunError, match="another fingerprint"):
        admin_says(local, "silo", "approve", silo, "--fingerprint", "AAAA-BBBB-CCCC-DDDD")
    assert joining.running()
    assert not IdentityStore(Folders(local.agent_data(silo)).identity).exists()

    admin_says(local, "silo", "approve", silo, "--fingerprint", fingerprint)
    assert joining.wait(_WAIT_S) == ExitCode.OK
    assert set(FINGERPRINT.findall(joining.log)) == {fingerprint}
    assert states(local)[silo] == ("active", "")
    assert identity_of(local, silo).holder().principal.name == silo
    order = [name for name in events(CoordinatorFolders(local.data).audit) if "silo." in name]
    assert order == [
        "silo.awaits_approval", "silo.approval_refused", "silo.approved", "silo.enrolled",
    ]  # fmt: skip


def let_expire(local: LocalFederation, silo: str) -> None:
    """Give the silo's key a certificate that has ended."""
    identity = identity_of(local, silo)
    holder = identity.holder()
    authority = load_authority(CoordinatorFolders(local.data))
    ended = authority.issue(
        Principal(federation=holder.principal.federation, role=Role.SILO, name=silo),
        key_from_pem(identity.key_pem).public_key(),
        now_s=time.time() - 1000,
        life_s=500,
    )
    IdentityStore(Folders(local.agent_data(silo)).identity).save(
        Identity(
            key_pem=identity.key_pem,
            certificate_pem=to_pem(ended),
            authorities_pem=identity.authorities_pem,
        )
    )


def test_an_expired_identity_is_replaced_by_rejoining_and_local_state_stays(
    found: Founding, tmp_path: Path
) -> None:
    local = found(silos=1)
    (silo,) = local.silos
    running(local, tmp_path)
    further(local, 1)
    local.agents[silo].stop()
    folders = Folders(local.agent_data(silo))
    kept = sorted(path.relative_to(folders.root) for path in folders.models.rglob("*"))
    assert kept
    let_expire(local, silo)
    with pytest.raises(RunError, match=r"has expired[\s\S]*silo-agent join --rejoin"):
        local.command("silo_agent", "run", "--data", str(folders.root))
    joining = (*local.join_arguments(silo), "--enrol-only")
    local.command(*joining)  # an identity that there is is not replaced unasked
    with pytest.raises(RunError, match="has expired"):
        local.command("silo_agent", "run", "--data", str(folders.root))
    local.command(*joining, "--rejoin")
    assert kept == sorted(path.relative_to(folders.root) for path in folders.models.rglob("*"))
    local.start_null_agent(silo)
    further(local)
    joined = [line for line in read_audit(folders.audit) if line.event == "joined"]
    assert [line.fields["silo"] for line in joined] == [silo, silo]


def write_secret(folder: Path, identity: Identity) -> None:
    """The files of a TLS secret, replaced one by one as a person would."""
    folder.mkdir(exist_ok=True)
    for name, data in (
        ("ca.crt", identity.authorities_pem),
        ("tls.key", identity.key_pem),
        ("tls.crt", identity.certificate_pem),
    ):
        fresh = folder / f".{name}"
        fresh.write_bytes(data)
        fresh.rename(folder / name)


def test_certificates_of_an_outside_pki_are_taken_up_when_their_files_change(
    found: Founding, tmp_path: Path
) -> None:
    pki = Federation.founded(now_s=time.time())
    server, secret = tmp_path / "server", tmp_path / "silo"
    write_secret(server, pki.server())
    local = found(
        pki={
            "server_certificate": str(server / "tls.crt"),
            "server_key": str(server / "tls.key"),
            "client_authorities": str(server / "ca.crt"),
        }
    )
    silo, other = local.silos
    write_secret(secret, pki.leaf(Role.SILO, silo))
    local.command(
        "silo_agent", "join", "--coordinator", local.endpoint, "--enrol-only",
        "--identity", str(secret), "--model-key", str(local.data / "model-key.pub"),
        "--dataset", str(local.silos[silo]), "--data", str(local.agent_data(silo)),
    )  # fmt: skip
    with pytest.raises(RunError, match="not registered"):
        local.command("benchmark.null_agent", str(local.agent_data(silo)))
    with pytest.raises(RunError, match="own PKI"):
        local.token(other)
    with pytest.raises(RunError, match="own PKI"):
        admin_says(local, "ca", "prepare")
    admin_says(local, "silo", "register", silo)
    agent = local.start_null_agent(silo)
    start_endless_run(local, tmp_path)
    further(local)

    newer = Federation.founded(now_s=time.time())
    both = pki.authority.certificate_pem + newer.authority.certificate_pem
    audit = CoordinatorFolders(local.data).audit
    taken_up = events(audit).count("identity.replaced")
    write_secret(server, trusting(pki.server(), both))
    until(local, lambda: events(audit).count("identity.replaced") > taken_up)
    write_secret(secret, trusting(newer.leaf(Role.SILO, silo), both))
    until(local, lambda: "the identity is renewed" in agent.log)
    write_secret(server, newer.server())
    until(local, lambda: events(audit).count("identity.replaced") > taken_up + 1)
    agent.stop()
    agent.start()
    further(local)
    assert agent.running()


def trusting(identity: Identity, authorities_pem: bytes) -> Identity:
    return Identity(
        key_pem=identity.key_pem,
        certificate_pem=identity.certificate_pem,
        authorities_pem=authorities_pem,
    )
