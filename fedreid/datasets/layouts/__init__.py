"""Which images does a folder hold, of whom, from which camera, for which use? (reid-spec §9)

One module a family of layouts, each with the file grammar in its docstring::

    market_style    market1501 · dukemtmc-reid · cuhk03-np · msmt17 in its repackaged form
    msmt17          msmt17 with lists, V1 and V2
    cuhk            cuhk01 · cuhk02
    two_cameras     viper · prid2011
    drawn_views     3dpes · ilids
    preprocessed    fedreid-preprocessed
    folders         folders: a site's own crops, by place or by manifest

``registry`` names them all and loads them, ``splitting`` draws the splits of the small sets,
``official`` knows their published sizes, and ``walking`` reads the disk. The documentation with
examples is ``docs/datasets.md``.
"""

from fedreid.datasets.layouts.base import Dataset, LayoutName, Options
from fedreid.datasets.layouts.official import incompleteness
from fedreid.datasets.layouts.registry import LAYOUTS, load
from fedreid.datasets.layouts.splitting import REPEATS

__all__ = ["LAYOUTS", "REPEATS", "Dataset", "LayoutName", "Options", "incompleteness", "load"]
