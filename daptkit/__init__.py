"""daptkit: unsupervised domain adaptation for images, with methods as plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from daptkit.recipes import (
        adapt,
        build_report,
        check_data,
        compare,
        demo,
        diagnose,
        evaluate,
        predict,
        simulate,
    )

__all__ = [
    "__version__",
    "adapt",
    "build_report",
    "check_data",
    "compare",
    "demo",
    "diagnose",
    "evaluate",
    "predict",
    "simulate",
]


def __getattr__(name: str) -> Any:
    """Load the pipelines on first use, so that importing daptkit does not import torch."""
    if name != "__version__" and name in __all__:
        from daptkit import recipes

        return getattr(recipes, name)
    raise AttributeError(f"module 'daptkit' has no attribute {name!r}")
