"""``--compile``: the backbone as torch.compile makes it, for the steps of training alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from daptkit.config import AdaptConfig
from daptkit.errors import DaptkitError, UsageError
from daptkit.host import LoadedMethod
from daptkit.train.job import Job
from daptkit.train.progress import Reporter

Backbone = Callable[[Tensor], Tensor]
"""From images (N, C, H, W), normalised, to pooled features (N, D')."""

_BACKEND = "inductor"


def check_compile(
    config: AdaptConfig, loaded: Sequence[LoadedMethod], device: torch.device, reporter: Reporter
) -> None:
    """Find out, before any image is read, whether ``--compile`` can work in this run.

    Args:
        config: options.
        loaded: methods of the run, their ``layers`` checked.
        device: where the run trains.
        reporter: told where there is nothing to compile.

    Raises:
        UsageError: a method reads a layer that compiled code does not show.
        DaptkitError: torch cannot compile here.
    """
    if not config.compile:
        return
    for method in loaded:
        inside = [tap for tap in method.load_factory().layers if tap.split(".")[0] == "backbone"]
        if inside:
            raise UsageError(
                f"method '{method.spec.name}' ({method.package} {method.version}) reads the layer"
                f" '{inside[0]}', which a compiled backbone does not show; leave --compile out."
            )
    if config.finetune == "frozen":
        reporter.line(
            "--compile: a frozen run trains on cached features, so there is no backbone to compile"
        )
        if not config.from_scratch:
            return
    reporter.line("--compile: the first step of a model compiles it, which may take minutes")
    trial = torch.ones(2, 2, device=device, requires_grad=True)
    torch.autograd.backward(_compiled(lambda x: x.sin().sum(0))(trial).sum())


def training_backbone(job: Job) -> Backbone | None:
    """Return what a job's steps call in place of its backbone; ``None`` for the backbone itself.

    Only what trains calls the compiled form: whole-split passes stay as ``daptkit predict``
    computes them, need no code for their mode and their short last chunk, and may read any layer.
    The network keeps its parameters and their names. Code is made at the first call, and again
    where a shape or a mode changes. Ask again when what is trained changes.

    Args:
        job: the job; its model is on the device.
    """
    if not job.config.compile or job.data.from_trunk:
        return None
    # What was compiled before counts against torch's limit of versions of the same code, beyond
    # which it goes on uncompiled; and other sizes would make these dynamic, which is slower.
    torch.compiler.reset()
    return _compiled(job.net.backbone.__call__)


def _compiled(function: Backbone) -> Backbone:
    """Compile a function; whatever torch says against it becomes one line.

    Raises:
        DaptkitError: when called, if torch cannot compile here.
    """
    from torch._dynamo.exc import TorchDynamoException, TorchRuntimeError

    try:
        compiled: Backbone = torch.compile(function, backend=_BACKEND)
    except RuntimeError as error:  # a Python that torch cannot compile for
        raise _refusal(error) from error

    def run(x: Tensor) -> Tensor:
        try:
            return compiled(x)
        except TorchRuntimeError as error:
            function(x)  # raises what the code itself has against the input, by its own name
            raise _refusal(error) from error
        except TorchDynamoException as error:
            raise _refusal(error) from error

    return run


def _refusal(error: Exception) -> DaptkitError:
    # What a backend raised is wrapped; the rest of a message is for torch's developers.
    said = str(getattr(error, "inner_exception", error)).strip()
    reason = said.splitlines()[0] if said else type(error).__name__
    return DaptkitError(
        f"--compile: torch cannot compile on this machine: {reason.rstrip('.')}. Install a C++"
        " compiler (and Triton for a GPU), or leave --compile out."
    )
