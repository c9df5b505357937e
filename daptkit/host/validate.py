"""Checks of the specifications that a plugin's hooks return."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from typing import Any

from daptkit.errors import DaptkitError, did_you_mean
from daptkit.host.factory import check_factory
from daptkit.host.isolation import PluginFault
from daptkit.plugin import (
    API_VERSION,
    NEEDS,
    PROPERTIES,
    RISKS,
    ROLES,
    SHIFTS,
    TRAINS,
    MethodSpec,
    ModelSpec,
    ReaderSpec,
    ScoreSpec,
    build_options,
    option,
)

Spec = MethodSpec | ReaderSpec | ModelSpec | ScoreSpec

RESERVED_NAMES = frozenset({"none"})
OWN_SCORES = frozenset({"last", "auto", "im", "entropy", "snd", "bnm", "iwcv", "atc"})
"""Values of ``--select`` that no plugin's score may have for its name."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_OPTION_KEYS = frozenset(option(None, "").metadata)


def check_name(name: str) -> None:
    """Check that a name can stand in ``-m`` and before the dot of an option.

    Raises:
        PluginFault: it cannot.
    """
    if not _NAME.fullmatch(name) or name in RESERVED_NAMES:
        raise PluginFault(
            f"the name {name!r} is not allowed: a letter first, then letters, digits, '-' and '_';"
            " not 'none'"
        )


def check_score_name(name: str) -> None:
    """Check that a plugin's score can have a name, which stands in ``--select``.

    Raises:
        PluginFault: it is one of :data:`OWN_SCORES`.
    """
    if name in OWN_SCORES:
        raise PluginFault(
            f"the name {name!r} is daptkit's own: no score of a plugin is called"
            f" {', '.join(sorted(OWN_SCORES))}"
        )


def check_spec(spec: Spec) -> None:
    """Check one specification, its API version first.

    Raises:
        PluginFault: the first thing that is wrong.
    """
    check_api(spec.api)
    check_factory(spec.factory)
    if isinstance(spec, MethodSpec):
        _check_method(spec)
    elif isinstance(spec, ReaderSpec):
        _check_reader(spec)
    elif isinstance(spec, ScoreSpec):
        _check_score(spec)


def check_api(api: int) -> None:
    """Check the version of the contract that a plugin was written for.

    Raises:
        PluginFault: too new, too old or no version at all.
    """
    if not isinstance(api, int) or isinstance(api, bool):
        raise PluginFault(f"api must be a whole number, not {api!r}")
    if api > API_VERSION:
        raise PluginFault(
            f"written for plugin API version {api}, this daptkit implements {API_VERSION}: "
            "upgrade daptkit"
        )
    if api < API_VERSION:
        raise PluginFault(
            f"written for plugin API version {api}, this daptkit implements {API_VERSION}: "
            "upgrade the plugin"
        )


def _check_method(spec: MethodSpec) -> None:
    if not isinstance(spec.summary, str) or not spec.summary.strip() or "\n" in spec.summary:
        raise PluginFault("summary must be one line of text")
    _check_subset("needs", spec.needs, NEEDS)
    _check_subset("roles", spec.roles, ROLES)
    _check_subset("addresses", spec.addresses, SHIFTS)
    _check_subset("risks", spec.risks, RISKS)
    if not isinstance(spec.raises_confidence, bool):
        raise PluginFault(f"raises_confidence is true or false, not {spec.raises_confidence!r}")
    _check_subset("corrects", spec.corrects, PROPERTIES)
    if spec.trains not in TRAINS:
        raise PluginFault(f"trains must be one of {', '.join(TRAINS)}, not {spec.trains!r}")
    _check_options(spec.options)


def _check_subset(name: str, values: Any, allowed: Collection[str]) -> None:
    if not isinstance(values, (set, frozenset)):
        raise PluginFault(f"{name} must be a frozenset, not {values!r}")
    for value in sorted(map(str, values - frozenset(allowed))):
        raise PluginFault(
            f"{name} has the unknown value {value!r}; known are {', '.join(sorted(allowed))}."
            + did_you_mean(value, allowed)
        )


def _check_options(cls: Any) -> None:
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise PluginFault(f"options must be a dataclass, not {cls!r}")
    if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise PluginFault(f"options {cls.__name__} must be frozen: @dataclass(frozen=True)")
    for f in dataclasses.fields(cls):
        if not f.metadata.keys() >= _OPTION_KEYS:
            raise PluginFault(
                f"field {f.name!r} of options {cls.__name__} must be made by "
                "daptkit.plugin.option(default, help)"
            )
    try:
        build_options(cls, {})
    except DaptkitError as error:
        raise PluginFault(f"options {cls.__name__}: a default is not allowed: {error}") from error


def _check_score(spec: ScoreSpec) -> None:
    check_score_name(spec.name)
    if not isinstance(spec.higher_is_better, bool):
        raise PluginFault(f"higher_is_better must be True or False, not {spec.higher_is_better!r}")


def _check_reader(spec: ReaderSpec) -> None:
    good = isinstance(spec.extensions, tuple) and all(
        isinstance(e, str) and e.startswith(".") and e == e.lower() for e in spec.extensions
    )
    if not good or not spec.extensions:
        raise PluginFault(
            f"extensions must be lower-case text with a dot such as ('.raw',), "
            f"not {spec.extensions!r}"
        )
    for function in (spec.sniff, spec.count, spec.identify):
        if function is not None:
            check_factory(function)
    _check_options(spec.options)
