"""The decode cache: images decoded and resized once, on disk, shared by runs.

A layout is a folder of records that have one conversion, shape and type. Its shards are pairs of
files: raw records one after another, and an index with the key and the checksum of each. A key is
a hash that the caller makes from what the pixels depend on; no path, name or patient id is here.

Records are read with ``preadv`` from the page cache, which runs share. A memory map would cost the
same, but its pages count as memory of the process, and a file that was cut short would end the
process with SIGBUS instead of being decoded again.
"""

from daptkit.data.store.layout import remove_layout
from daptkit.data.store.limit import LayoutUse, cache_limit, decoded_folder, layouts_in
from daptkit.data.store.store import DecodeCache, DecodeStore
from daptkit.data.store.writer import StoreWriter

__all__ = [
    "DecodeCache",
    "DecodeStore",
    "LayoutUse",
    "StoreWriter",
    "cache_limit",
    "decoded_folder",
    "layouts_in",
    "remove_layout",
]
