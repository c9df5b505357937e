"""Running a stored model over images, for predictions and scores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from daptkit.data import (
    Conversion,
    ImageSet,
    ImageTable,
    Readers,
    choose_frames,
    read_table,
)
from daptkit.errors import DataError, UsageError
from daptkit.host.discovery import discover
from daptkit.model import LoadedModel, load_model_folder
from daptkit.run import RunFolder
from daptkit.shift import PredictionRule
from daptkit.train.aligning import sights_of
from daptkit.train.alignments import load_alignments
from daptkit.train.device import full_precision, resolve_device
from daptkit.train.domains import Domain
from daptkit.train.guard import memory_guard
from daptkit.train.inference import all_rows, as_numpy, forward_rows
from daptkit.train.inputs import align
from daptkit.train.plugins import plugin_backbones, plugin_readers
from daptkit.train.progress import Reporter
from daptkit.train.tables import decode_cache
from daptkit.train.trunk import cached_trunk

DOMAINS = ("target", "source")
_ADVICE = "give fewer images at a time, or use --device cpu"
_OF_ADAPT = ("--frames", "--reader-options", "--in-chans")


def load_run(run: str | Path, domain: str) -> tuple[LoadedModel, PredictionRule]:
    """Load the model and the prediction rule of a run folder or of a model folder.

    Raises:
        UsageError: ``domain`` is neither ``"target"`` nor ``"source"``.
        DataError: there is no such run, or it has no model yet.
    """
    if domain not in DOMAINS:
        raise UsageError(f"--domain is target or source, not '{domain}'.")
    folder = RunFolder(run)
    if not folder.root.exists():
        raise DataError(f"the run '{run}' does not exist.")
    if not folder.model.is_dir() and folder.config.exists():
        raise DataError(
            f"the run '{run}' has no model yet; finish it with"
            f" 'daptkit adapt --config {folder.config} --out {run} --resume'."
        )
    found = folder.model if folder.model.is_dir() else folder.root
    loaded = load_model_folder(found, factories=plugin_backbones())
    return loaded, PredictionRule.from_json(loaded.rule)


def read_images(
    loaded: LoadedModel, path: str | Path, *, domain: str, labelled: bool, reporter: Reporter
) -> tuple[ImageTable, Readers]:
    """List the images of a PATH, to be read as those that a model was trained on were.

    Args:
        loaded: the model; its frames and options of readers are used.
        path: what the user named.
        domain: ``"source"`` or ``"target"``, for messages.
        labelled: whether labels are read.
        reporter: told of what is left out, and of readers of another version than the model's.

    Raises:
        DataError: nothing usable is there.
        UsageError: a reader no longer has an option that the model was trained with.
    """
    conversion = Conversion.from_json(loaded.conversion)
    here = discover().names("reader")
    options = {n: used["options"] for n, used in conversion.readers.items() if n in here}
    readers = plugin_readers(reporter.line, options)
    for one in readers.formats:
        trained = conversion.readers.get(one.name, one.to_json())["package"]
        if one.origin != trained:
            reporter.line(
                f"warning: the model was trained on images that {trained} read; here {one.origin}"
                " does."
            )
    table = read_table(path, domain=domain, labelled=labelled, log=reporter.line, readers=readers)
    return choose_frames(table, conversion.frames, readers), readers


@contextlib.contextmanager
def _as_trained() -> Iterator[None]:
    """Say of advice to read images in another way that it is advice for training."""
    try:
        yield
    except DataError as error:
        if not any(option in str(error) for option in _OF_ADAPT):
            raise
        raise DataError(
            f"{error} A model reads images as those that it was trained on: of the options named"
            " here, those that say how images are read are options of 'daptkit adapt'."
        ) from error


def run_model(
    loaded: LoadedModel,
    table: ImageTable,
    readers: Readers,
    *,
    domain: str,
    device: str,
    workers: int | None,
    skip_unreadable: int,
    cache: str | None,
    reporter: Reporter,
    shared_trunk: bool = False,
) -> tuple[ImageTable, npt.NDArray[np.float64]]:
    """Decode images and run a model over them.

    Args:
        loaded: the model, and how its images were converted.
        table: which images.
        readers: further formats.
        domain: ``"target"`` or ``"source"``: what the model's methods make of the images.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        workers: threads that decode images.
        skip_unreadable: tolerate and list up to this many unreadable images.
        cache: folder of decoded images, ``"off"``, or ``None`` for the user's cache.
        reporter: told of each image that is left out, and of methods of another major version than
            the model's.
        shared_trunk: whether others with the same backbone see these images too, as the models of
            frozen runs: its features are then kept in the user's cache.

    Returns:
        The table of the readable images and their logits, (N, K).

    Raises:
        DataError: too many unreadable images, or a method of the model does not fit the installed
            version.
        PluginError: a method of the model is not installed, or broken.
    """
    alignments = load_alignments(loaded.alignments, reporter.line)
    with memory_guard(_ADVICE), _as_trained():
        images = ImageSet(
            table,
            Conversion.from_json(loaded.conversion),
            workers=workers,
            skip_unreadable=skip_unreadable,
            readers=readers,
            cache=decode_cache(cache, reporter.line),
        )
        for name, reason in images.skipped:
            reporter.line(f"skipped {name}: {reason}")
        precision = full_precision(resolve_device(device))
        net = loaded.net.to(precision.device)
        seen = Domain(images=images, groups=images.table.groups())
        if alignments.changes_images:
            seen = align(
                seen,
                alignments,
                domain,
                precision.device,
                fingerprint=next(s.fingerprint() for s in loaded.alignments if "inputs" in s.roles),
            )
        sight = sights_of(alignments.to(precision.device))(domain)
        if shared_trunk and not sight.statistics:
            trunk = cached_trunk(net, seen, loaded.conversion, precision.device)
            seen = replace(seen, trunk=trunk)
        logits, _ = forward_rows(net, seen, all_rows(seen), precision=precision, sight=sight)
    return images.table, as_numpy(logits)
