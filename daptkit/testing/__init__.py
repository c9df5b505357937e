"""Conformance checks of plugins, and batches, steps and tiny tasks for their own tests."""

from daptkit.testing.case import CheckFailed, MethodCase, NotApplicable
from daptkit.testing.checks import (
    assert_aligns_images,
    assert_global_batch,
    gap_of_means,
    imports_torch,
)
from daptkit.testing.fit import MadeFitContext
from daptkit.testing.made import make_batch, make_step, make_task
from daptkit.testing.suite import (
    Check,
    Outcome,
    check_names,
    check_plugin,
    method_checks,
    parametrize_with_checks,
    plugin_checks,
    run_checks,
)
from daptkit.testing.worlds import KnownShift, known_shift

__all__ = [
    "Check",
    "CheckFailed",
    "KnownShift",
    "MadeFitContext",
    "MethodCase",
    "NotApplicable",
    "Outcome",
    "assert_aligns_images",
    "assert_global_batch",
    "check_names",
    "check_plugin",
    "gap_of_means",
    "imports_torch",
    "known_shift",
    "make_batch",
    "make_step",
    "make_task",
    "method_checks",
    "parametrize_with_checks",
    "plugin_checks",
    "run_checks",
]
