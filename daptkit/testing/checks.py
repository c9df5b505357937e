"""What every aligning method should pass, as values to assert on."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import Tensor

from daptkit.method import DomainBatch, Method
from daptkit.testing.made import join_batches, make_batch, make_step
from daptkit.testing.processes import losses_of_two_processes

Pair = tuple[DomainBatch, DomainBatch]


def assert_global_batch(method: Method) -> None:
    """Check that two processes with half a batch each find losses and gradients of the whole.

    Source weights differ between the halves, so a method that normalises by its own process's sum
    fails; so does one that leaves out ``ctx.gather``.

    Args:
        method: returns losses for the batches of :func:`daptkit.testing.make_batch`.

    Raises:
        AssertionError: they differ, or there is no loss.
    """
    weights = torch.tensor([0.2, 2.0, 1.0, 0.5])
    mine = make_batch(4, 1, weights=weights), make_batch(3, 2, shift=1.0)
    other = make_batch(4, 3, weights=3 * weights), make_batch(3, 4, shift=0.5)
    joined = join_batches(mine[0], other[0]), join_batches(mine[1], other[1])
    whole = method.losses(*joined, make_step())
    split = losses_of_two_processes(
        lambda pair, gather: method.losses(*pair, make_step(gather=gather)), mine, other
    )
    assert whole, "the method returns no loss"
    assert whole.keys() == split.keys(), "the names of losses depend on the batch"
    leaves = [x for batch in (*mine, *other) for x in (batch.features, batch.logits)]
    for name in whole:
        torch.testing.assert_close(split[name], whole[name])
        torch.testing.assert_close(_gradients(split[name], leaves), _gradients(whole[name], leaves))


def assert_aligns_images(method: Method, source: Tensor, target: Tensor) -> None:
    """Fit a method of the role ``inputs`` and check what the host relies on.

    Images keep their shape and stay finite; what becomes of one depends on it alone, up to
    rounding; all that was found is in buffers of fixed shape, so that a method made anew from them
    does the same, as it has to at prediction.

    Args:
        method: not fitted yet.
        source: (n, C, H, W) float32 in [0, 1], at least 2.
        target: the same of the target.

    Raises:
        AssertionError: one of these does not hold.
    """
    shapes = {name: value.shape for name, value in method.state_dict().items()}
    with torch.no_grad():
        method.fit_images(source.clone(), target.clone())
        method.eval()
        state = method.state_dict()
        assert {name: value.shape for name, value in state.items()} == shapes, (
            "fit_images() changed the shape of a buffer"
        )
        anew = type(method)(method.options, method.task).eval()
        anew.load_state_dict(state)
        for domain, images in (("source", source), ("target", target)):
            found = method.align_images(images.clone(), domain)
            assert found.shape == images.shape, "the shape of the images changed"
            assert bool(found.isfinite().all()), "an image is not finite"
            alone = [method.align_images(image[None].clone(), domain) for image in images]
            same = torch.allclose(torch.cat(alone), found, rtol=0.0, atol=1e-6)
            assert same, "an image depends on others of the batch"
            again = anew.align_images(images.clone(), domain)
            assert torch.equal(again, found), "not all that was fitted is in buffers"


def gap_of_means(method: Method, *, steps: int = 150) -> tuple[float, float]:
    """Return the squared gap of two domains' means before and after following a method's losses.

    The features themselves move, by Adam; the method's own parameters follow the same losses.

    Args:
        method: returns losses for the batches of :func:`daptkit.testing.make_batch`.
        steps: number of updates.
    """
    source, target = make_batch(32, 5), make_batch(24, 6, shift=2.0)
    leaves = [source.features, target.features]

    def gap() -> float:
        return float((leaves[0].mean(0) - leaves[1].mean(0)).square().sum().detach())

    optimiser = torch.optim.Adam([*leaves, *method.parameters()], lr=0.02)
    before = gap()
    for _ in range(steps):
        optimiser.zero_grad()
        torch.autograd.backward(list(method.losses(source, target, make_step()).values()))
        optimiser.step()
    return before, gap()


def imports_torch(module: str) -> bool:
    """Return whether importing a module, in a process of its own, imports torch.

    Args:
        module: its dotted name.

    Raises:
        subprocess.CalledProcessError: the module cannot be imported.
    """
    # The child sees the same modules as this process, however its path was put together.
    code = f"import sys; sys.path[:] = {sys.path!r}; import {module}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip() == "True"


def _gradients(loss: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Return the gradient of each leaf, zeros for one that the loss does not depend on."""
    return torch.autograd.grad(
        loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
    )
