"""How does one silo do?"""

from deploy.grafana.boards.common import (
    AGENT,
    JOB,
    NO_FIGURES,
    NO_UPDATE,
    NOT_SCRAPED,
    OF_S,
    SILOS,
    WITHHELD,
)
from deploy.grafana.parts import Board, Panel, Row, one

SILO = Board(
    uid="fedreid-silo",
    title="fedreid / Silo",
    description="How does one silo do? What the coordinator sees of it, and its agent where it is "
    "scraped.",
    variables=(JOB, SILOS, AGENT),
    rows=(
        Row(
            title="As the coordinator sees it",
            panels=(
                Panel(
                    title="Since it was last heard of",
                    description="An agent calls every few seconds; after a minute it is not "
                    "invited.",
                    unit="s",
                    queries=one(
                        f"time() - fedreid_silo_last_seen_timestamp_seconds{{{OF_S}}}",
                        "{{silo}}",
                    ),
                ),
                Panel(
                    title="Until its certificate ends",
                    description="Renewed at two thirds of its life, by itself.",
                    unit="s",
                    queries=one(
                        f"fedreid_silo_certificate_not_after_timestamp_seconds{{{OF_S}}} - time()",
                        "{{silo}}",
                    ),
                    empty="A PKI of the operators' own issues the certificates.",
                ),
                Panel(
                    title="What the models score",
                    description="mAP on its own test set: global, local and standalone.",
                    unit="percentunit",
                    queries=one(f"fedreid_silo_map_ratio{{{OF_S}}}", "{{silo}} {{model}}"),
                    empty=NO_FIGURES,
                ),
                Panel(
                    title="Weight",
                    description="Its share in the newest aggregate; 0 where it had no part in it.",
                    unit="percentunit",
                    queries=one(f"fedreid_silo_aggregation_weight_ratio{{{OF_S}}}", "{{silo}}"),
                    empty=NO_UPDATE,
                ),
                Panel(
                    title="Cosine distance",
                    description="How far its classifier moved in training.",
                    unit="none",
                    queries=one(f"fedreid_silo_cosine_distance{{{OF_S}}}", "{{silo}}"),
                    empty=WITHHELD,
                ),
                Panel(
                    title="Images",
                    description="That its newest update comes from.",
                    unit="none",
                    queries=one(f"fedreid_silo_images{{{OF_S}}}", "{{silo}}"),
                    empty=NO_UPDATE,
                ),
                Panel(
                    title="Received from it",
                    description="Payload of updates, a second.",
                    unit="Bps",
                    queries=one(
                        f"rate(fedreid_silo_upload_bytes_total{{{OF_S}}}[$__rate_interval])",
                        "{{silo}}",
                    ),
                ),
                Panel(
                    title="Updates",
                    description="Accepted and rejected, since the coordinator was started.",
                    unit="none",
                    queries=one(f"fedreid_silo_updates_total{{{OF_S}}}", "{{silo}} {{outcome}}"),
                ),
            ),
        ),
        Row(
            title="Its agent",
            panels=(
                Panel(
                    title="What it does",
                    description="A bar for the phase that the agent is in.",
                    unit="none",
                    queries=one('fedreid_agent_phase{job=~"$agent"} > 0', "{{instance}} {{phase}}"),
                    kind="states",
                    empty=NOT_SCRAPED,
                ),
                Panel(
                    title="Since the coordinator last answered",
                    description="By the agent's own clock.",
                    unit="s",
                    queries=one(
                        'time() - fedreid_agent_last_contact_timestamp_seconds{job=~"$agent"}',
                        "{{instance}}",
                    ),
                    empty=NOT_SCRAPED,
                ),
                Panel(
                    title="Loss",
                    description="As the training under way told it last.",
                    unit="none",
                    queries=one('fedreid_agent_epoch_loss{job=~"$agent"}', "{{instance}}"),
                    empty=NOT_SCRAPED,
                ),
                Panel(
                    title="Images per second",
                    description="In the newest training.",
                    unit="none",
                    queries=one('fedreid_agent_images_per_second{job=~"$agent"}', "{{instance}}"),
                    empty=NOT_SCRAPED,
                ),
                Panel(
                    title="Sent",
                    description="Bytes of tensors that left the silo, a second.",
                    unit="Bps",
                    queries=one(
                        'rate(fedreid_agent_egress_bytes_total{job=~"$agent"}[$__rate_interval])',
                        "{{instance}}",
                    ),
                    empty=NOT_SCRAPED,
                ),
                Panel(
                    title="Outbox",
                    description="Trained rounds that the coordinator has not answered for.",
                    unit="none",
                    queries=one('fedreid_agent_outbox_depth{job=~"$agent"}', "{{instance}}"),
                    empty=NOT_SCRAPED,
                ),
            ),
        ),
    ),
)
