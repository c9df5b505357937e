"""The label-free scores of a run: daptkit's own and those of installed plugins."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch

from daptkit.assess.scores import SCORES, ScoreInputs, score_values
from daptkit.errors import PluginError, UsageError, did_you_mean
from daptkit.host import Loaded, load_scores
from daptkit.host.isolation import PluginFault, guarded
from daptkit.plugin import ScoreSpec

LAST, AUTO = "last", "auto"
"""Values of ``--select`` that name no score."""

Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PluginScore:
    """A score of a plugin.

    Args:
        name: as ``--select`` and the metrics name it.
        origin: kind, name, package and version, for messages.
        function: from what :func:`daptkit.assess.score_inputs` makes to a number.
        higher_is_better: whether a higher score is better.
    """

    name: str
    origin: str
    function: Callable[[ScoreInputs], object]
    higher_is_better: bool

    def value(self, inputs: ScoreInputs) -> float:
        """Return the score; its inputs and the random numbers of the run stay as they are.

        Raises:
            PluginFault: it raised, or returned something else than a number.
        """
        before = np.random.get_state()  # noqa: NPY002 - what a plugin draws from unasked
        try:
            with guarded("it", timeout=None), torch.random.fork_rng(devices=[]):
                found = self.function(inputs)
        finally:
            np.random.set_state(before)  # noqa: NPY002
        if isinstance(found, bool) or not isinstance(found, numbers.Real):
            raise PluginFault(f"it returned {type(found).__name__}, not a number")
        return float(found)


class ScoreSet:
    """All scores that a run computes; a plugin's that fails costs a line and is left out from then.

    Args:
        plugins: scores beside daptkit's own.
        needed: the score that the run was asked to select by, whose failure ends the run.
        log: told one line about each that fails.
    """

    def __init__(
        self,
        plugins: Sequence[PluginScore] = (),
        *,
        needed: str | None = None,
        log: Log = lambda _: None,
    ) -> None:
        self._plugins = {score.name: score for score in plugins}
        self._needed = needed
        self._log = log

    @property
    def names(self) -> list[str]:
        """Names of the scores, daptkit's own first."""
        return [*SCORES, *self._plugins]

    def higher_is_better(self, name: str) -> bool:
        """Whether a higher value of a score is better."""
        return SCORES[name][1] if name in SCORES else self._plugins[name].higher_is_better

    def values(self, inputs: ScoreInputs) -> dict[str, float]:
        """Return every score of a candidate, NaN where it is not defined.

        Raises:
            PluginError: the score that was asked for failed.
        """
        found = score_values(inputs)
        sealed = _sealed(inputs) if self._plugins else inputs
        for name, score in list(self._plugins.items()):
            try:
                found[name] = score.value(sealed)
            except PluginFault as fault:
                if name == self._needed:
                    raise PluginError(f"{score.origin}, named by --select: {fault}.") from fault
                del self._plugins[name]
                self._log(f"warning: {score.origin} is left out from now on: {fault}")
        return found


def load_score_set(select: str, log: Log) -> ScoreSet:
    """Return daptkit's scores and those of the installed plugins.

    Args:
        select: ``--select``; a broken plugin that it names is an error.
        log: told one line about each other plugin that is broken.

    Raises:
        UsageError: ``select`` names no score.
        PluginError: it names a broken plugin.
    """
    own = [LAST, AUTO, *SCORES]

    def refuse(name: str, text: str) -> None:
        # A plugin that takes a name of daptkit's own is left out, and the name is as good as ever.
        if name == select and name not in own:
            _refuse(text)
        log(f"warning: {text}")

    loaded = load_scores(log=refuse)
    plugins = [found for score in loaded if (found := _ready(score, refuse)) is not None]
    known = [*own, *(score.name for score in plugins)]
    if select not in known:
        raise UsageError(
            f"--select is one of {', '.join(known)}, not {select!r}.{did_you_mean(select, known)}"
        )
    return ScoreSet(plugins, needed=select, log=log)


def _ready(score: Loaded[ScoreSpec], refuse: Callable[[str, str], None]) -> PluginScore | None:
    """Return a score whose function is imported; ``None`` where that fails."""
    try:
        function = score.load_factory()
    except PluginError as error:
        refuse(score.spec.name, str(error).rstrip("."))
        return None
    return PluginScore(
        name=score.spec.name,
        origin=score.origin,
        function=function,
        higher_is_better=score.spec.higher_is_better,
    )


def _refuse(text: str) -> NoReturn:
    raise PluginError(f"--select: {text}. 'daptkit plugins list' shows every plugin.")


def _sealed(inputs: ScoreInputs) -> ScoreInputs:
    """Return the inputs with arrays that cannot be written to, since all scores share them."""
    arrays: dict[str, Any] = {}
    for field in dataclasses.fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = value.view()
            arrays[field.name].flags.writeable = False
    return dataclasses.replace(inputs, **arrays)
