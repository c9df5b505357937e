"""Batches, steps and checks for the tests of plugins."""

from daptkit.testing.checks import (
    assert_aligns_images,
    assert_global_batch,
    gap_of_means,
    imports_torch,
)
from daptkit.testing.made import make_batch, make_step, make_task

__all__ = [
    "assert_aligns_images",
    "assert_global_batch",
    "gap_of_means",
    "imports_torch",
    "make_batch",
    "make_step",
    "make_task",
]
