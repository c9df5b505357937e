"""Gradual unfreezing: the backbone is trained stage by stage, from the top."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from daptkit.model import AdaptNet, backbone_stages

UNFREEZE = "unfreeze"
"""Kind of the lines of ``metrics.jsonl`` that :class:`Unfreezing` writes."""

GAIN = 0.01
"""Part by which a validation loss has to fall below the lowest so far to count as improving."""

RISE = 0.05
"""Part by which it has to exceed the lowest so far to count as risen."""


@dataclass(frozen=True, kw_only=True)
class Unfreezing:
    """What was decided after an epoch.

    Args:
        stages: stages that are trained from now on; none where unfreezing stopped.
        source_val_loss: the loss on the source's validation images that decided it.
        trained: number of stages trained from now on.
        of: number of stages of the backbone.
    """

    stages: tuple[str, ...]
    source_val_loss: float
    trained: int
    of: int

    def entry(self, step: int, epoch: int) -> dict[str, Any]:
        """Return the line of ``metrics.jsonl``."""
        return {"kind": UNFREEZE, "step": step, "epoch": epoch, **asdict(self)}

    def sentence(self, epoch: int) -> str:
        """Return a line for the user."""
        loss = f"after epoch {epoch} the source validation loss is {self.source_val_loss:.3g}"
        if self.stages:
            names = ", ".join(self.stages)
            return (
                f"{loss} and no longer improves: {names} is trained too"
                f" ({self.trained} of {self.of} stages)"
            )
        return f"{loss} and has risen: unfreezing stops at {self.trained} of {self.of} stages"


class Gradual:
    """Decides after each epoch whether one more stage of the backbone is trained.

    Bottleneck and head are trained first. L being the loss on the source's validation images and
    M the lowest one so far:

    - L < (1 - :data:`GAIN`) M: it improves; nothing changes.
    - L > (1 + :data:`RISE`) M after a stage was unfrozen: unfreezing stops for good.
    - else the topmost frozen stage is trained from the next step on.

    Gradual unfreezing is of Howard and Ruder (2018, arXiv:1801.06146), who unfreeze a layer each
    epoch, whatever the loss, down to the last. Here the loss decides when, and how far; a stage
    that is trained stays so, and nothing is taken back.

    Args:
        net: the model; all of its backbone is frozen.
    """

    def __init__(self, net: AdaptNet) -> None:
        self._net = net
        self._stages = backbone_stages(net.backbone, coarse=True)[::-1]
        self._trained = 0
        self._lowest = math.inf
        self._stopped = False
        self._apply()

    def after_epoch(self, loss: float) -> Unfreezing | None:
        """Take the validation loss of an epoch; unfreeze a stage or stop, and say so.

        Returns:
            What changed, or ``None``.
        """
        lowest, self._lowest = self._lowest, min(self._lowest, loss)
        if self._stopped or self._trained == len(self._stages) or loss < (1 - GAIN) * lowest:
            return None
        # Written so that a loss that is not a number counts as risen.
        if self._trained and not loss <= (1 + RISE) * lowest:
            self._stopped = True
            return self._decision((), loss)
        self._trained += 1
        self._apply()
        return self._decision((self._stages[self._trained - 1].name,), loss)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {"trained": self._trained, "lowest": self._lowest, "stopped": self._stopped}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on as a checkpoint left it."""
        self._trained, self._lowest = int(state["trained"]), float(state["lowest"])
        self._stopped = bool(state["stopped"])
        self._apply()

    def _apply(self) -> None:
        stages = self._stages[: self._trained]
        self._net.train_backbone([name for stage in stages for name in stage.parameters])

    def _decision(self, stages: tuple[str, ...], loss: float) -> Unfreezing:
        return Unfreezing(
            stages=stages, source_val_loss=loss, trained=self._trained, of=len(self._stages)
        )


def read_unfreezings(metrics: Path) -> list[dict[str, Any]]:
    """Return what a training unfroze, and when, from its ``metrics.jsonl``."""
    lines = metrics.read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == UNFREEZE]
