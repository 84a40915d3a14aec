"""Where does every random draw of the synthetic silos come from?"""

import numpy as np

from fedreid.seeds import derive_seed


def generator(seed: int, *place: str | int) -> np.random.Generator:
    """The generator of one thing: a camera, a person, a pass, an image.

    It is keyed by what the thing is, never by when it is drawn, so the bytes of an image depend
    neither on the number of workers nor on which other images were asked for.
    """
    words = np.random.SeedSequence(derive_seed(seed, "synthetic", *place))
    return np.random.Generator(np.random.PCG64(words))
