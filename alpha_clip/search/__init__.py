"""Find regions in a folder of pictures by text, through an index on disk, as the command `alpha-clip search` does.

This package imports only the core.
"""

from .index import Hit, RegionIndex, Settings
from .indexing import cache_folder, fill, load
from .querying import distinct, find, nearest
from .sheet import sheet

__all__ = ["Hit", "RegionIndex", "Settings", "cache_folder", "distinct", "fill", "find", "load", "nearest", "sheet"]
