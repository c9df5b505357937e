"""The configuration of ``daptkit adapt``: a frozen dataclass that also makes the options."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daptkit.errors import UsageError, did_you_mean
from daptkit.plugin import build_options, option

CACHE_OFF = "off"
"""Value of ``--cache`` that keeps no decoded images."""

AUGMENTATIONS = ("auto", "none", "digits", "xray", "microscopy", "photo")


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Everything that decides a run. Field ``img_size`` is option ``--img-size``, and so on."""

    source: tuple[str, ...] = option(
        (), "Labelled images of the source site; may be repeated.", metavar="PATH"
    )
    target: str = option("", "Unlabelled images of the target site.", metavar="PATH")
    method: str = option(
        "none",
        "Adaptation methods joined by '+', or none for source-only.",
        flags=("-m",),
        metavar="NAME[+NAME]",
    )
    out: str = option("", "Run folder to write.", metavar="DIR")
    source_split: str | None = option(None, "Split trained on (train where it exists, else all).")
    target_split: str | None = option(None, "Split adapted to (train where it exists, else all).")
    val_fraction: float = option(
        0.2, "Part of the source training data held out if it has no val split.", low=0.02, high=0.5
    )
    skip_unreadable: int = option(0, "Tolerate and list up to this many unreadable images.", low=0)
    frames: str | None = option(
        None,
        "Frames of files with several: first, middle, all or a number from 0.",
        metavar="WHICH",
    )
    window: str | None = option(
        None,
        "Grey levels that become black and white, for deep images that do not say (percentiles of"
        " the source).",
        metavar="LOW:HIGH",
    )
    reader_options: tuple[str, ...] = option(
        (), "Option of a format's reader; may be repeated.", metavar="READER.OPTION=VALUE"
    )
    allow_patient_overlap: bool = option(
        False, "Accept the same patient in two splits or at both sites."
    )
    cache: str | None = option(
        None, "Folder of decoded images, or off (the user's cache).", metavar="DIR|off"
    )

    model: str = option("resnet18", "timm model, daptkit_lenet, or a model of a plugin.")
    model_kwargs: tuple[str, ...] = option((), "Arguments of the model.", metavar="KEY=VALUE")
    pretrained: bool = option(False, "Fetch the model's weights from timm's hub.")
    pretrained_path: str | None = option(
        None, "Local weights: safetensors or a timm state dict.", metavar="FILE"
    )
    init_from: str | None = option(
        None,
        "The site's own classifier with its head: a daptkit model folder, or a timm state dict.",
        metavar="MODEL",
    )
    trust: bool = option(False, "Load a weights file that carries Python objects; code in it runs.")
    classes: str | None = option(
        None, "Class names of a timm state dict's head, comma-separated.", metavar="A,B,..."
    )
    img_size: int | None = option(None, "Edge of the model's input in pixels.", low=8, high=4096)
    in_chans: int | None = option(None, "Channels of the model's input.", low=1, high=16)
    mean: tuple[float, ...] = option((), "Mean of the model's input, 1 or --in-chans values.")
    std: tuple[float, ...] = option((), "Deviation of the model's input, likewise.", low=1e-6)
    bottleneck: int = option(256, "Features of the bottleneck; 0 for none.", low=0, high=65536)
    dropout: float = option(0.0, "Dropout before the head.", low=0.0, high=0.95)
    finetune: str = option(
        "full",
        "frozen: train bottleneck and head on cached features; gradual: these first, then the"
        " backbone stage by stage from the top; full: train everything.",
        choices=("frozen", "gradual", "full"),
    )

    from_scratch: bool = option(
        False, "Also train the network from random weights on the source, to compare."
    )
    bn: str = option(
        "joint",
        "BatchNorm's statistics in training: joint, of both domains; split, of each by itself;"
        " frozen, the loaded ones.",
        choices=("joint", "split", "frozen"),
    )

    epochs: int | None = option(
        None,
        "Passes over the longer domain, of at least 50 steps each (4, or more on small data: at"
        " least 500 steps).",
        low=1,
        high=100000,
    )
    batch_size: int = option(64, "Images per domain and step.", low=1, high=65536)
    grad_accum_steps: int = option(
        1,
        "Equal parts in which a batch is passed, for less memory: BatchNorm and losses of batches,"
        " such as MMD and CORAL, see one part at a time.",
        low=1,
        high=65536,
    )
    auto_batch: bool = option(
        False, "Where memory runs out, pass a batch in more parts instead of ending."
    )
    opt: str = option("sgd", "Optimiser.", choices=("sgd", "adamw"))
    sched: str = option(
        "inverse", "inverse: (1+10p)^-0.75 over the run; cosine.", choices=("inverse", "cosine")
    )
    lr: float = option(0.01, "Learning rate of bottleneck, head and methods.", low=0.0)
    backbone_lr_scale: float | None = option(
        None, "Backbone's rate over the head's (0.1 with loaded weights, else 1).", low=0.0
    )
    layer_decay: float | None = option(
        None,
        "Factor on the rate of each backbone layer below the one above it, such as 0.7.",
        low=1e-3,
        high=1.0,
    )
    weight_decay: float = option(1e-3, "Weight decay.", low=0.0)
    clip_grad: float | None = option(None, "Largest gradient norm.", low=1e-8)
    aug: str = option(
        "auto",
        "Augmentation preset; auto chooses by the images, none when frozen without views.",
        choices=AUGMENTATIONS,
    )
    trunk_views: int = option(
        0, "Augmented views of an image that a frozen run caches and trains on.", low=0, high=1000
    )
    seed: int = option(0, "Seed of everything random.", low=0, high=2**31 - 1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    amp: bool = option(False, "Automatic mixed precision.")
    amp_dtype: str = option("bfloat16", "Its type.", choices=("bfloat16", "float16"))
    compile: bool = option(False, "Compile the backbone for the steps of training.")
    workers: int | None = option(None, "Threads that decode images (the CPU count).", low=0)
    select: str = option(
        "last",
        "Epoch whose model is delivered: last; auto, by all scores without target labels; or the"
        " best by one score.",
        metavar="last|auto|SCORE",
    )
    guard: bool = option(
        True, "Deliver the source-only model where adapting may have hurt, or nothing can tell."
    )
    report: bool = option(True, "Write report.html with its figures.")
    log_interval: int = option(50, "Steps between lines of metrics.jsonl.", low=1)
    decide: str = option("map", "Decision rule: map, balanced or sens=CLASS:0.95.")
    resume: bool = option(False, "Continue the run in --out.")
    method_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


MethodOptions = Callable[[str], Mapping[str, type]]
"""From ``-m`` text to the options dataclass of each method that it names, in order."""

_PATH_FIELDS = ("source", "target", "out", "pretrained_path", "init_from", "cache")
_METHODS_TABLE = "methods"
_PAIR_BREAK = re.compile(r"[,\s]+(?=[A-Za-z_]\w*=)")


def resolve_config(
    flags: Mapping[str, Any],
    file: Path | None,
    method_options: MethodOptions,
    command: str = "adapt",
) -> AdaptConfig:
    """Merge what was asked for: a flag wins over the file, the file over the plugin's default.

    Args:
        flags: field of :class:`AdaptConfig` to value, only those that were given; method options
            under ``"method_options"`` as ``{method: {option: value}}``.
        file: configuration in TOML, as :func:`to_toml` writes it, or ``None``.
        method_options: finds the options of the methods that a run names.
        command: for messages.

    Returns:
        A configuration that holds every option of every named method.

    Raises:
        UsageError: unreadable file, unknown name, value of a wrong type or out of bounds, or
            ``source``, ``target`` or ``out`` missing.
    """
    stored = from_toml(read_file(file), str(file)) if file is not None else {}
    values = {n: _split_text(n, v) for n, v in {**stored, **flags}.items()}
    values.pop("method_options", None)
    config = build_options(AdaptConfig, values)
    for name in ("source", "target", "out"):
        if not getattr(config, name):
            raise UsageError(
                f"--{name} is missing; 'daptkit {command} --help' shows how to give it."
            )
    classes = method_options(config.method)
    stored_tables: Mapping[str, Any] = stored.get("method_options", {})
    if "method" in flags:
        # Tables of the method that the flag replaces go with it.
        replaced = set(str(stored.get("method", "")).split("+")) - set(classes)
        stored_tables = {n: t for n, t in stored_tables.items() if n not in replaced}
    given_tables: Mapping[str, Any] = flags.get("method_options", {})
    tables = {
        name: {**stored_tables.get(name, {}), **given_tables.get(name, {})}
        for name in (*stored_tables, *given_tables)
    }
    return dataclasses.replace(config, method_options=_build_all(classes, tables, config.method))


def to_toml(config: AdaptConfig) -> str:
    """Write a configuration such that ``daptkit adapt --config FILE --out NEW`` reruns it.

    Paths become absolute, so that the file works from any folder; ``resume`` and ``trust`` are left
    out: a file that somebody else wrote must not decide that code of another file runs.
    """
    import tomli_w

    values: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.name in ("resume", "trust", "method_options") or value is None:
            continue
        if f.name in _PATH_FIELDS and value != CACHE_OFF:
            value = [_absolute(v) for v in value] if f.name == "source" else _absolute(value)
        values[f.name] = value
    values[_METHODS_TABLE] = {
        name: {k: v for k, v in options.items() if v is not None}
        for name, options in config.method_options.items()
    }
    return tomli_w.dumps(values)


def from_toml(text: str, name: str) -> dict[str, Any]:
    """Read a configuration file's text into fields of :class:`AdaptConfig`.

    Args:
        text: TOML; a table ``[methods.NAME]`` holds the options of a method.
        name: the file, for messages.

    Raises:
        UsageError: no valid TOML, an unknown key, or ``trust``.
    """
    import tomllib

    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{name} is not valid TOML: {error}.") from error
    tables = values.pop(_METHODS_TABLE, {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise UsageError(f"{name}: write the options of a method as a table [methods.NAME].")
    known = [f.name for f in dataclasses.fields(AdaptConfig) if f.name != "method_options"]
    for key in values:
        if key not in known:
            hint = did_you_mean(key, [*known, _METHODS_TABLE])
            raise UsageError(f"{name}: unknown key {key!r}.{hint}")
    if values.pop("trust", False):
        raise UsageError(f"{name}: trust is not taken from a file; give --trust yourself.")
    return {**values, "method_options": tables}


def _build_all(
    classes: Mapping[str, type], tables: Mapping[str, Mapping[str, Any]], method: str
) -> dict[str, dict[str, Any]]:
    """Fill in defaults, check bounds and refuse options of methods that the run does not name."""
    for name in tables:
        if name not in classes:
            raise UsageError(
                f"there are options for method {name!r}, which -m {method!r} does not name."
                + did_you_mean(name, classes)
            )
    return {
        name: dataclasses.asdict(build_options(cls, tables.get(name, {}), f"{name}."))
        for name, cls in classes.items()
    }


def read_file(file: Path) -> str:
    """Return the text of a configuration file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the configuration {file}: {reason}.") from error


def _split_text(name: str, value: Any) -> Any:
    """Split the one-text forms of fields that hold several values."""
    hint = typing.get_type_hints(AdaptConfig).get(name)
    texts = [value] if isinstance(value, str) else value
    if name == "model_kwargs" and isinstance(texts, (list, tuple)):
        pairs = [p for text in texts for p in _PAIR_BREAK.split(text.strip())]
        for pair in pairs:
            if not re.match(r"[A-Za-z_]\w*=", pair):
                raise UsageError(f"--model-kwargs takes KEY=VALUE pairs, not {pair!r}.")
        return pairs
    if hint == tuple[float, ...] and isinstance(texts, (list, tuple)):
        return [p for t in texts for p in (t.split(",") if isinstance(t, str) else [t])]
    return value


def _absolute(path: str) -> str:
    return str(Path(path).absolute())
