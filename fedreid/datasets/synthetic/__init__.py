"""Procedural pedestrians: silos of made-up people, seen by made-up cameras, in Market-1501 naming.

No real person's image is needed, shipped or imitated. `render` draws a federation to disk,
`colour_histogram` is the baseline that a trained net must beat on it.
"""

from fedreid.datasets.synthetic.baseline import colour_histogram
from fedreid.datasets.synthetic.rendering import render
from fedreid.datasets.synthetic.spec import SiloCounts, SyntheticSpec, SyntheticSummary

__all__ = ["SiloCounts", "SyntheticSpec", "SyntheticSummary", "colour_histogram", "render"]
