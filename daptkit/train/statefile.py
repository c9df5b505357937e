"""The file of one checkpoint: its tensors as safetensors, the rest as a small torch file.

Layout: a magic line with the version of the format; the SHA-256 in hex, of that line and of all
that follows the digest, and a newline; the length of the safetensors part in eight bytes, little
endian; the safetensors part; what ``torch.save`` makes of the rest.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from daptkit.errors import DaptkitError

_PREFIX = b"daptkit-checkpoint-"
_MAGIC = _PREFIX + b"2\n"
_FORMAT_1 = _PREFIX + b"1\n"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What goes into the safetensors part, by its name there; tensors of other kinds do not."""

_Place = tuple[tuple[Hashable, ...], str, tuple[int, ...] | None]
"""Keys that lead to a tensor, its name in the safetensors part, its strides where these differ."""


def pack_state(state: dict[str, Any]) -> list[bytes | Tensor]:
    """Return what follows the digest, piece by piece; tensors are those of the state, not copies.

    Every plain tensor that is reached through dictionaries alone goes into the safetensors part,
    tensors that share all of their memory (tied weights) once.
    """
    tensors: dict[str, Tensor] = {}
    places: list[_Place] = []
    tree = _take_out(state, (), tensors, places, {})
    rest = io.BytesIO()
    torch.save({"tree": tree, "places": places}, rest)
    header = _header(tensors)
    length = len(header) + sum(value.nbytes for value in tensors.values())
    return [length.to_bytes(8, "little") + header, *tensors.values(), rest.getvalue()]


def write_packed(file: BinaryIO, parts: Iterable[bytes | Tensor]) -> None:
    """Write a checkpoint without a second copy of its tensors in memory."""
    file.write(_MAGIC + b"0" * 64 + b"\n")
    digest = hashlib.sha256(_MAGIC)
    for part in parts:
        content = _bytes_of(part) if isinstance(part, Tensor) else part
        digest.update(content)
        file.write(content)
    file.seek(len(_MAGIC))
    file.write(digest.hexdigest().encode())


def read_state(path: Path) -> dict[str, Any] | None:
    """Return the state, on the CPU, or ``None`` if the file is damaged.

    Nothing is parsed before the digest is found right.

    Raises:
        OSError: the file cannot be read.
        DaptkitError: it is whole, and of another format.
    """
    with path.open("rb") as file:
        magic, said = file.readline(64), file.read(65)
        left = os.fstat(file.fileno()).st_size - file.tell()
        length = file.read(8)
        # A damaged length must not become a request for that much memory.
        tensors = file.read(min(int.from_bytes(length, "little"), left))
        rest = file.read()
    # Format 1 left its magic line out of the digest.
    digest = hashlib.sha256(b"" if magic == _FORMAT_1 else magic)
    for part in (length, tensors, rest):
        digest.update(part)
    if not magic.startswith(_PREFIX) or said != digest.hexdigest().encode() + b"\n":
        return None
    if magic != _MAGIC:
        raise DaptkitError(
            f"'{path}' is a checkpoint of format {_version(magic)}, and this daptkit reads format"
            f" {_version(_MAGIC)}: continue with the daptkit that wrote it, or start again in a"
            " new --out."
        )
    try:
        named = load(tensors)
        found = torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True)
        return _put_back(found["tree"], found["places"], named)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError):
        return None


def _version(magic: bytes) -> str:
    return magic[len(_PREFIX) :].strip().decode(errors="replace")


def _take_out(
    value: Any,
    path: tuple[Hashable, ...],
    tensors: dict[str, Tensor],
    places: list[_Place],
    names: dict[Hashable, str],
) -> Any:
    """Return the tree with ``None`` for each tensor that is moved to ``tensors``.

    Args:
        value: the tree, or a part of it.
        path: keys that lead to the part.
        tensors: filled with the tensors by name.
        places: filled with where each one belongs.
        names: filled with the name of each piece of memory.
    """
    if type(value) is dict:
        return {
            key: _take_out(item, (*path, key), tensors, places, names)
            for key, item in value.items()
        }
    if not _is_plain(value):
        return value
    memory = (value.device, value.dtype, value.data_ptr(), tuple(value.shape), value.stride())
    if memory not in names:
        name = "/".join(map(str, path))
        while name in tensors:  # the keys 1 and "1" look the same
            name += "'"
        names[memory], tensors[name] = name, value
    # A dense tensor keeps its strides, such as channels_last, as arithmetic may follow them.
    kept = torch.empty_like(value, device="meta").stride()
    usual = torch.empty(value.shape, device="meta").stride()
    places.append((path, names[memory], kept if kept != usual else None))
    return None


def _is_plain(value: Any) -> bool:
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.layout is torch.strided
        and value.dtype in _DTYPES
        and not value.is_neg()
    )


def _put_back(
    tree: dict[str, Any], places: Iterable[_Place], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    for path, name, strides in places:
        value = tensors[name]
        if strides is not None and value.stride() != strides:
            # In place of the other, so that those who share the memory share it again.
            value = torch.empty_strided(value.shape, strides, dtype=value.dtype).copy_(value)
            tensors[name] = value
        part: Any = tree
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
    return tree


def _header(tensors: dict[str, Tensor]) -> bytes:
    """Return how a safetensors file of these tensors begins.

    The library's own ``save`` returns one string of bytes, which takes the memory of all tensors
    once more; https://github.com/huggingface/safetensors#format describes the layout.
    """
    entries: dict[str, Any] = {}
    end = 0
    for name, value in tensors.items():
        start, end = end, end + value.nbytes
        entries[name] = {
            "dtype": _DTYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(value: Tensor) -> memoryview:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
