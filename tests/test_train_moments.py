"""Moments of what layers are fed: loops in float64, any number of images at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from daptkit.model import norm_layers, norm_modules, normalised_by
from daptkit.model.network import evaluating
from daptkit.train import domains, moments
from daptkit.train.domains import Domain
from daptkit.train.moments import TRUNK, chained_statistics, input_moments
from fakes import make_job, tiny_config, write_weights
from tiny_nets import tiny_net


class Rows:
    """Images in memory, as many at a time as asked for."""

    def __init__(self, images: Tensor, chunk: int) -> None:
        self.images, self.chunk, self.trunk = images, chunk, None
        self.asked: list[int] = []

    chunks = Domain.chunks

    def inputs(self, batches: Any) -> Any:
        for rows in batches:
            self.asked.append(len(rows))
            yield self.images[torch.as_tensor(rows)]


class Layers(nn.Module):
    """Two BatchNorm layers, the second fed by the first, with statistics of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm1d(4)
        self.conv = nn.Conv2d(3, 4, 3)
        for layer in (self.first, self.second):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
            nn.init.normal_(layer.weight)
        self.num_features = 4

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(self.first(x)).relu().mean((2, 3)))


@pytest.fixture
def net() -> Any:
    made = tiny_net()
    made.backbone = Layers()
    return made.double()


def images(n: int = 13, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(n, 3, 6, 6, generator=generator, dtype=torch.float64)
    return drawn * torch.rand(n, 3, 1, 1, generator=generator, dtype=torch.float64)


def measure(net: Any, x: Tensor, chunk: int = 5, **values: Any) -> Any:
    layers = values.pop("layers", tuple(norm_modules(net)))
    return input_moments(
        net, Rows(x, chunk), torch.arange(len(x)).numpy(), layers=layers, precision=CPU, **values
    )


class Double:
    """Full precision of float64."""

    device = torch.device("cpu")

    def autocast(self) -> Any:
        return torch.autocast("cpu", enabled=False)


CPU: Any = Double()


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "to_float", lambda x: x)


def loop(x: list[list[float]], w: list[float]) -> tuple[float, float]:
    """Return mean and variance of one channel, of the places of each image."""
    total = sum(wi * len(places) for wi, places in zip(w, x, strict=True))
    mean = sum(wi * v for wi, places in zip(w, x, strict=True) for v in places) / total
    spread = sum(wi * (v - mean) ** 2 for wi, places in zip(w, x, strict=True) for v in places)
    return mean, spread / total


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_are_the_loop(net: Any, weighted: bool) -> None:
    x = images()
    w = torch.linspace(0.0, 2.0, len(x)) if weighted else None
    found = measure(net, x, weights=w, layers=("backbone.first", "backbone.second", TRUNK))
    shares = [1.0] * len(x) if w is None else w.tolist()
    net.eval()
    fed = (x - net.mean) / net.std
    second = net.backbone.conv(net.backbone.first(fed)).relu().mean((2, 3))
    expected = {"first": fed.flatten(2), "second": second[..., None]}
    expected = {f"backbone.{name}": value for name, value in expected.items()}
    expected[TRUNK] = net.backbone(fed)[..., None]
    assert list(found) == ["backbone.first", "backbone.second", TRUNK]
    for name, values in expected.items():
        for channel in range(values.shape[1]):
            mean, var = loop(values[:, channel].tolist(), shares)
            assert found[name][0][channel].item() == pytest.approx(mean, rel=1e-9)
            assert found[name][1][channel].item() == pytest.approx(var, rel=1e-9)


def test_any_number_of_images_at_a_time(net: Any) -> None:
    x, w = images(64), torch.linspace(0.1, 2.0, 64)
    one, all_ = measure(net, x, 1, weights=w), measure(net, x, 64, weights=w)
    for name in all_:
        torch.testing.assert_close(one[name], all_[name], rtol=1e-12, atol=1e-12)


def test_images_without_weight_count_for_nothing(net: Any) -> None:
    x = images(10)
    x[7:] = 1e6
    w = torch.tensor([1.0] * 7 + [0.0] * 3)
    some, few = measure(net, x, 3, weights=w), measure(net, x[:7], 7)
    for name in few:
        torch.testing.assert_close(some[name], few[name])
    with pytest.raises(ValueError, match="no image has a positive weight"):
        measure(net, x, weights=0 * w)
    with pytest.raises(ValueError, match=r"no normalisation layer 'backbone\.third'"):
        measure(net, x, layers=("backbone.third",))


def test_large_means_cost_no_digits() -> None:
    x = 1e4 + torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    mean, var = moments._merged(torch.stack([_sums_of(part) for part in x.split(7)]))
    exact = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, exact.mean(1), rtol=1e-7, atol=0)
    torch.testing.assert_close(var, exact.var(1, correction=0), rtol=1e-4, atol=0)


def _sums_of(x: Tensor) -> Tensor:
    return moments._sums(*moments._of_images(x), torch.ones(len(x), dtype=torch.float64))


def own_moments(name: str, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    return mean, var


@pytest.mark.parametrize("at_once", [0, 4])
def test_chained_statistics_are_of_inputs_under_those_before(
    net: Any, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a train-mode forward of all images: there each layer sees the others' statistics."""
    monkeypatch.setattr(moments, "AT_ONCE", at_once)
    x = images(17)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rows = Rows(x, 5)
    found = chained_statistics(
        net, rows, torch.arange(17).numpy(), choose=own_moments, precision=CPU
    )
    passes = [17] if at_once else [1, *[5, 5, 5, 2] * 2]
    assert rows.asked == passes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert list(found) == ["backbone.first", "backbone.second"]
    with normalised_by(net, found), evaluating(net):
        ours = net.trunk(x)
        again = measure(net, x)
    for name in found:
        torch.testing.assert_close(again[name], found[name], rtol=1e-9, atol=1e-12)
    net.backbone.train()
    torch.testing.assert_close(ours, net.trunk(x), rtol=1e-9, atol=1e-9)


def test_lack_of_memory_is_answered_by_more_passes(
    net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, rows = images(8), torch.arange(8).numpy()
    arguments: dict[str, Any] = {"choose": own_moments, "precision": CPU}
    whole = chained_statistics(net, Rows(x, 3), rows, **arguments)
    plain = moments._of_images

    def scarce(x: Tensor) -> Any:
        if len(x) == 8:
            raise MemoryError
        return plain(x)

    monkeypatch.setattr(moments, "_of_images", scarce)
    parts = chained_statistics(net, Rows(x, 3), rows, **arguments)
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_mambaout", "test_vit"])
def test_layers_are_known_by_their_statistics(name: str) -> None:
    net = tiny_net(name)
    kept = {n.rpartition(".")[0] for n, _ in net.named_buffers() if n.endswith("running_mean")}
    assert set(norm_modules(net)) == set(norm_layers(net)) == kept


def test_statistics_are_swapped_for_the_block_alone(net: Any) -> None:
    x = images(4)
    net.eval()
    plain = net.trunk(x)
    name = "backbone.first"
    layer = norm_layers(net)[name]
    other = {name: (layer.mean + 1, 4 * layer.var)}
    with pytest.raises(RuntimeError, match="stop"), normalised_by(net, other):
        assert not torch.equal(net.trunk(x), plain)
        raise RuntimeError("stop")
    assert torch.equal(net.trunk(x), plain)


def test_a_run_measures_what_it_trains_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "to_float", domains.to_float)
    job, maker = make_job(tiny_config(tmp_path, **write_weights(tmp_path)))
    data, net = job.data, job.net.eval()
    name = next(iter(norm_modules(net)))
    fed: list[Tensor] = []
    handle = net.get_submodule(name).register_forward_pre_hook(lambda m, x: fed.append(x[0]))
    with torch.no_grad():
        net(data.target.images.batch(data.target_rows))
    handle.remove()
    arguments: dict[str, Any] = {"layers": (name,), "precision": maker.precision}
    mean, var = input_moments(net, data.target, data.target_rows, **arguments)[name]
    exact = fed[0].double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, exact.mean(1))
    torch.testing.assert_close(var, exact.var(1, correction=0))
    frozen = replace(data.target, trunk=torch.randn(len(data.target), 5))
    mean, var = input_moments(
        net, frozen, data.target_rows, layers=(TRUNK,), precision=maker.precision
    )[TRUNK]
    trunk = frozen.trunk[data.target_rows].double()
    torch.testing.assert_close(mean, trunk.mean(0))
    torch.testing.assert_close(var, trunk.var(0, correction=0))
