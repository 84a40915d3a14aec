"""Which random numbers does a step use? A seed of its own, from where it stands in the run."""

import blake3

_SEED_BYTES = 8


def derive_seed(seed: int, *place: str | int) -> int:
    """A seed in 0..2^63 − 1 for the step at ``place``, such as ``("round", 3, "distil")``.

    Equal places give equal seeds on every machine; different places, unrelated ones.
    """
    text = "\x1f".join(str(part) for part in (seed, *place)).encode()
    digest = blake3.blake3(text).digest(length=_SEED_BYTES)
    return int.from_bytes(digest, "big") >> 1
