"""The images of a run as its options name them, before any is decoded, and where they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from daptkit.config import CACHE_OFF, AdaptConfig
from daptkit.data import (
    DecodeCache,
    ImageTable,
    Readers,
    choose_frames,
    choose_split,
    concat_tables,
    find_overlaps,
    parse_frames,
    read_table,
    refuse_overlap,
    warn_default_split,
    warn_unknown_patients,
)
from daptkit.data.image import Log
from daptkit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Both domains.

    Args:
        source: images that are trained on or held out.
        target: every image of the target.
        overlaps: where patients are in two places that must not share any, to their number.
    """

    source: ImageTable
    target: ImageTable
    overlaps: Mapping[str, int]


def decode_cache(option: str | None, log: Log) -> DecodeCache | None:
    """Return where decoded images are kept between runs.

    Args:
        option: ``--cache``: a folder, ``"off"``, or ``None`` for the user's cache.
        log: told of what cannot be kept.

    Raises:
        UsageError: it is no folder, or the limit in the environment is malformed.
    """
    if option == CACHE_OFF:
        return None
    if option is None:
        return DecodeCache(log=log)
    if not option or Path(option).is_file():
        raise UsageError(f"--cache takes a folder or {CACHE_OFF}, not '{option}'.")
    return DecodeCache(Path(option), log=log)


def read_tables(config: AdaptConfig, readers: Readers, log: Log) -> Tables:
    """List the images of both domains.

    Args:
        config: options.
        readers: further formats.
        log: told of what is left out and of what cannot be trusted.

    Raises:
        DataError: nothing usable, or a patient where another must be.
        UsageError: ``--frames`` that means nothing.
    """
    frames = None if config.frames is None else parse_frames(config.frames)

    def read(path: str, domain: str, *, labelled: bool) -> ImageTable:
        table = read_table(path, domain=domain, labelled=labelled, log=log, readers=readers)
        return choose_frames(table, frames, readers)

    sources = [read(path, "source", labelled=True) for path in config.source]
    target = read(config.target, "target", labelled=False)
    source = concat_tables(sources)
    for table in (source, target):
        warn_unknown_patients(table, log)
    overlaps = find_overlaps(sources, target)
    if not config.allow_patient_overlap:
        refuse_overlap(overlaps)
    for overlap in overlaps:
        log(f"warning: {overlap} Accepted by --allow-patient-overlap.")
    warn_default_split(source, config.source_split, "train", "--source-split", log)
    warn_default_split(target, config.target_split, "train", "--target-split", log)
    chosen = choose_split(source, config.source_split, "train")
    held_out = np.flatnonzero(np.array(source.splits) == "val")
    source = source.select(np.union1d(chosen, held_out))
    choose_split(target, config.target_split, "train")
    return Tables(
        source=source,
        target=target,
        overlaps={overlap.where: overlap.patients for overlap in overlaps},
    )
