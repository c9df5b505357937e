"""Which files are DICOM, from their first bytes; imports nothing."""

from __future__ import annotations

PREAMBLE = 128
"""Bytes before the four that say DICM."""

_DIRECTORY = b"1.2.840.10008.1.3.10"


def is_dicom(start: bytes) -> bool:
    """Return whether a file is a DICOM object other than a DICOMDIR.

    Args:
        start: first bytes of the file, 512 or more; its meta header lies in them.
    """
    return has_signature(start) and _DIRECTORY not in start


def has_signature(start: bytes) -> bool:
    """Return whether the first bytes of a file are a preamble and its signature."""
    return start[PREAMBLE : PREAMBLE + 4] == b"DICM"
