"""In which tables and columns does SQLite keep the journal's rows?

Another column needs a step in ``coordinator.rounds.formats``.
"""

import sqlalchemy as sa

METADATA = sa.MetaData()


def _seal_column() -> "sa.Column[str]":
    return sa.Column("seal", sa.String, nullable=True)


SILOS = sa.Table(
    "silos",
    METADATA,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("key_fingerprint", sa.String, nullable=False),
    sa.Column("certificate_pem", sa.LargeBinary, nullable=False),
    sa.Column("not_after_s", sa.Float, nullable=False),
    sa.Column("next_key_fingerprint", sa.String, nullable=False),
    sa.Column("next_certificate_pem", sa.LargeBinary, nullable=False),
    sa.Column("previous_key_fingerprint", sa.String, nullable=False),
    sa.Column("previous_until_s", sa.Float, nullable=False),
    sa.Column("authorities_digest", sa.String, nullable=False),
    _seal_column(),
)
TOKENS = sa.Table(
    "tokens",
    METADATA,
    sa.Column("secret_hash", sa.String, primary_key=True),
    sa.Column("silo", sa.String, nullable=False),
    sa.Column("expires_at_s", sa.Float, nullable=False),
    sa.Column("key_fingerprint", sa.String, nullable=False, default=""),
    _seal_column(),
)
RUNS = sa.Table(
    "runs",
    METADATA,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String, unique=True, nullable=False),
    sa.Column("plan_toml", sa.Text, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("started_at_s", sa.Float, nullable=False),
    _seal_column(),
)
PLAN_CHANGES = sa.Table(
    "plan_changes",
    METADATA,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.String, nullable=False),
    sa.Column("from_round", sa.Integer, nullable=False),
    sa.Column("plan_toml", sa.Text, nullable=False),
    _seal_column(),
)
ROUNDS = sa.Table(
    "rounds",
    METADATA,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("phase", sa.String, nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
    _seal_column(),
)
MODELS = sa.Table(
    "models",
    METADATA,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String, nullable=False, index=True),
    sa.Column("run", sa.String, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("release", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    _seal_column(),
)
EVALUATIONS = sa.Table(
    "evaluations",
    METADATA,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("silo", sa.String, primary_key=True),
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("result", sa.LargeBinary, nullable=False),
    _seal_column(),
)
MARKS = sa.Table(
    "marks",
    METADATA,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)
