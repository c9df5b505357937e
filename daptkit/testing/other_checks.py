"""Checks of readers, models, scores and listeners to events."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from daptkit.errors import DataError
from daptkit.host.lookup import Installed
from daptkit.plugin import Event, ModelSpec, ReaderSpec, ScoreSpec, build_options
from daptkit.testing.case import CPU, NotApplicable, ensure
from daptkit.testing.spec_checks import ensure_options, ensure_torch_free

_CANARY = "patient-4711"
"""Stands in file names and contents for what no message may repeat."""
_CLASSES, _IMAGES = 3, 40
_EVENTS = ("fit_start", "log", "epoch_end", "unfreeze", "fit_end")


@dataclass(frozen=True, kw_only=True)
class PluginCase:
    """A plugin of a kind other than methods, and where to check it."""

    installed: Installed
    device: torch.device = CPU

    @property
    def spec(self) -> Any:
        """Its specification."""
        return self.installed.spec


PluginCheck = Callable[[PluginCase], None]


def torch_free_import(case: PluginCase) -> None:
    """The module that ``plugins list`` imports does not import torch."""
    ensure_torch_free(case.installed.entry.module)


def summary(case: PluginCase) -> None:
    """There is a line for ``plugins list``."""
    ensure(str(case.spec.summary).strip().endswith("."), "the summary is to be one sentence")


def option_texts_and_bounds(case: PluginCase) -> None:
    """Every option has a help text that ends in a full stop, and numbers have bounds."""
    ensure_options(case.spec.options)


def reader_functions(case: PluginCase) -> None:
    """What the specification names can be imported and called."""
    spec = _of(case, ReaderSpec)
    for name in filter(None, (spec.factory, spec.count, spec.sniff, spec.identify)):
        case.installed.loaded.load_function(name)


def reader_refuses_rubbish(case: PluginCase) -> None:
    """Files that are empty or of another kind are a DataError that repeats nothing of them."""
    spec = _of(case, ReaderSpec)
    options = build_options(spec.options, {})
    extra = () if not vars(options) else (options,)
    with tempfile.TemporaryDirectory() as folder:
        for content in (b"", f"{_CANARY}\n".encode() * 40, bytes(range(256)) * 8):
            path = Path(folder) / f"{_CANARY}{spec.extensions[0]}"
            path.write_bytes(content)
            _refuses(case, spec.factory, content, path, None, *extra)
            if spec.count is not None:
                _refuses(case, spec.count, content, path, *extra, may_answer=True)


def _refuses(
    case: PluginCase, name: str, content: bytes, *arguments: Any, may_answer: bool = False
) -> None:
    function = case.installed.loaded.load_function(name)
    what = f"{name} of a file of {len(content)} bytes of another format"
    try:
        function(*arguments)
    except DataError as error:
        ensure(_CANARY not in str(error), f"{what}: the message holds its name or its content")
        return
    except Exception as error:
        raise AssertionError(f"{what} raises {type(error).__name__}, not a DataError") from error
    ensure(may_answer, f"{what} returns an image")


def reader_sniff(case: PluginCase) -> None:
    """Any first bytes get a plain answer, and text is not taken for an image."""
    spec = _of(case, ReaderSpec)
    if spec.sniff is None:
        raise NotApplicable("it has no sniff")
    sniff = case.installed.loaded.load_function(spec.sniff)
    for start in (b"", b"\x00", b"path,label\n", b"\xff" * 512):
        ensure(isinstance(sniff(start), (bool, np.bool_)), "sniff() returns something else")
    ensure(not sniff(b"path,label\n"), "sniff() takes a CSV file for an image")


def model_maps_images(case: PluginCase) -> None:
    """Images become pooled features (N, ``num_features``), of one channel and of three."""
    for channels in (1, 3):
        network, size = _network(case, channels)
        images = torch.rand(2, channels, size, size, device=case.device)
        found = network(images)
        shape = (2, int(network.num_features))
        ensure(
            isinstance(found, Tensor) and found.shape == shape,
            f"2 images become {tuple(getattr(found, 'shape', ()))}, not {shape}",
        )
        ensure(bool(torch.isfinite(found).all()), "features of images in [0, 1] are not finite")


def model_is_trainable(case: PluginCase) -> None:
    """A gradient reaches every parameter, and a copy of the state makes the same features."""
    network, size = _network(case, 3)
    network.eval()
    images = torch.rand(2, 3, size, size, device=case.device)
    features = network(images)
    torch.autograd.backward(features.square().sum())
    idle = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    ensure(not idle, f"no gradient reaches {', '.join(idle[:3])}")
    other, _ = _network(case, 3, seed=1)
    other.load_state_dict(network.state_dict())
    same = torch.allclose(other.eval()(images), features, atol=1e-5)
    ensure(same, "a model with the same state finds other features")


def _network(case: PluginCase, channels: int, seed: int = 0) -> tuple[Any, int]:
    """Make the backbone as the host does; return it and the edge of its images."""
    from daptkit.model import build_model, resolve_model_config

    name = _of(case, ModelSpec).name
    factories = {name: case.installed.loaded.load_factory()}
    config = resolve_model_config(
        name,
        kwargs={},
        img_size=64,
        in_chans=channels,
        mean=(),
        std=(),
        num_classes=_CLASSES,
        bottleneck=8,
        dropout=0.0,
        factories=factories,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_model(config, factories=factories)
    return network.backbone.to(case.device), config.img_size


def score_is_a_number(case: PluginCase) -> None:
    """Predictions of two domains give one number, the same each time; NaN where undefined."""
    first, again = (_score(case, sure=3.0) for _ in range(2))
    ensure(math.isfinite(first), f"the score of ordinary predictions is {first}")
    ensure(first == again, "the same predictions give two scores")


def score_survives_collapse(case: PluginCase) -> None:
    """A model that predicts one class, or knows nothing, has a score or NaN."""
    for sure in (0.0, 1000.0):
        found = _score(case, sure=sure, collapsed=True)
        ensure(not math.isinf(found), f"the score of collapsed predictions is {found}")


def score_reads_predictions(case: PluginCase) -> None:
    """Other predictions give another score."""
    ensure(_score(case, sure=3.0) != _score(case, sure=0.5), "any predictions give the same score")


def _score(case: PluginCase, *, sure: float, collapsed: bool = False) -> float:
    from daptkit.assess.scores.inputs import score_inputs

    _of(case, ScoreSpec)
    rng = np.random.default_rng(0)
    labels = np.arange(_IMAGES) % _CLASSES

    def posterior() -> np.ndarray[Any, np.dtype[np.float64]]:
        logits = sure * np.eye(_CLASSES)[labels * (not collapsed)]
        logits = logits + (0 if collapsed else rng.normal(size=logits.shape))
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True), dtype=np.float64)

    features = [rng.normal(size=(_IMAGES, 4)) for _ in range(2)]
    inputs = score_inputs(
        posterior(), posterior(), labels, source_features=features[0], target_features=features[1]
    )
    found = case.installed.loaded.load_factory()(inputs)
    ensure(
        isinstance(found, Real) and not isinstance(found, bool),
        f"the score is {type(found).__name__}, not a number",
    )
    return float(found)


def listener_hears_events(case: PluginCase) -> None:
    """Each kind of event, and one that does not exist yet, is heard without an error."""
    listener = case.installed.listener
    for kind in (*_EVENTS, "of_a_later_version"):
        values = {"loss": 0.5, "lr": 0.1} if kind != "fit_start" else {}
        listener(event=Event(kind=kind, step=3, values=values, files=("model/model.json",)))


def _of(case: PluginCase, kind: type[Any]) -> Any:
    assert isinstance(case.spec, kind)
    return case.spec


OTHER_CHECKS: dict[str, tuple[PluginCheck, ...]] = {
    "reader": (
        torch_free_import,
        summary,
        option_texts_and_bounds,
        reader_functions,
        reader_refuses_rubbish,
        reader_sniff,
    ),
    "model": (torch_free_import, summary, model_maps_images, model_is_trainable),
    "score": (
        torch_free_import,
        summary,
        score_is_a_number,
        score_survives_collapse,
        score_reads_predictions,
    ),
    "event": (torch_free_import, listener_hears_events),
}
