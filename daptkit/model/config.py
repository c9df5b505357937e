"""What a model is: its name and arguments, its input, its bottleneck and head."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import get_pretrained_cfg, is_model, model_entrypoint

from daptkit.errors import DataError, UsageError, did_you_mean

OWN_OPTIONS = {
    "num_classes": "the classes of the source",
    "in_chans": "--in-chans",
    "img_size": "--img-size",
    "pretrained": "--pretrained",
    "pretrained_cfg": "--pretrained-path, --mean and --std",
    "pretrained_cfg_overlay": "--pretrained-path, --mean and --std",
    "checkpoint_path": "--pretrained-path",
    "features_only": "the taps of a method",
    "cache_dir": "the environment variable HF_HOME",
}
"""Arguments of timm's ``create_model`` that are not model arguments here, and what sets them."""

TRUNK_FIELDS = ("name", "kwargs", "img_size", "in_chans", "mean", "std")
"""Fields of :class:`ModelConfig` that decide the pooled features of the backbone."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to build the network again, as plain JSON values.

    Args:
        name: timm model, ``daptkit_lenet`` or a model of a plugin.
        kwargs: further arguments of the model.
        img_size: edge H = W of the input in pixels.
        in_chans: channels C of the input.
        mean: mean of the input in [0, 1], C values.
        std: deviation of the input, C values, positive.
        num_classes: K.
        bottleneck: features D of the bottleneck; 0 for none.
        dropout: dropout before the head, in [0, 1).
    """

    name: str
    kwargs: Mapping[str, Any]
    img_size: int
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    bottleneck: int = 256
    dropout: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        values = asdict(self)
        return {**values, "kwargs": dict(self.kwargs), "mean": [*self.mean], "std": [*self.std]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build the configuration from :meth:`to_json`'s values.

        Raises:
            DataError: a field is missing, unknown or of the wrong type.
        """
        wanted = {f.name for f in fields(cls)}
        if set(values) != wanted:
            wrong = ", ".join(sorted(wanted ^ set(values)))
            raise DataError(f"the model's architecture has missing or unknown fields: {wrong}.")
        try:
            return cls(
                name=str(values["name"]),
                kwargs=dict(values["kwargs"]),
                img_size=int(values["img_size"]),
                in_chans=int(values["in_chans"]),
                mean=tuple(float(v) for v in values["mean"]),
                std=tuple(float(v) for v in values["std"]),
                num_classes=int(values["num_classes"]),
                bottleneck=int(values["bottleneck"]),
                dropout=float(values["dropout"]),
            )
        except (TypeError, ValueError) as error:
            raise DataError(f"the model's architecture is not readable: {error}.") from error

    def trunk_json(self) -> dict[str, Any]:
        """Return the fields that decide the backbone's pooled features, as JSON values."""
        values = self.to_json()
        return {name: values[name] for name in TRUNK_FIELDS}


def parse_model_kwargs(items: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` pairs; a value is a Python literal where it reads as one, else text.

    Args:
        items: such as ``("pad_type=same", "drop_path_rate=0.1", "layers=[2,2,2,2]")``.

    Raises:
        UsageError: a pair without ``=``, a key given twice or one that has its own option.
    """
    parsed: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise UsageError(f"--model-kwargs takes KEY=VALUE pairs, not {item!r}.")
        if key in parsed:
            raise UsageError(f"--model-kwargs gives {key!r} twice.")
        parsed[key] = _literal(text.strip())
    return parsed


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if isinstance(value, (list, tuple)) and all(isinstance(v, (bool, int, float)) for v in value):
        return list(value)
    return value if isinstance(value, (bool, int, float, str)) else text


def resolve_model_config(
    name: str,
    kwargs: Mapping[str, Any] | Sequence[str],
    img_size: int | None,
    in_chans: int | None,
    mean: Sequence[float],
    std: Sequence[float],
    num_classes: int,
    bottleneck: int,
    dropout: float,
    *,
    factories: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """Fill what the user left open from timm's data configuration of the model.

    Args:
        name: timm model with or without its tag, ``daptkit_lenet`` or a name in ``factories``.
        kwargs: model arguments, as a mapping or as ``KEY=VALUE`` pairs.
        img_size: edge in pixels, or ``None`` for the model's own.
        in_chans: channels C, or ``None`` for the model's own.
        mean: empty for the model's own, one value for all channels, or C values.
        std: likewise, positive.
        num_classes: K, at least 1.
        bottleneck: features D, 0 for none.
        dropout: in [0, 1).
        factories: backbones of plugins by name.

    Raises:
        UsageError: unknown model (with a suggestion), or a value that cannot work.
    """
    kwargs = dict(kwargs) if isinstance(kwargs, Mapping) else parse_model_kwargs(kwargs)
    for key in kwargs:
        if key in OWN_OPTIONS:
            raise UsageError(f"--model-kwargs cannot set {key!r}: {OWN_OPTIONS[key]} does.")
    size, own_mean, own_std = _own_input(name, factories or {})
    channels = in_chans or size[0]
    return ModelConfig(
        name=name,
        kwargs=kwargs,
        img_size=img_size or size[-1],
        in_chans=channels,
        mean=_per_channel("--mean", mean, own_mean, channels),
        std=_per_channel("--std", std, own_std, channels),
        num_classes=num_classes,
        bottleneck=bottleneck,
        dropout=dropout,
    )


def _own_input(
    name: str, factories: Mapping[str, Any]
) -> tuple[tuple[int, ...], Sequence[float], Sequence[float]]:
    """Return the model's own input size (C, H, W), mean and deviation."""
    if name in factories:
        return (3, 224, 224), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    check_timm_name(name, factories)
    cfg = get_pretrained_cfg(name)
    if cfg is None:
        return (3, 224, 224), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return tuple(cfg.input_size), cfg.mean, cfg.std


def check_timm_name(name: str, factories: Mapping[str, Any]) -> None:
    """Refuse a name that timm does not know.

    Raises:
        UsageError: unknown model or tag, or a name that would be fetched from a hub.
    """
    if ":" in name or "/" in name:
        raise UsageError(
            f"--model {name!r} names a hub or a folder. Name the architecture, and give weights "
            "with --pretrained or --pretrained-path."
        )
    if not is_model(name):
        known = [*timm.list_models(), *factories]
        raise UsageError(
            f"unknown model {name!r}.{did_you_mean(name, known)} timm.list_models() lists those "
            "of timm; daptkit plugins list shows those of plugins."
        )
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = timm.list_models(name.split(".")[0] + ".*", pretrained=True)
        raise UsageError(
            f"unknown weights {name!r}. Known: {', '.join(tags) or 'none'}."
        ) from error


def built_in_owner(name: str) -> str | None:
    """Return who has a model of this name without plugins: ``"daptkit"``, ``"timm"`` or nobody."""
    if not is_model(name):
        return None
    return "daptkit" if model_entrypoint(name).__module__.startswith("daptkit.") else "timm"


def _per_channel(
    option: str, given: Sequence[float], own: Sequence[float], in_chans: int
) -> tuple[float, ...]:
    """Spread one value over all channels; average the model's own where the channels differ."""
    if not given:
        same = len(own) == in_chans
        values = tuple(own) if same else (math.fsum(own) / len(own),) * in_chans
    elif len(given) == 1:
        values = (given[0],) * in_chans
    elif len(given) == in_chans:
        values = tuple(given)
    else:
        raise UsageError(
            f"{option} has {len(given)} values; give 1, or as many as --in-chans ({in_chans})."
        )
    if not all(math.isfinite(v) for v in values) or (option == "--std" and min(values) <= 0):
        raise UsageError(f"{option} must be finite{', above 0' if option == '--std' else ''}.")
    return tuple(float(v) for v in values)
