"""Do an agent's figures say what it does, and how fast it trains?"""

from prometheus_client import generate_latest

from fedreid.jobs import Progress
from silo_agent import metrics
from tests.parties import FakeClock


def value(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(name, labels)


def told(phase: str, done: int, loss: float | None = None) -> Progress:
    return Progress(phase=phase, done=done, total=100, loss=loss)


def test_an_agent_does_one_thing_at_a_time() -> None:
    metrics.note_phase("training")
    assert value("fedreid_agent_phase", phase="training") == 1
    metrics.note_waiting("disk")
    assert value("fedreid_agent_phase", phase="training") == 0
    assert value("fedreid_agent_phase", phase="waiting") == 1
    assert value("fedreid_agent_awaited", reason="disk") == 1
    metrics.note_phase("uploading")
    assert value("fedreid_agent_awaited", reason="disk") == 0


def test_the_pace_is_that_of_the_training_under_way() -> None:
    clock = FakeClock()
    pace = metrics.TrainingPace(32, clock)
    pace.note(told("training", 10, loss=3.0))  # from a checkpoint: not done now
    clock.move(2.0)
    pace.note(told("training", 20, loss=2.5))
    assert value("fedreid_agent_images_per_second") == 160.0
    assert value("fedreid_agent_epoch_loss") == 2.5
    pace.note(told("standalone", 0, loss=2.0))
    clock.move(1.0)
    pace.note(told("standalone", 10, loss=2.0))
    assert value("fedreid_agent_images_per_second") == 320.0
    clock.move(100.0)
    pace.note(told("evaluating", 50))
    assert value("fedreid_agent_images_per_second") == 320.0


def test_a_build_and_a_process_are_told_and_nothing_of_images() -> None:
    text = generate_latest(metrics.REGISTRY).decode()
    assert "fedreid_build_info{" in text and "process_resident_memory_bytes" in text
    assert "python_info" not in text
