"""What is in a user's data, and what is wrong with it, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daptkit.data import Readers, choose_frames, find_overlaps, parse_frames, read_table
from daptkit.data.check import (
    ERROR,
    NEAR,
    ROLES,
    WARNING,
    Problem,
    Scan,
    choose_role,
    domain_problems,
    find_duplicates,
    has_labels,
    joint_problems,
    manifest_path,
    require_files,
    scan_table,
    summarise,
    write_manifest,
)
from daptkit.data.identity import load_salt, names_patients, with_identities
from daptkit.data.table import ImageTable
from daptkit.errors import UsageError
from daptkit.train.plugins import parse_reader_options, plugin_readers
from daptkit.train.progress import Reporter, SilentReporter

FORMAT = 1
"""Number of the form of the result; keys are only added within one."""


def check_data(
    path: str | Path,
    *,
    target: str | Path | None = None,
    role: str = "auto",
    frames: str | None = None,
    reader_options: Sequence[str] = (),
    manifest: str | Path | None = None,
    salt_file: str | Path | None = None,
    skip_unreadable: int = 0,
    allow_patient_overlap: bool = False,
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Read every image of one PATH or two once, and say what is there and what is wrong.

    Args:
        path: PATH of images.
        target: PATH of the target's images; then ``path`` is the source.
        role: what ``path`` is: ``"source"``, ``"target"``, or ``"auto"``: the source where there
            are labels.
        frames: frames of files with several, as ``adapt`` takes it.
        reader_options: ``READER.OPTION=VALUE`` texts, likewise.
        manifest: new CSV to write of the readable images of ``path``. Formats that name the
            patient give ids to it, hashed.
        salt_file: file with the salt of those hashes; the user's own without it.
        skip_unreadable: unreadable images that are no error.
        allow_patient_overlap: whether a patient in two splits or domains is no error.
        workers: threads that decode images.
        reporter: where progress goes.

    Returns:
        JSON values: ``format``, ``ok`` (whether there is no error), ``domains`` (name to counts,
        sizes, levels and so on), ``duplicates`` (``exact`` and ``near`` groups), ``problems``
        (level, code, domain, message) and ``manifest`` (what was written, or ``None``).

    Raises:
        DataError: nothing usable is there.
        UsageError: options that cannot work.
        DaptkitError: the manifest cannot be written.
    """
    report = reporter or SilentReporter()
    wanted = _wanted_manifest(manifest, salt_file)
    salt = None if wanted is None else load_salt(salt_file)
    readers = plugin_readers(report.line, parse_reader_options(reader_options))
    paths = _paths(path, target, role, readers)
    listing = _Listing(None if frames is None else parse_frames(frames), readers, salt, workers)
    tables = {domain: listing.read(where, domain) for domain, where in paths.items()}
    if wanted is not None:
        require_files(next(iter(tables.values())))
    scans = _scan(list(tables.values()), readers, workers, report)
    report.line(f"comparing {sum(len(scan.readable) for scan in scans)} images")
    duplicates = find_duplicates(scans, workers)
    sources = [table for domain, table in tables.items() if domain == "source"]
    problems = [
        *(problem for scan in scans for problem in domain_problems(scan)),
        *_ignored_labels(paths),
        *joint_problems(
            scans,
            duplicates,
            find_overlaps(sources, tables.get("target")),
            skip_unreadable=skip_unreadable,
            allow_patient_overlap=allow_patient_overlap,
        ),
    ]
    found = {
        "format": FORMAT,
        "ok": all(problem.level != ERROR for problem in problems),
        "domains": {
            domain: {"path": str(paths[domain]), **summarise(scan, listing.notes[domain])}
            for domain, scan in zip(tables, scans, strict=True)
        },
        "duplicates": {
            "differing_bits": NEAR,
            "exact": [group.to_json() for group in duplicates if group.exact],
            "near": [group.to_json() for group in duplicates if not group.exact],
        },
        "problems": [p.to_json() for p in sorted(problems, key=lambda p: p.level != ERROR)],
        "manifest": None if wanted is None else _manifest(scans[0], wanted),
    }
    result: dict[str, Any] = _printable(found)
    return result


def _wanted_manifest(manifest: str | Path | None, salt_file: str | Path | None) -> Path | None:
    if manifest is not None:
        return manifest_path(manifest)
    if salt_file is not None:
        raise UsageError("--salt-file is the salt of the ids of --write-manifest; give both.")
    return None


def _paths(
    path: str | Path, target: str | Path | None, role: str, readers: Readers
) -> dict[str, str | Path]:
    """Return the PATH of each domain, that of the manifest first."""
    if role not in ROLES:
        raise UsageError(f"--as is one of {', '.join(ROLES)}, not {role!r}.")
    if target is None:
        return {choose_role(path, role, readers): path}
    if role == "target":
        raise UsageError("--target is checked against a source; leave out --as target.")
    return {"source": path, "target": target}


@dataclass
class _Listing:
    """How images are listed, and what is said of each domain when they are."""

    frames: str | None
    readers: Readers
    salt: bytes | None
    workers: int | None
    notes: dict[str, list[str]] = field(default_factory=dict)

    def read(self, path: str | Path, domain: str) -> ImageTable:
        """List the images of a PATH, with hashed ids where a manifest is to be written."""
        notes = self.notes.setdefault(domain, [])
        table = read_table(
            path,
            domain=domain,
            labelled=domain == "source",
            log=notes.append,
            readers=self.readers,
        )
        # That labels of a target are ignored is listed as a problem.
        notes[:] = [note for note in notes if not note.startswith("labels of")]
        table = choose_frames(table, self.frames, self.readers)
        if self.salt is None:
            headers = 0 if any(table.patients or ()) else names_patients(table, self.readers)
            if headers:
                notes.append(
                    f"the headers of {headers} images name a patient; --write-manifest takes them "
                    "from there, hashed."
                )
            return table
        return with_identities(
            table, self.readers, self.salt, workers=self.workers, log=notes.append
        )


def _scan(
    tables: Sequence[ImageTable], readers: Readers, workers: int | None, report: Reporter
) -> list[Scan]:
    scans: list[Scan] = []
    report.start("reading images", sum(map(len, tables)), 0)
    behind = 0

    def advance(images: int) -> None:
        report.advance(behind + images)

    try:
        for table in tables:
            scans.append(scan_table(table, readers, workers=workers, advance=advance))
            behind += len(table)
    finally:
        report.stop()
    return scans


def _ignored_labels(paths: Mapping[str, str | Path]) -> Iterator[Problem]:
    if "target" in paths and has_labels(Path(paths["target"])):
        yield Problem(
            level=WARNING,
            code="target_labels",
            domain="target",
            message="there are labels, which nothing that trains or selects reads.",
        )


def _printable(value: Any) -> Any:
    """Return JSON values in which the bytes of a name that is not UTF-8 are replaced by a mark."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return value


def _manifest(scan: Scan, path: Path) -> dict[str, Any]:
    left_out = write_manifest(scan, path)
    return {
        "file": str(path),
        "domain": scan.table.domain,
        "rows": len(scan.table) - len(left_out),
        "left_out": [{"name": name, "reason": reason} for name, reason in left_out],
    }
