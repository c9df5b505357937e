"""The files of a simulated site: images, manifest and truth."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daptkit.data.encode import encode_png
from daptkit.data.imageset import unreadable_message
from daptkit.data.population import Population, class_counts
from daptkit.data.readers import Readers
from daptkit.data.refs import decode_ref
from daptkit.data.rescan import Rescanner, pixel_kind
from daptkit.data.table import ImageTable, Indices
from daptkit.errors import DataError
from daptkit.run import atomic_write, claim_folder, write_json, writing
from daptkit.train.progress import Reporter

SITE = "simulated"
"""Site of every image in the manifest."""

_DIGITS = 6
_KEPT_COLUMNS = ("study_id", "series_id")


class SiteFolder:
    """Names of the files of a simulated site.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def images(self) -> Path:
        """Folder of the images."""
        return self.root / "images"

    @property
    def manifest(self) -> Path:
        """What ``adapt`` and ``evaluate`` read; written last, so it names finished files only."""
        return self.root / "manifest.csv"

    @property
    def truth(self) -> Path:
        """Everything that was done."""
        return self.root / "truth.json"

    def claim(self) -> None:
        """Make the folder, or accept an empty one.

        Raises:
            UsageError: it holds files, or is one.
            DaptkitError: it cannot be made.
        """
        claim_folder(self.root)
        with writing(self.images):
            self.images.mkdir()

    @contextlib.contextmanager
    def undone_on_failure(self) -> Iterator[None]:
        """Empty the folder, which this process has claimed, if the block fails."""
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, self.images, ignore_errors=True)
            undo.callback(self.truth.unlink, missing_ok=True)
            yield
            undo.pop_all()

    def image(self, row: int) -> str:
        """Return the name of an image, relative to the folder, from its row at the old site."""
        return f"{self.images.name}/{row:0{_DIGITS}d}.png"


@dataclass(frozen=True)
class Written:
    """What became of the images.

    Args:
        rows: rows of the old site whose image was written, sorted.
        skipped: (row, reason) of those that cannot be read; no path in it.
        kinds: kinds of pixels that were found, see :func:`daptkit.data.rescan.pixel_kind`.
    """

    rows: tuple[int, ...]
    skipped: tuple[tuple[int, str], ...]
    kinds: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class ImageWriter:
    """Reads images of the old site and writes those of the new.

    Args:
        table: images of the old site.
        readers: further formats.
        rescanner: what changes them.
        folder: where they go.
    """

    table: ImageTable
    readers: Readers
    rescanner: Rescanner
    folder: SiteFolder

    def write(self, row: int) -> tuple[str | None, str]:
        """Write one image.

        Returns:
            The kind of its pixels, or ``None`` and the reason why it cannot be read.

        Raises:
            UsageError: a stain, and the image is grey.
            DaptkitError: the file cannot be written.
        """
        try:
            image = decode_ref(self.table.refs[row], self.readers)
            pixels = self.rescanner.rescan(image, row)
        except DataError as error:
            return None, str(error)
        path = self.folder.root / self.folder.image(row)
        with writing(path):
            path.write_bytes(encode_png(pixels))
        return pixel_kind(image), ""

    def write_all(self, rows: Indices, workers: int | None, reporter: Reporter) -> Written:
        """Write images in parallel.

        Args:
            rows: (n,) rows to write, sorted.
            workers: threads; ``None`` for the CPU count, 0 like 1.
            reporter: shows the progress.
        """
        kinds: dict[int, str] = {}
        skipped: list[tuple[int, str]] = []
        threads = max(1, (os.cpu_count() or 1) if workers is None else workers)
        reporter.start("writing images", len(rows), 0)
        try:
            with ThreadPoolExecutor(threads) as pool:
                done = zip(rows.tolist(), pool.map(self.write, rows.tolist()), strict=True)
                for step, (row, (kind, reason)) in enumerate(done, 1):
                    if kind is None:
                        skipped.append((row, reason))
                    else:
                        kinds[row] = kind
                    reporter.update(step, {})
        finally:
            reporter.stop()
        return Written(tuple(kinds), tuple(skipped), frozenset(kinds.values()))


def refuse_unreadable(
    table: ImageTable, written: Written, tolerated: int, reporter: Reporter
) -> None:
    """List the images that cannot be read, and refuse more of them than are tolerated.

    Raises:
        DataError: more than that, or every image.
    """
    skipped = [(table.names[row], reason) for row, reason in written.skipped]
    for name, reason in skipped:
        reporter.line(f"skipped {name}: {reason}")
    if len(skipped) > tolerated or not written.rows:
        raise DataError(unreadable_message(table.domain, skipped, tolerated))


def manifest_csv(
    table: ImageTable, folder: SiteFolder, rows: Sequence[int], labels: Sequence[str]
) -> str:
    """Return the manifest of a simulated site.

    Patients, splits, studies and series are those of the old site; its equipment is not. Frames
    of one file whose patient is not known get a patient of their own, ``file-N``.

    Args:
        table: images of the old site.
        folder: names of the files.
        rows: rows of the old site.
        labels: the new label of every row of the old site.
    """
    extra = [name for name in _KEPT_COLUMNS if name in table.extra]
    patients = _patients(table)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "patient_id", "site", "split", *extra))
    for row in rows:
        own = (folder.image(row), labels[row], patients[row], SITE, table.splits[row])
        writer.writerow((*own, *(table.extra[name][row] for name in extra)))
    return text.getvalue()


def labels_truth(people: Population, folder: SiteFolder, written: Written) -> dict[str, Any]:
    """Return what is true of the labels of a simulated site, image by image and in all.

    Args:
        people: the images and labels.
        folder: names of the files.
        written: the images that could be read.
    """
    rows = written.rows
    before, meant, after = people.before, people.redefined, people.after
    counts = {
        "before": class_counts(before, people.candidates.tolist(), people.classes),
        "kept": class_counts(before, rows, people.classes),
        "after": class_counts(after, rows, people.classes),
    }
    moved = Counter((before[row], meant[row]) for row in rows if before[row] != meant[row])
    return {
        "counts": counts,
        "prior": {"asked": people.prior, **{name: shares(n) for name, n in counts.items()}},
        "redefined": [{"from": a, "to": b, "images": n} for (a, b), n in sorted(moved.items())],
        "label_noise": {"images": sum(meant[row] != after[row] for row in rows)},
        "skipped": [{"source_row": row, "reason": reason} for row, reason in written.skipped],
        "images": [
            {
                "file": folder.image(row),
                "source_row": row,
                "label_before": before[row],
                "label_redefined": meant[row],
                "label_after": after[row],
            }
            for row in rows
        ],
    }


def write_records(folder: SiteFolder, truth: Mapping[str, Any], manifest: str) -> None:
    """Write truth and manifest, in this order: a folder with a manifest is whole."""
    write_json(folder.truth, truth)
    atomic_write(folder.manifest, manifest)


def shares(counts: Mapping[str, int]) -> dict[str, float]:
    """Return counts as shares of their sum."""
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items()}


def _patients(table: ImageTable) -> list[str]:
    groups = table.groups().tolist()
    sizes = Counter(groups)
    known = table.patients or ("",) * len(table)
    return [
        patient or (f"file-{group}" if sizes[group] > 1 else "")
        for patient, group in zip(known, groups, strict=True)
    ]
