"""What a checkpoint holds of a training, and a training that goes on from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from daptkit.errors import DaptkitError
from daptkit.train.checkpoint import load_states, module_state
from daptkit.train.versions import changed_fits, version_changes
from daptkit.train.window import Window

if TYPE_CHECKING:
    from daptkit.train.job import Job
    from daptkit.train.loop import Trainer


def trainer_state(trainer: Trainer) -> dict[str, Any]:
    """Return all that a continued training needs to do the same as one that was not stopped."""
    assert trainer.metrics is not None
    return {
        "identity": trainer.job.identity,
        "processes": trainer.world.size,
        "packages": dict(trainer.job.packages),
        "fitted": {name: dict(state) for name, state in trainer.job.fitted.items()},
        "step": trainer.step,
        "module": module_state(trainer.module, trainer.job.data.from_trunk),
        **trainer.updater.state(),
        "class_weights": trainer.class_weights,
        "target_prior": trainer.target_prior,
        "metrics_position": trainer.metrics.position,
        "window": trainer.window.state(),
        "notes": trainer.notes,
        "gradual": None if trainer.gradual is None else trainer.gradual.state(),
        "selection": trainer.scores.state(),
    }


def load_trainer(trainer: Trainer, state: dict[str, Any]) -> None:
    """Bring a training to where a checkpoint left it.

    Args:
        trainer: of the same job, as it is made.
        state: what :func:`trainer_state` returned.

    Raises:
        DaptkitError: images or labels are others than the checkpoint's, or images are aligned
            otherwise.
    """
    job = trainer.job
    if state.get("identity") != job.identity:
        raise DaptkitError(
            "--resume: the images or labels have changed since the run was started; start"
            " again in a new --out."
        )
    _ensure_same_fit(state, job)
    load_states(trainer.module, trainer.updater.optimizer, state, job.data.from_trunk)
    trainer.updater.load_state(state)
    trainer.class_weights, trainer.target_prior = state["class_weights"], state["target_prior"]
    trainer.step = int(state["step"])
    trainer.alignment.resume(trainer.class_weights)
    trainer.window = Window.from_state(state["window"], trainer.device)
    trainer.notes = list(state["notes"])
    if trainer.gradual is not None:
        trainer.gradual.load_state(state["gradual"])
    trainer.scores.load_state(state.get("selection"))
    for text in version_changes(state.get("packages", {}), job.packages):
        job.reporter.line(text)
    if state["processes"] != trainer.world.size:
        job.reporter.line(
            f"{job.label}: continued by {trainer.world.size} processes instead of"
            f" {state['processes']}; sums are rounded in another order, and dropout draws anew"
        )


def _ensure_same_fit(state: dict[str, Any], job: Job) -> None:
    """Ensure that the images are aligned as those were that the checkpoint was trained on."""
    for name in changed_fits(state.get("fitted"), job.fitted):
        before = state.get("packages", {}).get(name, "an earlier version")
        raise DaptkitError(
            f"--resume: method '{name}' ({job.packages[name]}) aligns images otherwise than when"
            f" the run was started ({before}); install that version again, or start again in a new"
            " --out."
        )
