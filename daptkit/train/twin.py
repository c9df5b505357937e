"""The source-only twin: the same data, options and seed without any method, trained once."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import daptkit
from daptkit.config import AdaptConfig
from daptkit.errors import DaptkitError
from daptkit.model import AdaptNet, default_cache_dir, load_model_folder
from daptkit.run import RunFolder, atomic_write, replace_folder
from daptkit.train.device import Precision
from daptkit.train.job import FitResult
from daptkit.train.jobs import JobMaker
from daptkit.train.loop import Trainer
from daptkit.train.plugins import plugin_backbones
from daptkit.train.prepare import Prepared, state_hash

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
        "skip_unreadable",
    }
)


@dataclass(frozen=True)
class Twin:
    """A trained source-only model, and whether an earlier run had trained it."""

    net: AdaptNet
    fit: FitResult
    cached: bool


def obtain_twin(folder: RunFolder, maker: JobMaker) -> Twin:
    """Return the source-only model of a run, from the cache where an earlier run trained it.

    Args:
        folder: where metrics and checkpoints go if it has to be trained.
        maker: makes the job; its methods play no part.
    """
    prepared, device = maker.prepared, maker.precision.device
    cached = _place(maker)
    net = _load(cached, device)
    if net is not None:
        maker.reporter.line("source-only twin: reused from an earlier run")
        atomic_write(folder.metrics, (cached / "metrics.jsonl").read_bytes())
        ones = torch.ones(len(prepared.classes))
        return Twin(net, FitResult(ones, None, {}, (), 0, 0.0), cached=True)
    job = replace(maker, methods=()).make(prepared.data, folder)
    return Twin(job.net, Trainer(job).run(), cached=False)


def keep_twin(folder: RunFolder, maker: JobMaker) -> None:
    """Copy a delivered source-only model to the cache; no path, id or prediction goes with it."""
    final = _place(maker)
    if final.exists():
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".new-", dir=final.parent))
    shutil.copytree(folder.model, made / "model")
    shutil.copyfile(folder.metrics, made / "metrics.jsonl")
    replace_folder(made, final)


def _place(maker: JobMaker) -> Path:
    key = _key(maker.prepared, maker.config, maker.precision)
    return default_cache_dir() / "twins" / key


def _load(cached: Path, device: torch.device) -> AdaptNet | None:
    if not (cached / "metrics.jsonl").exists():
        return None
    try:
        return load_model_folder(cached / "model", factories=plugin_backbones()).net.to(device)
    except DaptkitError:
        # A damaged entry is replaced by what this run trains.
        shutil.rmtree(cached)
        return None


def _key(prepared: Prepared, config: AdaptConfig, precision: Precision) -> str:
    options = {
        name: value for name, value in sorted(vars(config).items()) if name not in _IRRELEVANT
    }
    identity = {
        "daptkit": daptkit.__version__,
        "torch": torch.__version__,
        "device": precision.device.type,
        "data": prepared.fingerprints,
        "conversion": prepared.conversion.to_json(),
        "augmentation": prepared.augmentation,
        "rows": [
            hashlib.sha256(rows.tobytes()).hexdigest()
            for rows in (
                prepared.data.train_rows,
                prepared.data.val_rows,
                prepared.data.target_rows,
            )
        ],
        "initial": state_hash(prepared.network.make(torch.device("cpu"))),
        "options": options,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()
