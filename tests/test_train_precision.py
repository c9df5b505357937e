"""Every shipped method under bfloat16 autocast, beside float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from device_steps import (
    ALIGNMENTS,
    METHODS,
    assert_bfloat16_is_close,
    assert_loss_is_float32_inside,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("precision")


@pytest.mark.parametrize("method", METHODS)
def test_a_step_in_bfloat16_is_close_to_one_in_float32(folder: Path, method: str) -> None:
    assert_bfloat16_is_close(folder, method, "cpu")


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("method", ALIGNMENTS)
def test_autocast_costs_a_loss_no_digit(method: str, offset: float) -> None:
    assert_loss_is_float32_inside(method, "cpu", offset)
