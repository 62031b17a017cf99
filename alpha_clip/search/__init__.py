"""Texts to regions of a folder of pictures, through an index on disk: the command `alpha-clip search`.

Imports the core alone.
"""

from .index import Hit, RegionIndex, Settings
from .indexing import cache_folder, fill, load
from .querying import distinct, find, nearest
from .sheet import sheet

__all__ = ["Hit", "RegionIndex", "Settings", "cache_folder", "distinct", "fill", "find", "load", "nearest", "sheet"]
