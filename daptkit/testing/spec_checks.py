"""Checks of the torch-free half of a method: names, texts and options."""

from __future__ import annotations

import dataclasses
import sys
import typing
from typing import Any

from daptkit.plugin import NoOptions, scalar_type
from daptkit.testing.case import CheckFailed, MethodCase, NotApplicable, ensure
from daptkit.testing.checks import imports_torch

_LONGEST_SUMMARY = 100


def torch_free_import(case: MethodCase) -> None:
    """The module that ``plugins list`` and ``--help`` import does not import torch."""
    if case.module is None:
        raise NotApplicable("it is not installed, so no entry point names a module")
    ensure_torch_free(case.module)


def names_and_texts(case: MethodCase) -> None:
    """Name, summary and factory are such that people and commands can use them."""
    spec = case.loaded.spec
    ensure(
        spec.name == spec.name.lower(),
        f"the name {spec.name!r} has capitals, which '-m' does not forgive",
    )
    ensure(
        0 < len(spec.summary) <= _LONGEST_SUMMARY and spec.summary.endswith("."),
        f"the summary is to be one sentence of at most {_LONGEST_SUMMARY} characters",
    )
    case.loaded.load_factory()


def option_texts_and_bounds(case: MethodCase) -> None:
    """Every option has a help text that ends in a full stop, numbers have bounds, texts choices."""
    ensure_options(case.loaded.spec.options)
    spec = case.loaded.spec
    if spec.trains != "none":
        known = [f.name for f in dataclasses.fields(spec.options)]
        ensure("weight" in known, "there is no option 'weight', which every aligning method has")


def ensure_torch_free(module: str) -> None:
    """Fail if a module imports torch.

    Raises:
        CheckFailed: it does.
        NotApplicable: it was made in this process and has no file.
    """
    if module in sys.modules and getattr(sys.modules[module], "__file__", None) is None:
        raise NotApplicable("its module is made by a test")
    ensure(not imports_torch(module), f"importing {module} imports torch")


def ensure_options(options: type) -> None:
    """Fail unless each option of a dataclass has a text and, where it is a number, a bound.

    Raises:
        CheckFailed: one lacks them.
    """
    if options is NoOptions:
        return
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        help_text = str(field.metadata.get("help", ""))
        ensure(
            help_text.strip().endswith("."), f"option '{field.name}' lacks a help text with a stop"
        )
        _ensure_bounds(field, hints[field.name])


def _ensure_bounds(field: dataclasses.Field[Any], hint: Any) -> None:
    kind, _ = scalar_type(hint)
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if kind in (int, float) and low is None and high is None:
        raise CheckFailed(f"option '{field.name}' is a number without bounds: give low, high")


SPEC_CHECKS = (torch_free_import, names_and_texts, option_texts_and_bounds)
