"""The model folder: ``model.safetensors`` and ``model.json``, checked when loaded."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

import daptkit
from daptkit.errors import DaptkitError, DataError, PluginError, UsageError
from daptkit.model.alignments import (
    ALIGNMENTS_FILE,
    StoredAlignment,
    pack_alignments,
    read_alignments,
    required_packages,
)
from daptkit.model.build import Factories, build_model
from daptkit.model.config import ModelConfig
from daptkit.model.files import file_sha256
from daptkit.model.network import AdaptNet
from daptkit.run import atomic_write, sync_folder, write_json

FORMAT = 2
"""Newest format that is read and written.

Format 2 has alignments, or a rule whose calibration scales classes apart: an older daptkit would
leave them out.
"""
WEIGHTS_FILE = "model.safetensors"
META_FILE = "model.json"
_OWN_KEYS = ("format", "daptkit", "architecture", "classes", "conversion", "rule", "weights")
_ALIGNMENTS = "alignments"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model folder in memory.

    Args:
        net: the network in eval mode, on the CPU.
        config: its architecture.
        classes: class names in the order of the logits.
        conversion: how files become tensors, as JSON values.
        rule: calibration, priors and decision rule, as JSON values.
        meta: all of ``model.json``.
        alignments: what methods do at prediction.
    """

    net: AdaptNet
    config: ModelConfig
    classes: tuple[str, ...]
    conversion: dict[str, Any]
    rule: dict[str, Any]
    meta: dict[str, Any]
    alignments: tuple[StoredAlignment, ...] = ()


def save_model_folder(
    folder: str | Path,
    net: AdaptNet,
    config: ModelConfig,
    *,
    classes: Sequence[str],
    conversion: Mapping[str, Any],
    rule: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
    alignments: Sequence[StoredAlignment] = (),
) -> None:
    """Write the model folder under another name, then rename it: it is whole or absent.

    Args:
        folder: where to; a model folder that is there is replaced.
        net: trained network, on any device.
        config: its architecture.
        classes: class names in the order of the logits.
        conversion: how files become tensors, as JSON values.
        rule: calibration, priors and decision rule, as JSON values.
        extra: further entries of ``model.json``: ``requires`` lists the names of packages
            needed at prediction, beside those of ``alignments``; provenance, such as the sha256 of
            the loaded weights, goes here.
        alignments: what methods do at prediction.

    Raises:
        UsageError: something else than a model folder is at ``folder``.
        DaptkitError: the folder cannot be written.
        ValueError: ``extra`` names an entry of the format, or a value is not JSON.
    """
    folder = Path(folder)
    extra = dict(extra or {})
    if taken := set(extra) & {*_OWN_KEYS, "sha256", _ALIGNMENTS}:
        raise ValueError(f"extra may not set {', '.join(sorted(taken))}")
    if folder.exists() and not (folder / META_FILE).is_file() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not a model folder and not empty; it is left alone.")
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in net.state_dict().items()}
    temporary = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
        content = save(tensors)
        atomic_write(temporary / WEIGHTS_FILE, content)
        meta = {
            "format": _format_needed(rule, alignments),
            "daptkit": daptkit.__version__,
            "architecture": config.to_json(),
            "classes": list(classes),
            "conversion": dict(conversion),
            "rule": dict(rule),
            "weights": {
                "file": WEIGHTS_FILE,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            },
            "requires": [],
            **extra,
        }
        if alignments:
            packed, meta[_ALIGNMENTS] = pack_alignments(alignments)
            atomic_write(temporary / ALIGNMENTS_FILE, packed)
            meta["requires"] = sorted({*meta["requires"], *required_packages(alignments)})
        write_json(temporary / META_FILE, {**meta, "sha256": _meta_digest(meta)})
        _publish(temporary, folder)
    except OSError as error:
        raise DaptkitError(
            f"model folder {folder} cannot be written: {error.strerror or error}."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _format_needed(rule: Mapping[str, Any], alignments: Sequence[StoredAlignment]) -> int:
    """Return the oldest format whose readers understand all of it, so that they can read on."""
    return 2 if alignments or rule.get("calibration", {}).get("scale") else 1


def _publish(temporary: Path, folder: Path) -> None:
    """Give the finished folder its name; an older one steps aside first, as renames need."""
    old = temporary.with_name(f"{temporary.name}-old")
    if folder.exists():
        folder.replace(old)
    temporary.replace(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def load_model_folder(folder: str | Path, *, factories: Factories | None = None) -> LoadedModel:
    """Load a model folder, without network and without running code from it.

    Args:
        folder: what :func:`save_model_folder` wrote.
        factories: backbones of plugins by name.

    Raises:
        DataError: missing, truncated, altered, written by a newer version, or a network that
            this installation cannot build.
        PluginError: a package that the model requires is not installed.
    """
    folder = Path(folder)
    meta = _read_meta(folder)
    for package in meta.get("requires", []):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise PluginError(
                f"model folder {folder} needs the package {package} at prediction, which is not "
                f"installed. Install it: pip install {package}"
            ) from error
    config = ModelConfig.from_json(meta["architecture"])
    if config.num_classes != len(meta["classes"]):
        raise DataError(f"model folder {folder}: the head and the classes differ in number.")
    tensors = _read_weights(folder, meta["weights"])
    # The random weights are overwritten at once, so they must not cost the caller's seed a draw.
    try:
        with torch.random.fork_rng(devices=[]):
            net = build_model(config, factories=factories)
    except UsageError as error:
        raise DataError(
            f"model folder {folder}: this installation cannot build its network, a package or "
            f"another version of timm may be missing: {error}"
        ) from error
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(
            f"model folder {folder}: the weights do not fit the architecture {config.name} as "
            f"this installation builds it: {str(error).splitlines()[-1].strip()}"
        ) from error
    net.eval()
    stored = meta.get(_ALIGNMENTS)
    return LoadedModel(
        net=net,
        config=config,
        classes=tuple(meta["classes"]),
        conversion=meta["conversion"],
        rule=meta["rule"],
        meta=meta,
        alignments=()
        if stored is None
        else read_alignments(folder, stored, tuple(meta["classes"])),
    )


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META_FILE
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder} is not a model folder: it has no {META_FILE}.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"model folder {folder}: {META_FILE} is not readable: {error}.") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("format"), int):
        raise DataError(f"model folder {folder}: {META_FILE} is not a model description.")
    if meta["format"] > FORMAT:
        raise DataError(
            f"model folder {folder} has format {meta['format']}, written by daptkit "
            f"{meta.get('daptkit')}; this is daptkit {daptkit.__version__}. Update daptkit."
        )
    if meta.get("sha256") != _meta_digest(meta) or any(key not in meta for key in _OWN_KEYS):
        raise DataError(
            f"model folder {folder}: {META_FILE} was altered or damaged. Copy the folder again."
        )
    return meta


def _read_weights(folder: Path, expected: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise DataError(f"model folder {folder}: {WEIGHTS_FILE} is missing.")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise DataError(
            f"model folder {folder}: {WEIGHTS_FILE} has {size} bytes instead of "
            f"{expected['bytes']}. Copy the folder again."
        )
    if file_sha256(path) != expected["sha256"]:
        raise DataError(
            f"model folder {folder}: {WEIGHTS_FILE} was altered or damaged (sha256 differs). Copy "
            "the folder again."
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"model folder {folder}: {WEIGHTS_FILE} is not safetensors.") from error


def _meta_digest(meta: Mapping[str, Any]) -> str:
    content = {k: v for k, v in meta.items() if k != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
