"""Which boards are there, and what does each show?

**Federation** is it learning? **Rounds** what do rounds spend their time on, and what is turned
away? **Silo** how does one silo do? **Coordinator** how does the service do? **Security** who
comes in, who is kept out, and what runs out?
"""

from deploy.grafana.parts import Annotation, Board, Panel, Query, Row, Variable, one

_OF = 'job="$job"'
_SILO = 'job="$job", silo=~"$silo"'
_JOB = Variable(name="job", label="Coordinator", query="label_values(fedreid_round_current, job)")
_SILOS = Variable(
    name="silo",
    label="Silo",
    query='label_values(fedreid_silo_last_seen_timestamp_seconds{job="$job"}, silo)',
    several=True,
)
_AGENT = Variable(
    name="agent", label="Agents", query="label_values(fedreid_agent_connected, job)", several=True
)
_NO_FIGURES = "No silo has measured a model yet, or none is told what it scores."
_NO_UPDATE = "No round has ended yet."
_WITHHELD = "No round has ended yet, or the silo withholds it (noise is on)."
_NOT_SCRAPED = "This Prometheus scrapes no silo agent."

ANNOTATIONS = (
    Annotation(
        name="Model published",
        expr=f"changes(fedreid_model_version{{{_OF}}}[1m]) > 0",
        colour="blue",
    ),
    Annotation(
        name="Silo joined",
        expr=f'(changes(fedreid_silos{{{_OF}, state="active"}}[1m]) > 0) '
        f'and (delta(fedreid_silos{{{_OF}, state="active"}}[1m]) > 0)',
        colour="green",
    ),
    Annotation(
        name="Silo revoked",
        expr=f'changes(fedreid_silos{{{_OF}, state="revoked"}}[1m]) > 0',
        colour="red",
    ),
)


def _number(title: str, description: str, unit: str, expr: str, *, empty: str = "") -> Panel:
    return Panel(
        title=title, description=description, unit=unit, queries=one(expr), kind="number",
        width=4, empty=empty,
    )  # fmt: skip


FEDERATION = Board(
    uid="fedreid-federation",
    title="fedreid / Federation",
    description="Is it learning? Models, what they score at each silo, and who takes part.",
    variables=(_JOB, _SILOS),
    rows=(
        Row(
            title="Now",
            panels=(
                _number(
                    "Since the last model",
                    "Time since a round last published a model, or since the run was started.",
                    "s",
                    f"fedreid:since_success:seconds{{{_OF}}}",
                    empty="No run was started yet.",
                ),
                _number(
                    "Newest model",
                    "Version of the newest published model.",
                    "none",
                    f"fedreid_model_version{{{_OF}}}",
                ),
                _number(
                    "Round",
                    "Number of the newest round.",
                    "none",
                    f"fedreid_round_current{{{_OF}}}",
                ),
                _number(
                    "Silos there",
                    "Silos that were heard of within the last minute.",
                    "none",
                    f"fedreid_silos_present{{{_OF}}}",
                ),
                _number(
                    "Silos that take part",
                    "Registered silos in the state active.",
                    "none",
                    f'fedreid_silos{{{_OF}, state="active"}}',
                ),
                _number(
                    "Run",
                    "1 while a run is running; 0 paused, ended or none.",
                    "none",
                    f"fedreid_run_under_way{{{_OF}}}",
                ),
            ),
        ),
        Row(
            title="What the models score",
            panels=(
                Panel(
                    title="mAP of each silo",
                    description="On the silo's own test set: the global model, the silo's own "
                    "after training on it (local), and one trained there alone (standalone).",
                    unit="percentunit",
                    queries=one(f"fedreid_silo_map_ratio{{{_SILO}}}", "{{silo}} {{model}}"),
                    empty=_NO_FIGURES,
                ),
                Panel(
                    title="Rank-1 of each silo",
                    description="How often the first of the ranked images is the right person.",
                    unit="percentunit",
                    queries=one(f"fedreid_silo_rank1_ratio{{{_SILO}}}", "{{silo}} {{model}}"),
                    empty=_NO_FIGURES,
                ),
                Panel(
                    title="Mean over silos",
                    description="Each silo counts alike. Global above standalone: it pays to take "
                    "part.",
                    unit="percentunit",
                    queries=(
                        Query(expr=f"fedreid:silo_map_ratio:mean{{{_OF}}}", legend="mAP {{model}}"),
                        Query(
                            expr=f"fedreid:silo_rank1_ratio:mean{{{_OF}}}",
                            legend="rank-1 {{model}}",
                        ),
                    ),
                    empty=_NO_FIGURES,
                ),
                Panel(
                    title="The global model",
                    description="On the coordinator's own images, if it has any, and as the mean "
                    "of the silos' figures.",
                    unit="percentunit",
                    queries=(
                        Query(expr=f"fedreid_model_map_ratio{{{_OF}}}", legend="mAP {{dataset}}"),
                        Query(
                            expr=f"fedreid_model_rank1_ratio{{{_OF}}}",
                            legend="rank-1 {{dataset}}",
                        ),
                    ),
                    empty=_NO_FIGURES,
                ),
            ),
        ),
        Row(
            title="Learning",
            panels=(
                Panel(
                    title="Training loss",
                    description="Of each silo's newest update.",
                    unit="none",
                    queries=one(f"fedreid_silo_train_loss{{{_SILO}}}", "{{silo}}"),
                    empty=_WITHHELD,
                ),
                Panel(
                    title="Cosine distance",
                    description="How far a silo's classifier moved in training: what weighting by "
                    "cosine distance weighs with.",
                    unit="none",
                    queries=one(f"fedreid_silo_cosine_distance{{{_SILO}}}", "{{silo}}"),
                    empty=_WITHHELD,
                ),
                Panel(
                    title="Participants of the round",
                    description="Invited silos by what became of their update.",
                    unit="none",
                    queries=one(
                        f'fedreid_round_participants{{{_OF}, state!="invited"}}', "{{state}}"
                    ),
                    kind="stacked",
                ),
                Panel(
                    title="Change of the model",
                    description="Norm of what the newest aggregate changed.",
                    unit="none",
                    queries=one(f"fedreid_model_update_norm{{{_OF}}}", "update"),
                ),
                Panel(
                    title="Distillation",
                    description="Mean loss over the public images, before and after.",
                    unit="none",
                    queries=one(f"fedreid_distillation_loss{{{_OF}}}", "{{stage}}"),
                    empty="The plan does not distil.",
                ),
                Panel(
                    title="Privacy loss",
                    description="Epsilon of all updates of a silo together, as it told.",
                    unit="none",
                    queries=one(f"fedreid_silo_privacy_epsilon{{{_SILO}}}", "{{silo}}"),
                    empty="No silo adds noise.",
                ),
            ),
        ),
    ),
)

ROUNDS = Board(
    uid="fedreid-rounds",
    title="fedreid / Rounds",
    description="What do rounds spend their time on, how do they end, and what is turned away?",
    variables=(_JOB, _SILOS),
    rows=(
        Row(
            title="Now",
            panels=(
                _number(
                    "Round",
                    "Number of the newest round.",
                    "none",
                    f"fedreid_round_current{{{_OF}}}",
                ),
                _number(
                    "Since it began",
                    "Time since the newest round began.",
                    "s",
                    f"time() - (fedreid_round_started_timestamp_seconds{{{_OF}}} > 0)",
                    empty="No round has begun yet.",
                ),
                _number(
                    "Accepted",
                    "Updates of the newest round that count.",
                    "none",
                    f'fedreid_round_participants{{{_OF}, state="accepted"}}',
                ),
                _number(
                    "Needed",
                    "Updates that it needs at least.",
                    "none",
                    f"fedreid_round_quorum_silos{{{_OF}}}",
                ),
                _number(
                    "Awaited",
                    "Silos whose update is still waited for.",
                    "none",
                    f'fedreid_round_participants{{{_OF}, state="awaited"}}',
                ),
                _number(
                    "Spool",
                    "Bytes of the newest round's updates on the disk.",
                    "bytes",
                    f"fedreid_spool_bytes{{{_OF}}}",
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
                    queries=one(f"fedreid_round_last_phase_seconds{{{_OF}}}", "{{phase}}"),
                    kind="stacked",
                ),
                Panel(
                    title="Duration of phases, 95 of 100",
                    description="95 % of the rounds spent at most so long in the phase.",
                    unit="s",
                    queries=one(
                        "histogram_quantile(0.95, sum by (phase, le) (rate("
                        f"fedreid_round_phase_duration_seconds_bucket{{{_OF}}}[$__rate_interval])))",
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
                        f"sum by (outcome) (increase(fedreid_rounds_total{{{_OF}}}"
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
                        f"fedreid_silo_updates_total{{{_SILO}}}[$__rate_interval]))",
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
                        f"rate(fedreid_intake_bytes_total{{{_OF}}}[$__rate_interval])", "received"
                    ),
                ),
                Panel(
                    title="Received, by silo",
                    description="Payload of updates, a second.",
                    unit="Bps",
                    queries=one(
                        f"rate(fedreid_silo_upload_bytes_total{{{_SILO}}}[$__rate_interval])",
                        "{{silo}}",
                    ),
                ),
                Panel(
                    title="Rejected updates",
                    description="By reason. stale: it came after its round; chunk, byte_count and "
                    "digest: a broken line; the others: its content.",
                    unit="none",
                    queries=one(
                        f"sum by (reason) (increase(fedreid_updates_rejected_total{{{_OF}}}"
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
                        f"sum by (flag) (increase(fedreid_updates_flagged_total{{{_OF}}}"
                        "[$__rate_interval]))",
                        "{{flag}}",
                    ),
                    kind="stacked",
                ),
            ),
        ),
    ),
)

SILO = Board(
    uid="fedreid-silo",
    title="fedreid / Silo",
    description="How does one silo do? What the coordinator sees of it, and its agent where it is "
    "scraped.",
    variables=(_JOB, _SILOS, _AGENT),
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
                        f"time() - fedreid_silo_last_seen_timestamp_seconds{{{_SILO}}}", "{{silo}}"
                    ),
                ),
                Panel(
                    title="Until its certificate ends",
                    description="Renewed at two thirds of its life, by itself.",
                    unit="s",
                    queries=one(
                        f"fedreid_silo_certificate_not_after_timestamp_seconds{{{_SILO}}} - time()",
                        "{{silo}}",
                    ),
                    empty="A PKI of the operators' own issues the certificates.",
                ),
                Panel(
                    title="What the models score",
                    description="mAP on its own test set: global, local and standalone.",
                    unit="percentunit",
                    queries=one(f"fedreid_silo_map_ratio{{{_SILO}}}", "{{silo}} {{model}}"),
                    empty=_NO_FIGURES,
                ),
                Panel(
                    title="Weight",
                    description="Its share in the newest aggregate; 0 where it had no part in it.",
                    unit="percentunit",
                    queries=one(f"fedreid_silo_aggregation_weight_ratio{{{_SILO}}}", "{{silo}}"),
                    empty=_NO_UPDATE,
                ),
                Panel(
                    title="Cosine distance",
                    description="How far its classifier moved in training.",
                    unit="none",
                    queries=one(f"fedreid_silo_cosine_distance{{{_SILO}}}", "{{silo}}"),
                    empty=_WITHHELD,
                ),
                Panel(
                    title="Images",
                    description="That its newest update comes from.",
                    unit="none",
                    queries=one(f"fedreid_silo_images{{{_SILO}}}", "{{silo}}"),
                    empty=_NO_UPDATE,
                ),
                Panel(
                    title="Received from it",
                    description="Payload of updates, a second.",
                    unit="Bps",
                    queries=one(
                        f"rate(fedreid_silo_upload_bytes_total{{{_SILO}}}[$__rate_interval])",
                        "{{silo}}",
                    ),
                ),
                Panel(
                    title="Updates",
                    description="Accepted and rejected, since the coordinator was started.",
                    unit="none",
                    queries=one(f"fedreid_silo_updates_total{{{_SILO}}}", "{{silo}} {{outcome}}"),
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
                    empty=_NOT_SCRAPED,
                ),
                Panel(
                    title="Since the coordinator last answered",
                    description="By the agent's own clock.",
                    unit="s",
                    queries=one(
                        'time() - fedreid_agent_last_contact_timestamp_seconds{job=~"$agent"}',
                        "{{instance}}",
                    ),
                    empty=_NOT_SCRAPED,
                ),
                Panel(
                    title="Loss",
                    description="As the training under way told it last.",
                    unit="none",
                    queries=one('fedreid_agent_epoch_loss{job=~"$agent"}', "{{instance}}"),
                    empty=_NOT_SCRAPED,
                ),
                Panel(
                    title="Images per second",
                    description="In the newest training.",
                    unit="none",
                    queries=one('fedreid_agent_images_per_second{job=~"$agent"}', "{{instance}}"),
                    empty=_NOT_SCRAPED,
                ),
                Panel(
                    title="Sent",
                    description="Bytes of tensors that left the silo, a second.",
                    unit="Bps",
                    queries=one(
                        'rate(fedreid_agent_egress_bytes_total{job=~"$agent"}[$__rate_interval])',
                        "{{instance}}",
                    ),
                    empty=_NOT_SCRAPED,
                ),
                Panel(
                    title="Outbox",
                    description="Trained rounds that the coordinator has not answered for.",
                    unit="none",
                    queries=one('fedreid_agent_outbox_depth{job=~"$agent"}', "{{instance}}"),
                    empty=_NOT_SCRAPED,
                ),
            ),
        ),
    ),
)

COORDINATOR = Board(
    uid="fedreid-coordinator",
    title="fedreid / Coordinator",
    description="How does the service do? Its calls by rate, errors and duration; its process and "
    "disk by utilisation, saturation and errors.",
    variables=(_JOB,),
    rows=(
        Row(
            title="Calls",
            panels=(
                Panel(
                    title="Rate",
                    description="Calls that ended, a second, by method.",
                    unit="reqps",
                    queries=one(
                        f"sum by (grpc_method) (rate(grpc_server_handled_total{{{_OF}}}"
                        "[$__rate_interval])) > 0",
                        "{{grpc_method}}",
                    ),
                    empty="No call came lately.",
                ),
                Panel(
                    title="Ends that are not OK",
                    description="Calls a second, by status. PermissionDenied, FailedPrecondition "
                    "and InvalidArgument are the callers' fault; Internal is the coordinator's.",
                    unit="reqps",
                    queries=one(
                        "sum by (grpc_code) (rate(grpc_server_handled_total"
                        f'{{{_OF}, grpc_code!="OK"}}[$__rate_interval])) > 0',
                        "{{grpc_code}}",
                    ),
                    empty="Every call ended well.",
                ),
                Panel(
                    title="Errors of its own",
                    description="Share of calls that ended in Internal, Unknown or DataLoss.",
                    unit="percentunit",
                    queries=one(f"fedreid:grpc_errors:ratio_rate5m{{{_OF}}}", "errors"),
                    empty="No call came lately.",
                ),
                Panel(
                    title="Duration, 99 of 100",
                    description="99 % of the calls took at most so long. NextTask is a long poll "
                    "and left out.",
                    unit="s",
                    queries=one(
                        f"fedreid:grpc_handling_seconds:p99_rate5m{{{_OF}}} >= 0",
                        "{{grpc_method}}",
                    ),
                    empty="No call came lately.",
                ),
                Panel(
                    title="Under way",
                    description="Calls that have begun and not ended; most are long polls.",
                    unit="none",
                    queries=one(
                        f"sum(grpc_server_started_total{{{_OF}}}) "
                        f"- sum(grpc_server_handled_total{{{_OF}}})",
                        "calls",
                    ),
                ),
                Panel(
                    title="Messages",
                    description="Received and sent, a second.",
                    unit="none",
                    queries=(
                        Query(
                            expr=f"sum(rate(grpc_server_msg_received_total{{{_OF}}}"
                            "[$__rate_interval]))",
                            legend="received",
                        ),
                        Query(
                            expr=f"sum(rate(grpc_server_msg_sent_total{{{_OF}}}"
                            "[$__rate_interval]))",
                            legend="sent",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            title="Process and disk",
            panels=(
                Panel(
                    title="CPU",
                    description="Of the service process; its worker, which holds torch, is not in "
                    "it.",
                    unit="percentunit",
                    queries=one(
                        f"rate(process_cpu_seconds_total{{{_OF}}}[$__rate_interval])", "cores"
                    ),
                ),
                Panel(
                    title="Memory",
                    description="Resident memory of the service process.",
                    unit="bytes",
                    queries=one(f"process_resident_memory_bytes{{{_OF}}}", "resident"),
                ),
                Panel(
                    title="Open files",
                    description="Share of the file descriptors that it may have.",
                    unit="percentunit",
                    queries=one(f"process_open_fds{{{_OF}}} / process_max_fds{{{_OF}}}", "open"),
                ),
                Panel(
                    title="Disk, free",
                    description="Of the disk of the data folder; what is kept free is refused to "
                    "uploads.",
                    unit="percentunit",
                    queries=one(f"fedreid:store_free:ratio{{{_OF}}}", "free"),
                ),
                Panel(
                    title="Spool",
                    description="Bytes of the newest round's updates.",
                    unit="bytes",
                    queries=one(f"fedreid_spool_bytes{{{_OF}}}", "spool"),
                ),
                Panel(
                    title="Commits of the journal, 99 of 100",
                    description="99 % of the commits took at most so long: the disk's fsync.",
                    unit="s",
                    queries=one(f"fedreid:journal_commit_seconds:p99_rate5m{{{_OF}}}", "commit"),
                    empty="Nothing was committed lately.",
                ),
                Panel(
                    title="Scraped",
                    description="1 while Prometheus gets an answer.",
                    unit="none",
                    queries=one(f"up{{{_OF}}}", "{{instance}}"),
                ),
                Panel(
                    title="Version",
                    description="What runs, by version and source revision.",
                    unit="none",
                    queries=one(f"fedreid_build_info{{{_OF}}}", "{{version}} {{revision}}"),
                ),
            ),
        ),
    ),
)

SECURITY = Board(
    uid="fedreid-security",
    title="fedreid / Security",
    description="Who comes in, who is kept out, and which certificates run out?",
    variables=(_JOB, _SILOS),
    rows=(
        Row(
            title="Now",
            panels=(
                _number(
                    "Tokens used twice",
                    "Attempts to use a join token with a second key.",
                    "none",
                    f'fedreid_enrolments_total{{{_OF}, outcome="reused"}}',
                ),
                _number(
                    "Awaiting approval",
                    "Silos whose key a person has yet to approve.",
                    "none",
                    f'fedreid_silos{{{_OF}, state="pending"}}',
                ),
                _number(
                    "Quarantined",
                    "Silos kept out for updates that look wrong.",
                    "none",
                    f'fedreid_silos{{{_OF}, state="quarantined"}}',
                ),
                _number(
                    "Revoked",
                    "Silos whose identity was withdrawn.",
                    "none",
                    f'fedreid_silos{{{_OF}, state="revoked"}}',
                ),
                _number(
                    "The authority ends in",
                    "Until the issuing authority's certificate ends.",
                    "s",
                    f"fedreid_ca_not_after_timestamp_seconds{{{_OF}}} - time()",
                ),
                _number(
                    "Roll-over awaits",
                    "Silos that the next step would lock out.",
                    "none",
                    f"fedreid_trust_bundle_pending_silos{{{_OF}}}",
                ),
            ),
        ),
        Row(
            title="In and out",
            panels=(
                Panel(
                    title="Enrolments",
                    description="Join tokens redeemed, refused, or used again by another key.",
                    unit="none",
                    queries=one(
                        f"sum by (outcome) (increase(fedreid_enrolments_total{{{_OF}}}"
                        "[$__rate_interval]))",
                        "{{outcome}}",
                    ),
                    kind="stacked",
                ),
                Panel(
                    title="Denied calls",
                    description="Calls and messages refused by access, by reason.",
                    unit="none",
                    queries=one(
                        f"sum by (reason) (increase(fedreid_access_denied_total{{{_OF}}}"
                        "[$__rate_interval]))",
                        "{{reason}}",
                    ),
                    kind="stacked",
                ),
                Panel(
                    title="Silos by state",
                    description="As the registry has them.",
                    unit="none",
                    queries=one(f"fedreid_silos{{{_OF}}}", "{{state}}"),
                    kind="stacked",
                ),
                Panel(
                    title="Updates that look wrong",
                    description="Flags of updates that count; three in a row can mean quarantine.",
                    unit="none",
                    queries=one(f"fedreid_updates_flagged_total{{{_OF}}}", "{{flag}}"),
                ),
            ),
        ),
        Row(
            title="Certificates",
            panels=(
                Panel(
                    title="Until certificates of silos end",
                    description="Below a third of their life, renewal has not worked.",
                    unit="s",
                    queries=one(
                        f"fedreid_silo_certificate_not_after_timestamp_seconds{{{_SILO}}} - time()",
                        "{{silo}}",
                    ),
                    empty="A PKI of the operators' own issues the certificates.",
                ),
                Panel(
                    title="Failed looks at the port's identity",
                    description="Certificate files that could not be used; what was in force "
                    "stays.",
                    unit="none",
                    queries=one(
                        f"increase(fedreid_tls_reload_failures_total{{{_OF}}}[$__rate_interval])",
                        "failed",
                    ),
                ),
            ),
        ),
    ),
)

ALL = (FEDERATION, ROUNDS, SILO, COORDINATOR, SECURITY)
