"""Does everything that reads bytes from outside take them or refuse them, whatever they are?

The fast suite tries some thousands with a fixed seed; ``make test-slow`` tries far more, with a
seed of its own that it prints.
"""

import secrets
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.fuzzing.mutations import Mutator
from tests.fuzzing.parsers import Parser, parsers

FEW = 2_000
MANY = 20_000
NAMES = (
    "announcement", "chunk", "values", "model file", "evaluation", "task", "release", "token",
    "certificate", "certificate request", "plan",
)  # fmt: skip
MEMORY_MB = 64


def tried(parser: Parser, seed: int, count: int) -> Counter[str]:
    """Give a parser so many mutated messages; how often each outcome was."""
    mutator = Mutator(seed)
    outcomes: Counter[str] = Counter()
    for number in range(count):
        data = parser.mutate(mutator)
        try:
            parser.read(data)
            outcomes["taken"] += 1
        except parser.refusals as refusal:
            outcomes[type(refusal).__name__] += 1
        except Exception as error:
            raise AssertionError(
                f"seed {seed}, message {number}: {data.hex()[:4000]} made {error!r}"
            ) from error
    return outcomes


def memory_mb() -> float:
    """Resident memory of this process."""
    return psutil.Process().memory_info().rss / 2**20


def test_every_parser_is_tried(tmp_path: Path) -> None:
    assert parsers(tmp_path).keys() == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_mutated_bytes_are_taken_or_refused_as_they_should_be(tmp_path: Path, name: str) -> None:
    outcomes = tried(parsers(tmp_path)[name], seed=7, count=FEW)
    assert sum(outcomes.values()) == FEW
    assert outcomes.total() > outcomes["taken"] > 0  # neither was the mutation vain nor too wild


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_very_many_mutated_bytes_are_taken_or_refused_as_they_should_be(
    tmp_path: Path, name: str
) -> None:
    parser = parsers(tmp_path)[name]
    tried(parser, seed=7, count=FEW)  # whatever is built once is built now
    before_mb = memory_mb()
    seed = secrets.randbits(32)
    outcomes = tried(parser, seed=seed, count=MANY)
    added_mb = memory_mb() - before_mb
    print(f"{name}: seed {seed}, {dict(outcomes)}, memory {added_mb:+.1f} MB")
    assert sum(outcomes.values()) == MANY
    assert added_mb < MEMORY_MB
