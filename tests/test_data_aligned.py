"""Images that a method changes: read like others, in memory or made when asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from daptkit.data import AlignedImages, Conversion, ImageSet, read_table
from fakes import write_npz


class Halving:
    """Halves the images, and counts them."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.float32
        self.seen += len(images)
        return images / 2


@pytest.fixture
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    path = write_npz(tmp_path_factory.mktemp("aligned") / "site.npz", n=60)
    table = read_table(path, domain="target", labelled=False, log=lambda _: None)
    return ImageSet(table, Conversion(img_size=16, in_chans=1, windows={}), workers=1)


@pytest.mark.parametrize("keep", [True, False])
def test_rows_are_those_of_the_images(images: ImageSet, keep: bool) -> None:
    halving = Halving()
    found = AlignedImages(images, halving, fingerprint="f", keep=keep)
    assert len(found) == len(images) == 100
    assert found.in_memory == keep
    assert halving.seen == (100 if keep else 0)
    expected = torch.from_numpy(np.rint(images.batch(np.arange(100)).numpy() / 2)).byte()
    for rows in ([3], [70, 2, 2], list(range(100))):
        got = found.batch(rows)
        assert got.dtype == torch.uint8
        assert (got.int() - expected[rows].int()).abs().max() <= 1  # halves round to even
    batches = [np.array([1, 2]), np.array([99])]
    got = torch.cat(list(found.prefetch(batches)))
    assert torch.equal(got, found.batch([1, 2, 99]))
    assert halving.seen == (100 if keep else 1 + 3 + 100 + 3 + 3)
    assert found.table is images.table
    assert found.conversion is images.conversion


def test_what_does_not_fit_in_memory_is_made_again(images: ImageSet) -> None:
    size = 100 * 16 * 16
    small = AlignedImages(images, Halving(), fingerprint="", keep=True, memory_limit=size - 1)
    large = AlignedImages(images, Halving(), fingerprint="", keep=True, memory_limit=size)
    assert (small.in_memory, large.in_memory) == (False, True)
    rows = np.arange(100)
    assert torch.equal(small.batch(rows), large.batch(rows))


def test_deep_images_keep_their_levels(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("deep") / "site.npz"
    levels = np.arange(12 * 256, dtype=np.uint16).reshape(12, 16, 16)
    np.savez(path, train_images=levels, train_labels=np.arange(12) % 2)
    table = read_table(path, domain="target", labelled=False, log=lambda _: None)
    window = {"int": (0.0, 4095.0)}
    deep = ImageSet(table, Conversion(img_size=16, in_chans=1, windows=window), workers=1)
    found = AlignedImages(deep, Halving(), fingerprint="", keep=True).batch([0, 11])
    assert found.dtype == torch.float32
    assert torch.equal(found, deep.batch([0, 11]) / 2)
    assert len(found.unique()) > 256
