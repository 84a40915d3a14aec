"""Does what stands between camera and person fit images of every size?"""

import numpy as np
import pytest

from fedreid.datasets.synthetic.camera import draw_camera
from fedreid.datasets.synthetic.climate import CLIMATES
from fedreid.datasets.synthetic.scene import occlude


@pytest.mark.parametrize(("height", "width"), [(32, 16), (128, 64), (256, 128), (700, 300)])
def test_an_occlusion_changes_some_of_the_image_and_not_all(height: int, width: int) -> None:
    camera = draw_camera(np.random.default_rng(1), CLIMATES[0], 1, colour_shift=True)
    for seed in range(12):  # posts, rails and boxes
        image_HW3 = np.full((height, width, 3), -1.0)
        occlude(image_HW3, camera, np.random.default_rng(seed))
        changed = float((image_HW3 != -1.0).mean())
        assert 0.0 < changed < 0.6
