"""What do rounds spend their time on, and what is turned away?"""

from deploy.grafana.boards.common import JOB, OF, OF_S, SILOS, number
from deploy.grafana.parts import Board, Panel, Row, one

ROUNDS = Board(
    uid="fedreid-rounds",
    title="fedreid / Rounds",
    description="What do rounds spend their time on, how do they end, and what is turned away?",
    variables=(JOB, SILOS),
    rows=(
        Row(
            title="Now",
            panels=(
                number(
                    "Round",
                    "Number of the newest round.",
                    "none",
                    f"fedreid_round_current{{{OF}}}",
                ),
                number(
                    "Since it began",
                    "Time since the newest round began.",
                    "s",
                    f"time() - (fedreid_round_started_timestamp_seconds{{{OF}}} > 0)",
                    empty="No round has begun yet.",
                ),
                number(
                    "Accepted",
                    "Updates of the newest round that count.",
                    "none",
                    f'fedreid_round_participants{{{OF}, state="accepted"}}',
                ),
                number(
                    "Needed",
                    "Updates that it needs at least.",
                    "none",
                    f"fedreid_round_quorum_silos{{{OF}}}",
                ),
                number(
                    "Awaited",
                    "Silos whose update is still waited for.",
                    "none",
                    f'fedreid_round_participants{{{OF}, state="awaited"}}',
                ),
                number(
                    "Spool",
                    "Bytes of the newest round's updates on the disk.",
                    "bytes",
                    f"fedreid_spool_bytes{{{OF}}}",
                ),
            ),
        ),
        Row(
            title="Time",
            panels=(
                Panel(
                    title="Phases of the newest round",
                    description="Time that the newest round that ended spent in each phase, one on "
                    "top of the other: together, the whole round.",
                    unit="s",
                    queries=one(f"fedreid_round_last_phase_seconds{{{OF}}}", "{{phase}}"),
                    kind="stacked",
                ),
                Panel(
                    title="Duration of phases, 95 of 100",
                    description="95 % of the rounds spent at most so long in the phase.",
                    unit="s",
                    queries=one(
                        "histogram_quantile(0.95, sum by (phase, le) (rate("
                        f"fedreid_round_phase_duration_seconds_bucket{{{OF}}}[$__rate_interval])))",
                        "{{phase}}",
                    ),
                    empty="No round has ended lately.",
                ),
                Panel(
                    title="Rounds by their end",
                    description="published: a model came of it; skipped: no quorum; failed: a "
                    "phase could not be done.",
                    unit="none",
                    queries=one(
                        f"sum by (outcome) (increase(fedreid_rounds_total{{{OF}}}"
                        "[$__rate_interval]))",
                        "{{outcome}}",
                    ),
                    kind="stacked",
                ),
                Panel(
                    title="Updates by silo",
                    description="Accepted and rejected updates of each silo.",
                    unit="none",
                    queries=one(
                        "sum by (silo, outcome) (increase("
                        f"fedreid_silo_updates_total{{{OF_S}}}[$__rate_interval]))",
                        "{{silo}} {{outcome}}",
                    ),
                ),
            ),
        ),
        Row(
            title="What comes in, and what is turned away",
            panels=(
                Panel(
                    title="Received",
                    description="Payload of updates, a second.",
                    unit="Bps",
                    queries=one(
                        f"rate(fedreid_intake_bytes_total{{{OF}}}[$__rate_interval])", "received"
                    ),
                ),
                Panel(
                    title="Received, by silo",
                    description="Payload of updates, a second.",
                    unit="Bps",
                    queries=one(
                        f"rate(fedreid_silo_upload_bytes_total{{{OF_S}}}[$__rate_interval])",
                        "{{silo}}",
                    ),
                ),
                Panel(
                    title="Rejected updates",
                    description="By reason. stale: it came after its round; chunk, byte_count and "
                    "digest: a broken line; the others: its content.",
                    unit="none",
                    queries=one(
                        f"sum by (reason) (increase(fedreid_updates_rejected_total{{{OF}}}"
                        "[$__rate_interval])) > 0",
                        "{{reason}}",
                    ),
                    kind="stacked",
                    empty="None was rejected.",
                ),
                Panel(
                    title="Flagged updates",
                    description="Updates that count, and look wrong.",
                    unit="none",
                    queries=one(
                        f"sum by (flag) (increase(fedreid_updates_flagged_total{{{OF}}}"
                        "[$__rate_interval]))",
                        "{{flag}}",
                    ),
                    kind="stacked",
                ),
            ),
        ),
    ),
)
