"""What do rounds look like in tests? Short ways to make their states and updates."""

from coordinator.rounds.machine import Accepted, RoundState, Rules, UpdateAccepted, open_round
from fedreid.contract import PrivacyReport, UpdateReport

BEGAN_S = 1000.0
DEADLINE_S = 600.0
PHASE_S = 60.0
BASE = "b" * 64


def rules(
    *,
    min_silos: int = 2,
    min_fraction: float = 0.5,
    distils: bool = False,
    evaluates: bool = False,
    gate_drop: float = 0.0,
    quarantine_rounds: int = 0,
) -> Rules:
    """Rules with short deadlines."""
    return Rules(
        min_silos=min_silos,
        min_fraction=min_fraction,
        deadline_s=DEADLINE_S,
        phase_deadline_s=PHASE_S,
        distils=distils,
        evaluates=evaluates,
        gate_drop=gate_drop,
        quarantine_rounds=quarantine_rounds,
    )


def opened(*invited: str, by: Rules | None = None) -> RoundState:
    """A round that has just begun."""
    return open_round(
        run="spring",
        number=7,
        base_digest=BASE,
        before=None,
        published_before=6,
        invited=invited or ("a", "b", "c", "d"),
        rules=by or rules(),
        now_s=BEGAN_S,
    )


PRIVACY = PrivacyReport(clip_norm=0.5, noise_multiplier=2.0, epsilon=3.25, delta=1e-5)


def update(
    silo: str, *, digest: str = "d" * 64, distance: float = 0.5, private: bool = False
) -> UpdateAccepted:
    """A silo's update has been accepted; a private one left with noise."""
    report = UpdateReport(num_images=10, cosine_distance=distance, train_loss=1.0, num_steps=4)
    report = report.withheld(PRIVACY) if private else report
    return UpdateAccepted(
        update=Accepted(silo=silo, payload_digest=digest, size_bytes=4, report=report)
    )
