"""The source-only twin: the same data, options and seed without any method, trained once."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor

import daptkit
from daptkit.errors import DaptkitError
from daptkit.model import AdaptNet, default_cache_dir, load_model_folder
from daptkit.model.network import state_fingerprint
from daptkit.run import RunFolder, atomic_write, write_json
from daptkit.train.crossfit import HeldOut
from daptkit.train.inference import SplitPasses
from daptkit.train.job import FitResult
from daptkit.train.jobs import JobMaker
from daptkit.train.loop import Trainer
from daptkit.train.plugins import plugin_backbones

# Options that change neither the weights of a source-only model nor the order of its training.
_IRRELEVANT = frozenset(
    {
        "source",
        "target",
        "method",
        "method_options",
        "out",
        "device",
        "workers",
        "decide",
        "resume",
        "pretrained_path",
        "init_from",
        "trust",
        "skip_unreadable",
        "frames",
        "window",
        "reader_options",
        "allow_patient_overlap",
        "cache",
        "report",
        "from_scratch",
        "auto_batch",
        "guard",
        # The baseline is always the model of the last epoch.
        "select",
    }
)
_METRICS, _HELD_OUT, _CHECKSUMS = "metrics.jsonl", "held_out.safetensors", "sha256.json"


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A trained source-only model.

    Args:
        net: the model.
        fit: what training left behind.
        held_out: held-out logits, where an earlier run stored them.
        cached: whether an earlier run trained it.
    """

    net: AdaptNet
    fit: FitResult
    held_out: HeldOut | None
    cached: bool


def obtain_twin(folder: RunFolder, maker: JobMaker) -> Twin:
    """Return the source-only model of a run, from the cache where an earlier run trained it.

    Args:
        folder: where metrics and checkpoints go if it has to be trained.
        maker: makes the job; its methods play no part.
    """
    prepared = maker.prepared
    stored = maker.world.first(lambda: _reuse(folder, maker))
    if stored is not None:
        maker.reporter.line(f"{maker.label} twin: reused from an earlier run")
        net = prepared.network.make(maker.precision.device)
        net.load_state_dict(stored.state)
        passes = SplitPasses(net, prepared.data, maker.precision, delivered=True, world=maker.world)
        fit = FitResult(
            class_weights=torch.ones(len(prepared.classes)),
            parts=maker.config.grad_accum_steps,
            passes=passes,
        )
        return Twin(net=net, fit=fit, held_out=stored.held_out, cached=True)
    job = replace(maker, methods=()).make(prepared.data, folder)
    return Twin(net=job.net, fit=Trainer(job).run(), held_out=None, cached=False)


def keep_twin(folder: RunFolder, maker: JobMaker, held_out: HeldOut) -> None:
    """Copy a delivered source-only model to the cache; no path, id or prediction goes with it.

    Several runs may do so at once: the first entry stays, and they are all the same. A cache that
    cannot be written costs the next run its time and this run a line, nothing else.
    """
    final = _place(maker)
    made = final.with_name(f".new-{uuid.uuid4().hex}")
    try:
        made.mkdir(parents=True)
        shutil.copytree(folder.model, made / "model")
        files = {
            _METRICS: folder.metrics.read_bytes(),
            _HELD_OUT: save({"logits": held_out.logits, "labels": held_out.labels}),
        }
        for name, content in files.items():
            atomic_write(made / name, content)
        sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        write_json(made / _CHECKSUMS, {"files": sums, "folds": held_out.folds})
        if not final.exists():
            made.rename(final)
    except (OSError, DaptkitError) as error:
        if not final.exists():
            maker.reporter.line(f"the {maker.label} twin was not kept for further runs: {error}")
    finally:
        shutil.rmtree(made, ignore_errors=True)


@dataclass(frozen=True)
class _Stored:
    state: dict[str, Tensor]
    metrics: bytes
    held_out: HeldOut


def _reuse(folder: RunFolder, maker: JobMaker) -> _Stored | None:
    """Return the entry of the cache, if there is one, and write its metrics to the folder."""
    stored = _load(_place(maker), maker)
    if stored is not None:
        atomic_write(folder.metrics, stored.metrics)
    return stored


def _load(entry: Path, maker: JobMaker) -> _Stored | None:
    """Read a cache entry; a damaged one is told of, removed and counts as none."""
    try:
        if not entry.exists():
            return None
        net = load_model_folder(entry / "model", factories=plugin_backbones()).net
        meta = json.loads((entry / _CHECKSUMS).read_text())
        metrics, arrays = (_checked(entry / n, meta["files"][n]) for n in (_METRICS, _HELD_OUT))
        found = load(arrays)
        held_out = HeldOut(found["logits"], found["labels"], int(meta["folds"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, DaptkitError):
        maker.reporter.line(f"{maker.label} twin: the cached one is damaged and is trained again")
        shutil.rmtree(entry, ignore_errors=True)
        return None
    return _Stored(net.state_dict(), metrics, held_out)


def _checked(path: Path, digest: str) -> bytes:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{path.name} was altered")
    return content


def _place(maker: JobMaker) -> Path:
    return default_cache_dir() / "twins" / _key(maker)


def _key(maker: JobMaker) -> str:
    """Return the hash of everything that a source-only model and its metrics depend on."""
    prepared, data = maker.prepared, maker.prepared.data
    rows = (data.train_rows, data.val_rows, data.target_rows)
    identity = {
        "versions": [daptkit.__version__, torch.__version__, timm.__version__],
        "device": maker.precision.device.type,
        "data": prepared.fingerprints,
        "conversion": prepared.conversion.to_json(),
        "augmentation": prepared.augmentation,
        "rows": [hashlib.sha256(part.tobytes()).hexdigest() for part in rows],
        "initial": state_fingerprint(prepared.network.template),
        "model_package": prepared.network.package,
        "options": {
            name: value
            for name, value in sorted(vars(maker.config).items())
            if name not in _IRRELEVANT
        },
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
