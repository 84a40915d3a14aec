"""What does the name of a training recipe stand for? Values of keys that the plan leaves out.

A recipe is a preset and nothing more: a key that the plan gives itself wins, and all code reads
the plain keys. ``bot`` is the bag of tricks (Luo et al. 2019, reid-spec §6); its schedule is
warm-up and cosine by round, as here the rate is a function of the round.
"""

from typing import Any

Preset = dict[str, dict[str, Any]]
"""Values by key, by table of the plan."""

RECIPES: dict[str, Preset] = {
    "paper": {},
    "bot": {
        "backbone": {"neck": "bnneck", "last_stride": 1},
        "training": {
            "optimiser": "adam",
            "learning_rate": 3.5e-4,
            "backbone_learning_rate": 3.5e-4,
            "batch_size": 64,
            "images_per_identity": 4,
            "triplet_margin": 0.3,
            "label_smoothing": 0.1,
            "random_erasing": 0.5,
            "dropout": 0.0,
            "schedule": "warmup_cosine",
            "warmup_rounds": 5,
        },
    },
}
"""By name; ``paper`` is what the plan's defaults say."""


def with_recipe(tree: dict[str, Any]) -> dict[str, Any]:
    """A plan's TOML tree with the values of its recipe under its own.

    What is no recipe or no table is left as it stands: the plan's types refuse it.
    """
    training = tree.get("training")
    name = training.get("recipe") if isinstance(training, dict) else None
    preset = RECIPES.get(name, {}) if isinstance(name, str) else {}
    merged = dict(tree)
    for section, values in preset.items():
        given = tree.get(section, {})
        merged[section] = values | given if isinstance(given, dict) else given
    return merged
