"""The torch-free half of a plugin: specifications, options and the hook marker.

A plugin package declares one entry point per name in the group ``daptkit`` (methods),
``daptkit.readers``, ``daptkit.models``, ``daptkit.scores`` or ``daptkit.events``. Its value is a
module that imports nothing heavy and implements the hooks below, for example::

    from dataclasses import dataclass
    from daptkit.plugin import MethodSpec, hookimpl, option

    @dataclass(frozen=True, kw_only=True)
    class Options:
        weight: float = option(1.0, "Weight of the alignment loss.", low=0.0)

    @hookimpl
    def daptkit_methods():
        return MethodSpec(
            name="mean", summary="Align feature means.",
            factory="my_package.method:MeanAlignment", options=Options,
        )
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pluggy

from daptkit.errors import UsageError, did_you_mean

T = TypeVar("T")

API_VERSION = 1
"""Major version of the plugin contract this host implements."""

hookimpl = pluggy.HookimplMarker("daptkit")
"""Marks a function of a plugin module as the implementation of a daptkit hook."""

NEEDS = frozenset({"source", "source_labels", "target", "target_views", "teacher"})
ROLES = frozenset({"class_weights", "target_prior", "inputs", "features", "norm"})
TRAINS = ("all", "backbone", "norm_affine", "none")
SHIFTS = frozenset({"covariate", "label", "concept"})
RISKS = frozenset({"adversarial", "own_predictions", "narrow"})
"""What can go wrong with a method by its nature.

``adversarial``: two players train against each other, so that it may not converge, above all with
few images. ``own_predictions``: its loss takes the model's own predictions of target images for
right, so that mistakes feed themselves. ``narrow``: it corrects one sort of difference, such as
colour, and leaves the rest.
"""
PROPERTIES = frozenset(
    {"intensity", "contrast", "colour", "shading", "sharpness", "noise", "resolution"}
)


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Options of a method or reader that has none."""


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """What the host knows of a method before importing torch.

    Args:
        name: entry-point name, used with ``-m`` and as the prefix of options (``--name.option``).
        summary: one line for ``plugins list`` and ``--help``.
        factory: ``"module:Class"`` of a :class:`daptkit.method.Method`; imported only by a run.
        options: frozen keyword-only dataclass whose fields are made by :func:`option`.
        needs: what a step must offer, a subset of :data:`NEEDS`.
        roles: what the method owns, a subset of :data:`ROLES`; one owner of each role per run.
        addresses: kinds of shift the method corrects, a subset of :data:`SHIFTS`.
        trains: parameters that the method trains, one of :data:`TRAINS`.
        api: major version of the contract that the method was written for.
        reference: paper, for example ``"arXiv:1505.07818"``.
        raises_confidence: whether its loss rewards sure predictions of target images, right or
            wrong, as minimal entropy, class confusion (MCC) or the nuclear norm (BNM) do. A loss
            that makes the sites alike does not: it is no smaller for surer predictions of both.
            Confidence is then no evidence that adapting helped.
        risks: what can go wrong with it by its nature, a subset of :data:`RISKS`; of methods that
            fit a diagnosis those with fewer come first.
        corrects: what the method evens out in the images themselves, a subset of
            :data:`PROPERTIES`; ``diagnose`` names it where that differs.
    """

    name: str
    summary: str
    factory: str
    options: type = NoOptions
    needs: frozenset[str] = frozenset({"source", "source_labels", "target"})
    roles: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset({"covariate"})
    trains: str = "all"
    api: int = API_VERSION
    reference: str = ""
    raises_confidence: bool = False
    risks: frozenset[str] = frozenset()
    corrects: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ReaderSpec:
    """An image format, read by functions that are named as ``"module:function"``.

    They are resolved in the process that decodes. Where ``options`` is given, ``factory`` and
    ``count`` take an instance of it as a further argument; a run sets it with
    ``--reader-options NAME.OPTION=VALUE``.

    Args:
        name: entry-point name, and the prefix of the reader's options.
        extensions: lower case with their dot, such as ``(".nii", ".nii.gz")``.
        factory: ``(path, frame) -> DecodedImage``; ``frame`` is ``None`` for a file with one. A
            reader refuses a file with several frames of which none is named. Its errors are
            :class:`daptkit.errors.DataError` whose text holds no path and no content of a header.
        sniff: ``(first_bytes) -> bool``, for files whose extension says nothing; 512 bytes.
        count: ``(path) -> int``, the number of frames, from the header alone. Without it every
            file has one.
        identify: ``(path) -> FileIdentity``, from the header alone, for formats that name the
            patient.
        options: frozen keyword-only dataclass whose fields are made by :func:`option`.
        summary: one line for ``plugins list``.
        api: major version of the contract that the reader was written for.
    """

    name: str
    extensions: tuple[str, ...]
    factory: str
    sniff: str | None = None
    count: str | None = None
    identify: str | None = None
    options: type = NoOptions
    summary: str = ""
    api: int = API_VERSION


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A backbone beyond timm's registry.

    ``factory`` is ``"module:function"``, called with ``in_chans`` and ``--model-kwargs``; it
    returns a module that maps images (N, C, H, W) to pooled features (N, D) and has an integer
    attribute ``num_features`` = D.
    """

    name: str
    factory: str
    summary: str = ""
    api: int = API_VERSION


@dataclass(frozen=True, kw_only=True)
class ScoreSpec:
    """A score of a target prediction that needs no target labels.

    A run computes it after every epoch, beside daptkit's own, and writes it to ``metrics.jsonl`` as
    ``score/NAME``; ``--select NAME`` delivers the best epoch by it, and ``compare`` shows it. For
    example, the mean difference of the two largest probabilities::

        import numpy as np

        def margin(inputs):
            second, first = np.sort(inputs.target_posterior, axis=1)[:, -2:].T
            return float((first - second).mean())

    Args:
        name: entry-point name; not that of one of daptkit's own scores.
        factory: ``"module:function"``, the score itself. It is called with a
            :class:`daptkit.assess.ScoreInputs`, what :func:`daptkit.assess.score_inputs` makes:
            ``target_posterior`` (M, K), ``source_posterior`` (N, K), ``source_labels`` (N,),
            ``source_groups`` (N,) and ``target_groups`` (M,), the patients,
            ``source_features`` (N, D) and ``target_features`` (M, D), ``seed``; arrays that cannot
            be written to, of at most 1,000 held-out source and as many target images after an
            epoch. It returns a number, NaN where the score is not defined. One that raises costs a
            line and is left out for the rest of the run, unless ``--select`` names it.
        higher_is_better: whether a higher score is better.
        summary: one line for ``plugins list``.
        api: major version of the contract that the score was written for.
    """

    name: str
    factory: str
    higher_is_better: bool = True
    summary: str = ""
    api: int = API_VERSION


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened in a run, for loggers and trackers.

    Args:
        kind: ``"run_start"``, with the options of the run; for each model that is trained
            ``"fit_start"``, ``"log"``, ``"epoch_end"``, ``"unfreeze"`` and ``"fit_end"``;
            ``"run_end"``, with figures and verdict; ``"report"``, with its files.
        step: training step, from 0.
        values: named numbers; no path and no patient id is ever among them.
        files: names of files of the run folder, relative to it.
        text: named texts, likewise, such as ``"model"`` at the start and ``"verdict"`` at the end.
        phase: which model is trained, such as ``"source-only"`` or ``"dann"``; empty for the run.
        folder: the run folder, where a listener may write files of its own and finds ``files``; a
            path, so not for what it writes.
    """

    kind: str
    step: int
    values: Mapping[str, float] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    text: Mapping[str, str] = field(default_factory=dict)
    phase: str = ""
    folder: str = ""


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    flags: tuple[str, ...] = (),
    metavar: str | None = None,
) -> Any:
    """Declare one option of a frozen dataclass, with its help text and inclusive bounds.

    Args:
        default: the value when nothing is given.
        help: one sentence for ``--help``.
        low: smallest allowed number.
        high: largest allowed number.
        choices: allowed strings.
        flags: further flags of the command line, such as ``("-m",)``.
        metavar: placeholder in the help text.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "low": low,
            "high": high,
            "choices": choices,
            "flags": flags,
            "metavar": metavar,
        },
    )


def build_options(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build and validate an options dataclass from names and values.

    Args:
        cls: frozen dataclass whose fields are made by :func:`option`.
        values: field name to value; text is converted to the field's type.
        prefix: put before option names in messages, such as ``"dann."``.

    Raises:
        UsageError: unknown name (with a suggestion), wrong type or value out of bounds.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls!r} is not a dataclass")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            hint = did_you_mean(name, fields)
            raise UsageError(f"unknown option '{prefix}{name}'.{hint}")
        checked[name] = _convert(f"{prefix}{name}", value, hints[name])
    made = cls(**checked)
    for name, f in fields.items():
        _check_bounds(f"{prefix}{name}", getattr(made, name), f.metadata)
    return made


def scalar_type(hint: Any) -> tuple[type, bool]:
    """Return the plain type behind an annotation and whether ``None`` is allowed.

    ``float | None`` gives ``(float, True)``; ``tuple[float, ...]`` gives ``(tuple, False)``.
    """
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        inner = next(a for a in arguments if a is not type(None))
        return scalar_type(inner)[0], True
    origin = typing.get_origin(hint)
    return (origin or hint), False


def _convert(name: str, value: Any, hint: Any) -> Any:
    kind, optional = scalar_type(hint)
    if value is None and optional:
        return None
    if kind is tuple:
        items = (value,) if isinstance(value, str) or not hasattr(value, "__iter__") else value
        inner = next(
            (
                typing.get_args(a)[0]
                for a in (hint, *typing.get_args(hint))
                if typing.get_origin(a) is tuple
            ),
            str,
        )
        return tuple(_convert(name, item, inner) for item in items)
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "yes", "on", "1"):
            return True
        if str(value).lower() in ("false", "no", "off", "0"):
            return False
        raise UsageError(f"option '{name}' takes true or false, not {value!r}.")
    if kind in (int, float) and isinstance(value, bool):
        raise UsageError(f"option '{name}' takes a number, not {value!r}.")
    if kind is int and isinstance(value, float) and not value.is_integer():
        raise UsageError(f"option '{name}' takes a whole number, not {value!r}.")
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        wanted = {int: "a whole number", float: "a number"}.get(kind, kind.__name__)
        raise UsageError(f"option '{name}' takes {wanted}, not {value!r}.") from error


def _check_bounds(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    choices = metadata.get("choices")
    if choices and value is not None and value not in choices:
        raise UsageError(
            f"option '{name}' is one of {', '.join(choices)}, not {value!r}."
            + did_you_mean(str(value), choices)
        )
    low, high = metadata.get("low"), metadata.get("high")
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        if not math.isfinite(number):
            raise UsageError(f"option '{name}' must be finite, not {number!r}.")
        if (low is not None and number < low) or (high is not None and number > high):
            bounds = f"[{'-inf' if low is None else low}, {'inf' if high is None else high}]"
            raise UsageError(f"option '{name}' must lie in {bounds}, not {number!r}.")
