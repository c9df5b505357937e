"""Feature cache: what is computed once, what is computed again, and what an entry holds."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from daptkit.errors import DaptkitError
from daptkit.model import AdaptNet, FeatureCache, default_cache_dir
from tiny_nets import tiny_net

PARTS: dict[str, Any] = {"data": "00ff", "conversion": {"img_size": 28}}


class Images:
    """Ten images of one channel, whose prefetch notes the batches that were asked for."""

    def __init__(self, n: int = 10) -> None:
        generator = torch.Generator().manual_seed(3)
        self.pixels = torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8, generator=generator)
        self.batches: list[int] = []

    def __len__(self) -> int:
        return len(self.pixels)

    def prefetch(self, batches: Iterable[npt.NDArray[np.int64]]) -> Iterator[Tensor]:
        for rows in batches:
            self.batches.append(len(rows))
            yield self.pixels[torch.from_numpy(rows)]


def make(seed: int = 0, **changes: Any) -> AdaptNet:
    values = {"kwargs": {"drop_rate": 0.5}, "img_size": 28, "in_chans": 1, **changes}
    return tiny_net("daptkit_lenet", seed=seed, **values)


def features(cache: FeatureCache, net: AdaptNet, images: Images, **changes: Any) -> Tensor:
    arguments = {"key_parts": PARTS, "device": "cpu", "batch_size": 4, **changes}
    return cache.trunk_features(net, images, **arguments)


def count_calls(net: AdaptNet) -> list[int]:
    calls: list[int] = []
    net.backbone.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    return calls


def test_the_second_reading_does_not_run_the_trunk(tmp_path: Path) -> None:
    images, net = Images(), make()
    calls = count_calls(net)
    cache = FeatureCache(tmp_path / "new" / "cache")
    done: list[tuple[int, int]] = []
    first = features(cache, net, images, progress=lambda n, total: done.append((n, total)))
    assert calls == images.batches == [4, 4, 2] and done == [(4, 10), (8, 10), (10, 10)]
    again = FeatureCache(tmp_path / "new" / "cache")
    second = features(again, net, images)
    assert len(calls) == 3 and images.batches == [4, 4, 2], "a hit decodes no image either"
    assert torch.equal(first, second) and first.dtype == torch.float32
    assert (cache.hits, cache.misses, again.hits, again.misses) == (0, 1, 1, 0)
    with torch.no_grad():
        assert torch.allclose(first, net.eval().trunk(images.pixels), atol=1e-6)


def test_features_are_those_of_eval_mode_and_the_mode_comes_back(tmp_path: Path) -> None:
    net = make().train()
    cached = features(FeatureCache(tmp_path), net, Images())
    assert net.training and net.backbone.training
    with torch.no_grad():
        assert torch.allclose(cached, net.eval().trunk(Images().pixels), atol=1e-6)


def test_everything_that_changes_the_features_changes_the_entry(tmp_path: Path) -> None:
    cache, images = FeatureCache(tmp_path), Images()
    features(cache, make(), images)
    features(cache, make(seed=1), images)
    features(cache, make(mean=(0.1,)), images)
    features(cache, make(std=(0.1,)), images)
    features(cache, make(), images, key_parts={**PARTS, "data": "00fe"})
    features(cache, make(), images, key_parts={**PARTS, "conversion": {"img_size": 32}})
    features(cache, make(), images, key_parts={**PARTS, "alignment": "histogram"})
    assert (cache.hits, cache.misses) == (0, 7)
    assert len(list(tmp_path.iterdir())) == 7


def test_bottleneck_head_and_batch_size_share_an_entry(tmp_path: Path) -> None:
    cache, images = FeatureCache(tmp_path), Images()
    features(cache, make(), images)
    features(cache, make(bottleneck=16, num_classes=7, dropout=0.2), images, batch_size=3)
    assert (cache.hits, cache.misses) == (1, 1)


def test_a_key_without_data_or_conversion_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="conversion"):
        features(FeatureCache(tmp_path), make(), Images(), key_parts={"data": "00ff"})


@pytest.mark.parametrize("fault", ["truncated", "empty", "flipped", "text", "other_size"])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, fault: str) -> None:
    cache, net = FeatureCache(tmp_path), make()
    expected = features(cache, net, Images())
    (entry,) = tmp_path.iterdir()
    content = bytearray(entry.read_bytes())
    if fault == "truncated":
        content = content[:-7]
    elif fault == "empty":
        content = bytearray()
    elif fault == "flipped":
        content[-2] ^= 1
    elif fault == "text":
        content = bytearray(b"not features")
    images = Images(6) if fault == "other_size" else Images()
    entry.write_bytes(content)
    got = features(cache, net, images)
    assert torch.allclose(got, expected[: len(images)], atol=1e-6)
    assert (cache.hits, cache.misses, cache.corrupted) == (0, 2, 1)
    features(cache, net, images)
    assert cache.hits == 1, "the damaged entry was replaced"


def test_concurrent_writers_leave_one_whole_entry(tmp_path: Path) -> None:
    caches = [FeatureCache(tmp_path) for _ in range(4)]
    nets = [make() for _ in caches]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(features, c, n, Images()) for c, n in zip(caches, nets, strict=True)]
        results = [job.result() for job in jobs]
    assert all(torch.equal(r, results[0]) for r in results)
    assert len(list(tmp_path.iterdir())) == 1
    reader = FeatureCache(tmp_path)
    assert torch.equal(features(reader, make(), Images()), results[0]) and reader.hits == 1


def test_an_entry_holds_no_part_of_the_key(tmp_path: Path) -> None:
    features(FeatureCache(tmp_path), make(), Images(), key_parts={**PARTS, "data": "patient_17"})
    (entry,) = tmp_path.iterdir()
    assert b"patient_17" not in entry.read_bytes() and "patient_17" not in entry.name


def test_a_folder_that_cannot_be_written_fails_before_the_trunk_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    net = make()
    calls = count_calls(net)
    with pytest.raises(DaptkitError, match="DAPTKIT_CACHE"):
        features(FeatureCache(tmp_path / "file"), net, Images())
    assert not calls

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DaptkitError, match=r"No space left.*DAPTKIT_CACHE"):
        features(FeatureCache(tmp_path / "full"), net, Images())
    assert list((tmp_path / "full").iterdir()) == []


def test_no_images_give_no_features(tmp_path: Path) -> None:
    assert features(FeatureCache(tmp_path), make(), Images(0)).shape == (0, 500)


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("DAPTKIT_CACHE", "/own")
    assert default_cache_dir() == Path("/own")
    monkeypatch.delenv("DAPTKIT_CACHE")
    assert default_cache_dir() == Path("/xdg/daptkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "daptkit"
