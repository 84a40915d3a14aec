"""Which fixtures do the tests of trust share? A journal, a registry on it, and enrolment."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.rounds.journal import Journal
from coordinator.trust.authorities import Authorities
from coordinator.trust.enrolment import Enrolment
from coordinator.trust.registry import Registry
from fedreid.audit import AuditLog
from tests.parties import FakeClock, Federation


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An empty journal."""
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def clock(federation: Federation) -> FakeClock:
    """A clock that starts when the federation was founded."""
    return FakeClock(now=federation.now_s)


@pytest.fixture
def registry(journal: Journal, federation: Federation, clock: FakeClock) -> Registry:
    """The registry of an empty journal."""
    return Registry(journal, federation.name, clock)


@pytest.fixture
def audit(tmp_path: Path, clock: FakeClock) -> AuditLog:
    """An empty audit log."""
    return AuditLog(tmp_path / "audit", clock)


@pytest.fixture
def authorities(tmp_path: Path, federation: Federation) -> Authorities:
    """The federation's authority, alone as yet."""
    return Authorities.create(tmp_path / "authority", federation.authority)


@pytest.fixture
def enrolment(
    journal: Journal,
    registry: Registry,
    authorities: Authorities,
    audit: AuditLog,
    clock: FakeClock,
) -> Enrolment:
    """Mints and redeems the federation's tokens."""
    return Enrolment(
        journal=journal,
        registry=registry,
        authorities=authorities,
        audit=audit,
        clock=clock,
    )
