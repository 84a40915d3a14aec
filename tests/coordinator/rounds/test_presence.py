"""Who is there? Exactly the silos that gave a sign of life within the limit."""

from coordinator.rounds.presence import Presence, Sighting
from fedreid.limits import PRESENCE_S
from fedreid.names import SiloName
from tests.parties import FakeClock

NORTH, SOUTH = SiloName("north"), SiloName("south")


def test_a_silo_is_there_until_it_was_silent_for_too_long(clock: FakeClock) -> None:
    presence = Presence(clock)
    presence.seen(NORTH)
    clock.move(PRESENCE_S)
    assert presence.present() == [NORTH]
    clock.move(0.001)
    assert presence.present() == []


def test_every_sign_of_life_counts(clock: FakeClock) -> None:
    presence = Presence(clock)
    presence.seen(NORTH)
    presence.seen(SOUTH)
    clock.move(PRESENCE_S - 1)
    presence.working(SOUTH, "training", 0.25)
    clock.move(2)
    assert presence.present() == [SOUTH]


def test_those_who_are_there_are_sorted(clock: FakeClock) -> None:
    presence = Presence(clock)
    for name in "cab":
        presence.seen(SiloName(name))
    assert presence.present() == ["a", "b", "c"]


def test_what_a_silo_does_and_its_version_are_kept_beside_each_other(clock: FakeClock) -> None:
    presence = Presence(clock)
    presence.seen(NORTH, agent_version="1.2")
    presence.working(NORTH, "training", 0.5)
    clock.move(1)
    presence.seen(NORTH)
    assert presence.of(NORTH) == Sighting(
        seen_s=clock.now_s(), phase="training", progress=0.5, agent_version="1.2"
    )


def test_nothing_is_known_of_a_silo_that_never_called(clock: FakeClock) -> None:
    assert Presence(clock).of(NORTH) == Sighting()


def test_a_silo_that_is_gone_is_not_there_and_going_twice_is_harmless(clock: FakeClock) -> None:
    presence = Presence(clock)
    presence.seen(NORTH, agent_version="1.2")
    presence.gone(NORTH)
    presence.gone(NORTH)
    assert presence.present() == []
    assert presence.of(NORTH) == Sighting()


def test_a_clock_that_is_set_makes_nobody_vanish_and_brings_nobody_back(clock: FakeClock) -> None:
    presence = Presence(clock)
    presence.seen(NORTH)
    for shift_s in (-3600, 1e7):
        clock.now += shift_s
        assert presence.present() == [NORTH]
    clock.move(PRESENCE_S + 1)
    clock.now -= 3600
    assert presence.present() == []


def test_who_said_that_it_goes_silent_is_not_there_until_it_calls_again(clock: FakeClock) -> None:
    presence = Presence(clock)
    presence.seen(NORTH, agent_version="1.2")
    presence.away(NORTH)
    assert presence.present() == []
    assert presence.of(NORTH).agent_version == "1.2"
    presence.seen(NORTH)
    assert presence.present() == [NORTH]
