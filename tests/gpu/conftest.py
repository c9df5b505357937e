"""Skips what needs a GPU where there is none; the same checks run on a CPU elsewhere in tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU; torch sees none")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)
