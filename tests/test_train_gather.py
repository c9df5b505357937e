"""One batch over several processes: gather, BatchNorm and the gradients of every method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from gather_ranks import (
    CASES,
    LAYERS,
    METHODS,
    accumulated,
    coefficients,
    gradients,
    normalised,
    on_ranks,
)

SIZES = (2, 3)
LIMIT = 1e-6


@pytest.fixture(scope="module", params=SIZES)
def found(request: Any, tmp_path_factory: Any) -> list[dict[str, Any]]:
    """Return what each process of a group found."""
    folder = tmp_path_factory.mktemp("ranks")
    spawn(on_ranks, (request.param, str(folder)), request.param)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """Return what one process finds on the whole batch."""
    return {**normalised(None), **gradients(None)}


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_every_process_holds_the_rows_in_the_order_of_the_ranks(found: Any) -> None:
    size = len(found)
    parts = [torch.arange(6.0, dtype=torch.float64).view(2, 3) + 10 * r for r in range(size)]
    for result in found:
        assert torch.equal(result["gathered"], torch.cat(parts))


def test_the_gradient_sums_what_every_process_sends_back(found: Any) -> None:
    size = len(found)
    expected = size * coefficients(torch.zeros(2 * size, 3, dtype=torch.float64))
    for rank, result in enumerate(found):
        assert torch.equal(result["gradient"], expected[2 * rank : 2 * rank + 2])


def test_types_are_kept(found: Any) -> None:
    expected = torch.tensor([[rank, 1] for rank in range(len(found))]).flatten()
    for result in found:
        for name, value in result["types"].items():
            assert str(value.dtype) == name
            assert torch.equal(value, expected.to(value.dtype))


@pytest.mark.parametrize("layer", LAYERS)
def test_batchnorm_is_that_of_one_process(found: Any, alone: Any, layer: str) -> None:
    for turn in range(2):
        for what in ("out", "gradient"):
            parts = torch.cat([result[f"{layer}: {what} {turn}"] for result in found])
            torch.testing.assert_close(parts, alone[f"{layer}: {what} {turn}"])
    for result in found:
        torch.testing.assert_close(result[f"{layer}: state"], alone[f"{layer}: state"])


@pytest.mark.parametrize(("weights", "bn"), CASES)
@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_that_of_one_process(
    found: Any, alone: Any, method: str, weights: str, bn: str
) -> None:
    key = f"{method}, {weights}, {bn}"
    for result in found:
        assert error(result[key], alone[key]) < LIMIT
        torch.testing.assert_close(result[f"{key}: buffers"], alone[f"{key}: buffers"])
        assert float(result[f"{key}: accuracy"]) == pytest.approx(float(alone[f"{key}: accuracy"]))


def test_a_batch_in_parts_over_processes_is_that_of_one(found: Any) -> None:
    whole = accumulated(None, 1)
    for result in found:
        assert error(result["in parts"], whole) < 1e-12


@pytest.mark.parametrize("fault", ["slot", "by itself"])
def test_the_usual_faults_are_far_off(found: Any, alone: Any, fault: str) -> None:
    key = "mmd, weighted, joint"
    assert error(found[0][f"{fault}: {key}"], alone[key]) > 1e3 * LIMIT
