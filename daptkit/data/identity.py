"""Identifiers of patients, studies and series from file headers, hashed before anything is kept."""

from __future__ import annotations

import dataclasses
import hmac
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from daptkit.data.image import FileIdentity, Log
from daptkit.data.readers import Readers
from daptkit.data.refs import FileRef
from daptkit.data.table import ImageTable
from daptkit.errors import UsageError
from daptkit.run import sync_folder, writing

PREFIXES = {"patient": "p", "study": "st", "series": "se"}
"""Kind of identifier to how its hash begins."""

SHORTEST_SALT = 16
"""Bytes below which a salt could be found by trying."""

_DIGITS = 20


def default_salt_file() -> Path:
    """Return the user's own salt: ``daptkit/salt`` in ``$XDG_CONFIG_HOME``, else ``~/.config``."""
    shared = os.environ.get("XDG_CONFIG_HOME")
    return (Path(shared) if shared else Path.home() / ".config") / "daptkit" / "salt"


def load_salt(file: str | Path | None = None) -> bytes:
    """Return the secret that identifiers are hashed with; one salt gives a patient one hash.

    Args:
        file: a file that holds it, white space at its ends aside; it must exist, since a new salt
            in place of a mistyped one would hide that two sites share patients. ``None`` for the
            user's own, which is made at first use and can be read by the user alone.

    Raises:
        UsageError: no such file, or fewer than 16 bytes in it.
        DaptkitError: the user's own cannot be made.
    """
    path = default_salt_file() if file is None else Path(file)
    if file is None and not path.exists():
        _make_salt(path)
    try:
        salt = path.read_bytes().strip()
    except OSError as error:
        raise UsageError(
            f"cannot read the salt '{path}': {error.strerror or error}. Make one with "
            f"'openssl rand -hex 32 > FILE', and use the same file for every site."
        ) from error
    if len(salt) < SHORTEST_SALT:
        raise UsageError(
            f"the salt '{path}' has {len(salt)} bytes; at least {SHORTEST_SALT} are needed, since "
            "a short salt can be guessed. Make one with 'openssl rand -hex 32 > FILE'."
        )
    return salt


def hash_identifier(kind: str, raw: str, salt: bytes) -> str:
    """Return the HMAC-SHA256 of an identifier, its first 20 hex digits after a prefix.

    White space and NUL bytes at its ends are no part of an identifier; an empty one stays empty.

    Args:
        kind: a name of :data:`PREFIXES`; the same text of two kinds has two hashes.
        raw: what the header says.
        salt: the secret.
    """
    text = raw.strip(" \t\r\n\0")
    if not text:
        return ""
    content = f"{kind}\0{text}".encode("utf-8", "surrogateescape")
    return PREFIXES[kind] + hmac.new(salt, content, "sha256").hexdigest()[:_DIGITS]


def names_patients(table: ImageTable, readers: Readers) -> int:
    """Return how many images have a format whose headers name the patient."""
    found = (readers.find(ref.path) for ref in table.refs if isinstance(ref, FileRef))
    return sum(one is not None and one.identify is not None for one in found)


def with_identities(
    table: ImageTable, readers: Readers, salt: bytes, *, workers: int | None = None, log: Log
) -> ImageTable:
    """Fill in patients, studies and series from the headers of formats that name them.

    A column that the table has stays as it is: ids of two origins would make one patient two.

    Args:
        table: images of one domain.
        readers: the formats.
        salt: what the identifiers are hashed with.
        workers: threads that read headers; ``None`` for the CPU count, 0 like 1.
        log: told of headers that cannot be read.
    """
    paths = [ref.path if isinstance(ref, FileRef) else None for ref in table.refs]
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) if workers is None else workers)) as pool:
        distinct = list(dict.fromkeys(paths))
        found = dict(
            zip(distinct, pool.map(lambda p: _identify(p, readers), distinct), strict=True)
        )
    failed = sum(isinstance(one, _Unread) for one in found.values())
    if failed:
        log(f"{failed} files of the {table.domain} name no patient: their headers are unreadable.")
    if not any(isinstance(one, FileIdentity) for one in found.values()):
        return table

    def column(kind: str) -> tuple[str, ...]:
        hashes = {
            path: hash_identifier(kind, getattr(one, kind), salt)
            if isinstance(one, FileIdentity)
            else ""
            for path, one in found.items()
        }
        return tuple(hashes[path] for path in paths)

    extra = {
        name: table.extra[name] if any(table.extra.get(name, ())) else column(kind)
        for name, kind in (("study_id", "study"), ("series_id", "series"))
    }
    return dataclasses.replace(
        table,
        patients=table.patients if any(table.patients or ()) else column("patient"),
        extra={**table.extra, **extra},
    )


class _Unread:
    """In place of what a header says: it cannot be read."""


def _identify(path: Path | None, readers: Readers) -> FileIdentity | _Unread | None:
    """Return what a file's header says it is of; nothing if its format has no such header."""
    found = None if path is None else readers.find(path)
    if path is None or found is None or found.identify is None:
        return None
    try:
        return found.identify(path)
    except Exception:  # noqa: BLE001 - a plugin's message may hold what the header says
        return _Unread()


def _make_salt(path: Path) -> None:
    """Write a new salt, readable by the user alone; of two processes that do, the first wins."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(temporary, path)
            except FileExistsError:
                return
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
