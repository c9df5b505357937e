"""What each process of tests/test_train_gather.py does; it is also run as one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from daptkit.config import AdaptConfig
from daptkit.host import load_methods
from daptkit.method import TaskInfo
from daptkit.plugin import build_options
from daptkit.train.accumulate import Accumulator
from daptkit.train.device import full_precision
from daptkit.train.domains import DomainInputs
from daptkit.train.gather import Gather, batch_norm_over, gather_over
from daptkit.train.step import Step
from daptkit.train.update import Updater
from daptkit.train.world import World
from tiny_nets import tiny_net

METHODS = ("none", "dann", "cdan", "coral", "mmd", "jmmd")
WEIGHTS = {"unweighted": [1.0, 1.0, 1.0], "weighted": [0.2, 1.0, 2.5]}
CASES = (("unweighted", "joint"), ("weighted", "joint"), ("weighted", "split"))
BATCH = 12
EDGE = 32
SMALL = {"dann": {"hidden": 8}, "cdan": {"hidden": 8}}

Results = dict[str, Any]


def on_ranks(rank: int, size: int, folder: str) -> None:
    """Run every check as one of ``size`` processes and store what it found."""
    torch.set_num_threads(1)
    place = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size)
    group = dist.group.WORLD
    assert group is not None
    found: Results = {}
    gathers: dict[str, Gather] = {"right": gather_over(group)}
    found |= normalised(gathers["right"], rank, size)
    found |= gathered(gathers["right"], rank)
    found |= gradients(gathers["right"], rank, size)
    found["in parts"] = accumulated(gathers["right"], 2, rank, size)
    for name, faulty in (("slot", slot_replacing(group)), ("by itself", lambda x: x)):
        found |= {
            f"{name}: {key}": value
            for key, value in gradients(faulty, rank, size, ("mmd",)).items()
        }
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def slot_replacing(group: dist.ProcessGroup) -> Gather:
    """Return the common mistake: the own rows put in place of what was gathered of them."""

    def gather(x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.detach().contiguous(), group=group)
        parts[dist.get_rank(group)] = x
        return torch.cat(parts)

    return gather


def gathered(gather: Gather, rank: int) -> Results:
    """Gather (2, 3) numbers of each process and weight them; other types keep their type."""
    x = (torch.arange(6.0, dtype=torch.float64).view(2, 3) + 10 * rank).requires_grad_()
    whole = gather(x)
    (gradient,) = torch.autograd.grad((whole * coefficients(whole)).sum(), x)
    types = (torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.float32)
    kept = {str(t): gather(torch.tensor([rank, 1]).to(t)) for t in types}
    return {"gathered": whole.detach(), "gradient": gradient, "types": kept}


def coefficients(like: Tensor) -> Tensor:
    """Return a different factor for each element."""
    return torch.arange(1.0, like.numel() + 1, dtype=like.dtype).view_as(like)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1-D": (lambda: nn.BatchNorm1d(5), (5,)),
    "2-D": (lambda: nn.BatchNorm2d(5), (5, 4, 3)),
    "with activation": (lambda: BatchNormAct2d(5), (5, 4, 3)),
    "without affine": (lambda: nn.BatchNorm2d(5, affine=False), (5, 4, 3)),
    "moving average": (lambda: nn.BatchNorm2d(5, momentum=None), (5, 4, 3)),
    "without running": (lambda: nn.BatchNorm2d(5, track_running_stats=False), (5, 4, 3)),
    "eval": (lambda: nn.BatchNorm2d(5).eval(), (5, 4, 3)),
}


def normalised(gather: Gather | None, rank: int = 0, size: int = 1) -> Results:
    """Pass two batches through each layer; return outputs, gradients and statistics."""
    found: Results = {}
    for name, (make, shape) in LAYERS.items():
        layer = make().double()
        generator = torch.Generator().manual_seed(3)
        drawn = [torch.randn(12, *shape, generator=generator, dtype=torch.float64) for _ in "ab"]
        for turn, whole in enumerate(drawn):
            x = (rows(whole, rank, size) * 3 + 50).requires_grad_()
            with batch_norm_over(gather):
                out = layer(x)
            # The loss is a sum over all rows, so each process' part of it is summed by itself.
            loss = (out * rows(coefficients(whole), rank, size).sin()).sum()
            torch.autograd.backward(loss)
            found[f"{name}: out {turn}"] = out.detach()
            found[f"{name}: gradient {turn}"] = x.grad
        found[f"{name}: state"] = {k: v.double() for k, v in layer.state_dict().items()}
    return found


def rows(whole: Any, rank: int, size: int) -> Any:
    """Return a process' contiguous part."""
    n = len(whole) // size
    return whole[rank * n : (rank + 1) * n]


def domain(seed: int, rank: int, size: int, *, labels: bool) -> DomainInputs:
    """Return a process' part of a batch of one domain."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(BATCH, 3, EDGE, EDGE, generator=generator, dtype=torch.float64)
    drawn = torch.randint(0, 3, (BATCH,), generator=generator)
    numbers = torch.arange(BATCH)
    return DomainInputs(
        inputs=rows(images * (1 + seed), rank, size),
        rows=rows(numbers, rank, size),
        groups=rows(numbers, rank, size),
        labels=rows(drawn, rank, size) if labels else None,
    )


def gradients(
    gather: Gather | None,
    rank: int = 0,
    size: int = 1,
    methods: tuple[str, ...] = METHODS,
) -> Results:
    """Return the gradient of one step, all parameters in one vector, by method and weights."""
    found: Results = {}
    for name in methods:
        for label, bn in CASES:
            step = step_of(name, gather, split=bn == "split")
            wrapped: Any = step
            if size > 1:
                wrapped = DistributedDataParallel(step, forward_sync_buffers=False)
            result = wrapped(
                domain(0, rank, size, labels=True),
                domain(1, rank, size, labels=False),
                progress=0.5,
                step=3,
                class_weights=torch.tensor(WEIGHTS[label], dtype=torch.float64),
                target_prior=None,
                from_trunk=False,
                generator=torch.Generator(),
            )
            torch.autograd.backward(torch.stack(list(result.losses.values())).sum())
            key = f"{name}, {label}, {bn}"
            of_each = [p.grad for p in step.parameters() if p.grad is not None]
            found[key] = torch.cat([gradient.flatten() for gradient in of_each])
            found[f"{key}: buffers"] = torch.cat(
                [b.double().flatten() for b in step.net.backbone.buffers()]
            )
            found[f"{key}: accuracy"] = result.logs["source_accuracy"]
    return found


def accumulated(gather: Gather | None, parts: int, rank: int = 0, size: int = 1) -> Tensor:
    """Return the gradient of a weighted batch passed in parts, all parameters in one vector."""
    # In eval mode, so that BatchNorm does not normalise each part by itself.
    step = step_of("none", gather, split=False).eval()
    wrapped: Any = step
    if size > 1:
        wrapped = DistributedDataParallel(step, forward_sync_buffers=False)
    job: Any = SimpleNamespace(
        net=step.net,
        methods={},
        packages={},
        config=AdaptConfig(grad_accum_steps=parts),
        precision=full_precision(torch.device("cpu")),
        backbone_scale=1.0,
        world=World(rank=rank, size=size),
    )
    found = Accumulator(job, Updater(job)).run(
        wrapped,
        domain(0, rank, size, labels=True),
        None,
        step=3,
        generator=torch.Generator(),
        progress=0.5,
        class_weights=torch.tensor(WEIGHTS["weighted"], dtype=torch.float64),
        target_prior=None,
        from_trunk=False,
    )
    of_each = [p.grad.flatten() for p in step.parameters() if p.grad is not None]
    return torch.cat([*of_each, found.losses["classification"][None]])


def step_of(name: str, gather: Gather | None, *, split: bool) -> Step:
    """Return a step in float64 with BatchNorm in its model, the same on every process."""
    net = tiny_net()
    dims = {"features": 8, "logits": 3}
    task = TaskInfo(
        classes=("a", "b", "c"),
        dims=dims,
        source_prior=torch.full((3,), 1 / 3),
        n_source=BATCH,
        n_target=BATCH,
    )
    torch.manual_seed(5)
    methods, packages = {}, {}
    for loaded in load_methods([] if name == "none" else [name]):
        options: Any = build_options(loaded.spec.options, SMALL.get(name, {}))
        methods[name] = loaded.load_factory()(options, task)
        packages[name] = f"{loaded.package} {loaded.version}"
    return Step(net, methods, packages, split=split, gather=gather).double().train()
