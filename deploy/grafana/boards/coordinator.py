"""How does the service do?"""

from deploy.grafana.boards.common import JOB, OF
from deploy.grafana.parts import Board, Panel, Query, Row, one

COORDINATOR = Board(
    uid="fedreid-coordinator",
    title="fedreid / Coordinator",
    description="How does the service do? Its calls by rate, errors and duration; its process and "
    "disk by utilisation, saturation and errors.",
    variables=(JOB,),
    rows=(
        Row(
            title="Calls",
            panels=(
                Panel(
                    title="Rate",
                    description="Calls that ended, a second, by method.",
                    unit="reqps",
                    queries=one(
                        f"sum by (grpc_method) (rate(grpc_server_handled_total{{{OF}}}"
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
                        f'{{{OF}, grpc_code!="OK"}}[$__rate_interval])) > 0',
                        "{{grpc_code}}",
                    ),
                    empty="Every call ended well.",
                ),
                Panel(
                    title="Errors of its own",
                    description="Share of calls that ended in Internal, Unknown or DataLoss.",
                    unit="percentunit",
                    queries=one(f"fedreid:grpc_errors:ratio_rate5m{{{OF}}}", "errors"),
                    empty="No call came lately.",
                ),
                Panel(
                    title="Duration, 99 of 100",
                    description="99 % of the calls took at most so long. NextTask is a long poll "
                    "and left out.",
                    unit="s",
                    queries=one(
                        f"fedreid:grpc_handling_seconds:p99_rate5m{{{OF}}} >= 0",
                        "{{grpc_method}}",
                    ),
                    empty="No call came lately.",
                ),
                Panel(
                    title="Under way",
                    description="Calls that have begun and not ended; most are long polls.",
                    unit="none",
                    queries=one(
                        f"sum(grpc_server_started_total{{{OF}}}) "
                        f"- sum(grpc_server_handled_total{{{OF}}})",
                        "calls",
                    ),
                ),
                Panel(
                    title="Messages",
                    description="Received and sent, a second.",
                    unit="none",
                    queries=(
                        Query(
                            expr=f"sum(rate(grpc_server_msg_received_total{{{OF}}}"
                            "[$__rate_interval]))",
                            legend="received",
                        ),
                        Query(
                            expr=f"sum(rate(grpc_server_msg_sent_total{{{OF}}}[$__rate_interval]))",
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
                        f"rate(process_cpu_seconds_total{{{OF}}}[$__rate_interval])", "cores"
                    ),
                ),
                Panel(
                    title="Memory",
                    description="Resident memory of the service process.",
                    unit="bytes",
                    queries=one(f"process_resident_memory_bytes{{{OF}}}", "resident"),
                ),
                Panel(
                    title="Open files",
                    description="Share of the file descriptors that it may have.",
                    unit="percentunit",
                    queries=one(f"process_open_fds{{{OF}}} / process_max_fds{{{OF}}}", "open"),
                ),
                Panel(
                    title="Disk, free",
                    description="Of the disk of the data folder; what is kept free is refused to "
                    "uploads.",
                    unit="percentunit",
                    queries=one(f"fedreid:store_free:ratio{{{OF}}}", "free"),
                ),
                Panel(
                    title="Spool",
                    description="Bytes of the newest round's updates.",
                    unit="bytes",
                    queries=one(f"fedreid_spool_bytes{{{OF}}}", "spool"),
                ),
                Panel(
                    title="Commits of the journal, 99 of 100",
                    description="99 % of the commits took at most so long: the disk's fsync.",
                    unit="s",
                    queries=one(f"fedreid:journal_commit_seconds:p99_rate5m{{{OF}}}", "commit"),
                    empty="Nothing was committed lately.",
                ),
                Panel(
                    title="Scraped",
                    description="1 while Prometheus gets an answer.",
                    unit="none",
                    queries=one(f"up{{{OF}}}", "{{instance}}"),
                ),
                Panel(
                    title="Version",
                    description="What runs, by version and source revision.",
                    unit="none",
                    queries=one(f"fedreid_build_info{{{OF}}}", "{{version}} {{revision}}"),
                ),
            ),
        ),
    ),
)
