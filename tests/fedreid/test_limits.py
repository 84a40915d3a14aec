"""Has every limit a reason and a user, and do the limits fit together?"""

import ast
from pathlib import Path

import pytest

import fedreid
from fedreid import limits

SOURCE = Path(limits.__file__)
CONSTANTS = {name: value for name, value in vars(limits).items() if name.isupper()}
UNITS = {"KIB", "MIB"}


def reasons() -> dict[str, str]:
    """The text that stands below each constant."""
    found = {}
    body = ast.parse(SOURCE.read_text()).body
    for node, following in zip(body, [*body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            name = node.targets[0].id
            found[name] = str(following.value.value) if is_text else ""  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("name", sorted(CONSTANTS.keys() - UNITS))
def test_every_limit_has_a_reason(name: str) -> None:
    assert len(reasons()[name]) > 20


def test_every_limit_is_a_positive_number_or_a_range() -> None:
    for name, value in CONSTANTS.items():
        if isinstance(value, tuple):
            low, high = value
            assert low < high, name
        else:
            assert value > 0, name


@pytest.mark.parametrize("name", sorted(CONSTANTS))
def test_every_limit_is_in_force_somewhere(name: str) -> None:
    root = Path(fedreid.__file__).parent.parent
    sources = [
        path
        for program in ("fedreid", "coordinator", "silo_agent", "benchmark")
        for path in (root / program).rglob("*.py")
        if path != SOURCE
    ]
    assert any(name in path.read_text("utf-8") for path in sources)


def test_what_travels_fits_a_message() -> None:
    assert limits.CHUNK_BYTES < limits.MESSAGE_BYTES
    assert limits.PLAN_BYTES < limits.MESSAGE_BYTES
    assert limits.MESSAGE_BYTES == 4 * limits.MIB  # gRPC's default; the design never raises it


def test_an_agent_that_waits_or_trains_counts_as_present() -> None:
    assert limits.LONG_POLL_S < limits.PRESENCE_S
    assert limits.HEARTBEAT_S < limits.PRESENCE_S / 3
    assert limits.RECONNECT_MAX_S < limits.PRESENCE_S


def test_certificates_outlive_what_they_sign() -> None:
    assert limits.LEAF_LIFE_S < limits.SERVER_LIFE_S < limits.AUTHORITY_LIFE_S
    assert limits.TOKEN_TTL_S <= limits.TOKEN_TTL_MAX_S <= limits.LEAF_LIFE_S
    assert limits.LEAF_LIFE_MIN_S < limits.LEAF_LIFE_S <= limits.LEAF_LIFE_MAX_S
    assert limits.KEY_GRACE_S < (1 - limits.RENEWAL_SHARE) * limits.LEAF_LIFE_S
    assert limits.CLOCK_SKEW_S < limits.TOKEN_TTL_S
