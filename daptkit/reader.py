"""What authors of image formats use: the types that a reader returns, and its small helpers.

A reader is declared by a :class:`daptkit.plugin.ReaderSpec` and returns a :class:`DecodedImage`::

    import numpy as np
    from daptkit.errors import DataError
    from daptkit.reader import DecodedImage, type_range

    def read(path, frame):
        content = path.read_bytes()
        if len(content) != 4096:
            raise DataError("not 64 x 64 pixels of 8 bit")
        array = np.frombuffer(content, np.uint8).reshape(64, 64)
        return DecodedImage(array=array, value_range=type_range(array.dtype))
"""

from daptkit.data.decode import MAX_PIXELS
from daptkit.data.image import COVARIATES, DecodedImage, FileIdentity
from daptkit.data.pixels import on_black, type_range, upright
from daptkit.data.tiff import select_frame
from daptkit.data.window import parse_window

__all__ = [
    "COVARIATES",
    "MAX_PIXELS",
    "DecodedImage",
    "FileIdentity",
    "on_black",
    "parse_window",
    "select_frame",
    "type_range",
    "upright",
]
