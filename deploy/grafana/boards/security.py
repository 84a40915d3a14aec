"""Who comes in, who is kept out, and what runs out?"""

from deploy.grafana.boards.common import JOB, OF, OF_S, SILOS, number
from deploy.grafana.parts import Board, Panel, Row, one

SECURITY = Board(
    uid="fedreid-security",
    title="fedreid / Security",
    description="Who comes in, who is kept out, and which certificates run out?",
    variables=(JOB, SILOS),
    rows=(
        Row(
            title="Now",
            panels=(
                number(
                    "Tokens used twice",
                    "Attempts to use a join token with a second key.",
                    "none",
                    f'fedreid_enrolments_total{{{OF}, outcome="reused"}}',
                ),
                number(
                    "Awaiting approval",
                    "Silos whose key a person has yet to approve.",
                    "none",
                    f'fedreid_silos{{{OF}, state="pending"}}',
                ),
                number(
                    "Quarantined",
                    "Silos kept out for updates that look wrong.",
                    "none",
                    f'fedreid_silos{{{OF}, state="quarantined"}}',
                ),
                number(
                    "Revoked",
                    "Silos whose identity was withdrawn.",
                    "none",
                    f'fedreid_silos{{{OF}, state="revoked"}}',
                ),
                number(
                    "The authority ends in",
                    "Until the issuing authority's certificate ends.",
                    "s",
                    f"fedreid_ca_not_after_timestamp_seconds{{{OF}}} - time()",
                ),
                number(
                    "Roll-over awaits",
                    "Silos that the next step would lock out.",
                    "none",
                    f"fedreid_trust_bundle_pending_silos{{{OF}}}",
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
                        f"sum by (outcome) (increase(fedreid_enrolments_total{{{OF}}}"
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
                        f"sum by (reason) (increase(fedreid_access_denied_total{{{OF}}}"
                        "[$__rate_interval]))",
                        "{{reason}}",
                    ),
                    kind="stacked",
                ),
                Panel(
                    title="Silos by state",
                    description="As the registry has them.",
                    unit="none",
                    queries=one(f"fedreid_silos{{{OF}}}", "{{state}}"),
                    kind="stacked",
                ),
                Panel(
                    title="Updates that look wrong",
                    description="Flags of updates that count; three in a row can mean quarantine.",
                    unit="none",
                    queries=one(f"fedreid_updates_flagged_total{{{OF}}}", "{{flag}}"),
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
                        f"fedreid_silo_certificate_not_after_timestamp_seconds{{{OF_S}}} - time()",
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
                        f"increase(fedreid_tls_reload_failures_total{{{OF}}}[$__rate_interval])",
                        "failed",
                    ),
                ),
            ),
        ),
    ),
)
