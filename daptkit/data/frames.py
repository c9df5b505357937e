"""Which frames of files with several are used: slices of a volume, images of a loop, pages."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from daptkit.data.decode import count_frames
from daptkit.data.readers import Readers
from daptkit.data.refs import FileRef, Ref
from daptkit.data.table import ImageTable
from daptkit.errors import DataError, UsageError, did_you_mean

POLICIES = ("first", "middle", "all")


def parse_frames(text: str) -> str:
    """Check ``--frames``: ``first``, ``middle``, ``all`` or a frame number from 0.

    Raises:
        UsageError: anything else.
    """
    if text in POLICIES or re.fullmatch(r"[0-9]{1,9}", text):
        return text
    raise UsageError(
        f"--frames is {', '.join(POLICIES)} or a number from 0, not {text!r}."
        + did_you_mean(text, POLICIES)
    )


def choose_frames(table: ImageTable, policy: str | None, readers: Readers) -> ImageTable:
    """Name a frame of every file that has several, or all of them.

    Frames that a manifest names stay. With ``all`` a file becomes one row a frame, ``name#frame``;
    else it keeps its row. Files whose header cannot be read stay as they are: decoding them is
    what reports them.

    Args:
        table: images of one domain.
        policy: what :func:`parse_frames` returns, or ``None`` to leave the table as it is.
        readers: further formats.
    """
    if policy is None:
        return table
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        counts = list(pool.map(lambda ref: _count(ref, readers), table.refs))
    rows: list[int] = []
    names: list[str] = []
    refs: list[Ref] = []
    for row, (name, ref, count) in enumerate(zip(table.names, table.refs, counts, strict=True)):
        for frame in _chosen(policy, count):
            rows.append(row)
            names.append(f"{name}#{frame}" if policy == "all" and frame is not None else name)
            if isinstance(ref, FileRef) and frame is not None:
                refs.append(FileRef(ref.path, frame))
            else:
                refs.append(ref)
    return dataclasses.replace(table.select(rows), names=tuple(names), refs=tuple(refs))


def _count(ref: Ref, readers: Readers) -> int:
    """Return the number of frames to choose from; 1 where there is nothing to choose."""
    if not isinstance(ref, FileRef) or ref.frame is not None:
        return 1
    try:
        # A damaged header may claim none; the file must not drop out unseen.
        return max(1, count_frames(ref.path, readers))
    except DataError:
        return 1


def _chosen(policy: str, count: int) -> Iterable[int | None]:
    if count == 1:
        return (None,)
    if policy == "all":
        return range(count)
    if policy == "first":
        return (0,)
    return (count // 2 if policy == "middle" else int(policy),)
