"""Does an operator read once what the agent waits for, and a scraper all the time?"""

import re
from typing import get_args

import pytest
from prometheus_client import generate_latest

from fedreid.errors import ConnectionFailed, SiloSuspended
from silo_agent import metrics
from silo_agent.contact import Contact
from tests.parties import FakeClock

AWAY = ConnectionFailed("The coordinator at reid:443 can't be reached", why="refused")
SUSPENDED = SiloSuspended("The silo north is suspended")


class Listener:
    """A contact with what it has told."""

    def __init__(self, clock: FakeClock) -> None:
        self.said: list[str] = []
        self.shown: list[str] = []
        self.contact = Contact(
            clock, self.said.append, lambda doing, share: self.shown.append(doing)
        )


@pytest.fixture
def listener(clock: FakeClock) -> Listener:
    """Nothing has happened yet."""
    return Listener(clock)


def value(name: str, **labels: str) -> float:
    found = metrics.REGISTRY.get_sample_value(name, labels)
    assert found is not None
    return found


def awaited() -> set[str]:
    reasons = get_args(metrics.Awaited)
    return {reason for reason in reasons if value("fedreid_agent_awaited", reason=reason)}


def test_a_long_outage_is_one_line_and_its_end_another(
    listener: Listener, clock: FakeClock
) -> None:
    contact = listener.contact
    contact.made()
    for pause_s in (0.5, 1.0, 30.0):
        contact.lost(AWAY, pause_s=pause_s)
        clock.move(100)
    (line,) = listener.said
    assert "can't be reached: refused" in line and "for as long as it takes" in line
    assert "in 0.5 s" in line
    contact.made()
    assert listener.said[1].startswith("in touch again after 300 s, since 20")
    assert len(listener.said) == 2


def test_the_bar_says_since_when_it_waits_and_when_it_tries_again(
    listener: Listener, clock: FakeClock
) -> None:
    for _ in range(2):
        listener.contact.lost(AWAY, pause_s=30.0)
        clock.move(30)
    instants = [re.findall(r"\d\d:\d\d:\d\dZ", shown) for shown in listener.shown]
    (since, first), (same, second) = instants
    assert since == same and first < second


def test_another_cause_is_told_again(listener: Listener) -> None:
    for error in (AWAY, SUSPENDED, SUSPENDED, AWAY):
        listener.contact.lost(error, pause_s=1.0)
    assert len(listener.said) == 3
    assert "to be let in again" in listener.said[1]


def test_the_figures_follow_every_turn(listener: Listener, clock: FakeClock) -> None:
    contact = listener.contact
    before = value("fedreid_agent_reconnects_total")
    contact.made()
    assert value("fedreid_agent_reconnects_total") == before  # the first is no reconnect
    assert value("fedreid_agent_connected") == 1 and contact.connected
    assert value("fedreid_agent_last_contact_timestamp_seconds") == clock.now_s()
    metrics.note_phase("training")
    assert awaited() == set() and value("fedreid_agent_phase", phase="training") == 1
    contact.missed()
    assert value("fedreid_agent_connected") == 0 and not contact.connected
    contact.lost(AWAY, pause_s=1.0)
    assert awaited() == {"coordinator"} and value("fedreid_agent_phase", phase="waiting") == 1
    contact.lost(SUSPENDED, pause_s=1.0)
    assert awaited() == {"approval"}
    contact.made()
    metrics.note_phase("waiting")
    assert awaited() == {"task"}
    assert value("fedreid_agent_reconnects_total") == before + 1


def test_figures_are_the_agents_own_and_their_labels_are_closed() -> None:
    text = generate_latest(metrics.REGISTRY).decode()
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
    allowed_names = ("fedreid_agent_", "process_", "fedreid_build_info")
    assert {name.startswith(allowed_names) for name in names} == {True}
    allowed = {*get_args(metrics.Phase), *get_args(metrics.Awaited)}
    text = "\n".join(line for line in text.splitlines() if "build_info" not in line)
    labels = re.findall(r'(\w+)="([^"]*)"', text)
    assert {name for name, _ in labels} == {"phase", "reason"}
    assert {text for _, text in labels} <= allowed
