"""The main job: from labelled source images and unlabelled target images to a run folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from daptkit.config import AdaptConfig, resolve_config
from daptkit.errors import DaptkitError, UsageError
from daptkit.host import method_options
from daptkit.report import report_trained
from daptkit.report.embedder import Embedder
from daptkit.run import RunFolder
from daptkit.train.adaptation import AdaptResult, Trained, run_adaptation
from daptkit.train.events import run_reported
from daptkit.train.progress import Reporter, SilentReporter
from daptkit.train.world import joined_world


def adapt(
    config: AdaptConfig | None = None, *, reporter: Reporter | None = None, **values: Any
) -> AdaptResult:
    """Adapt a model from labelled source images to unlabelled target images.

    Args:
        config: a resolved configuration; or give its fields by name instead, for example
            ``adapt(source="a", target="b", method="dann+bbse", out="run")``.
        reporter: where progress goes; nowhere by default.
        **values: fields of :class:`daptkit.config.AdaptConfig`; options of methods as
            ``method_options={"dann": {"weight": 0.5}}``.

    Returns:
        The run folder, the closing summary and the figures behind it.

    Raises:
        UsageError: options that cannot work. DataError: data that cannot be used.
        PluginError: a method that breaks the contract. NonFiniteLossError: training diverged.
        DaptkitError: the report failed; the model is written all the same.

    Several processes that ``torchrun`` started and that all call this do one run together: the
    first one writes and tells, and each returns the same.
    """
    if config is not None and values:
        raise UsageError("give adapt() a configuration or its fields, not both.")
    if config is None:
        config = resolve_config(values, None, method_options)
    return train_and_report(config, reporter or SilentReporter()).result


def train_and_report(config: AdaptConfig, reporter: Reporter) -> Trained:
    """Do what :func:`adapt` does, and return the run with its models still in memory.

    Args:
        config: a resolved configuration.
        reporter: where progress goes.
    """
    with contextlib.ExitStack() as held:
        with joined_world(config.device) as world:
            if not world.leads:
                return run_adaptation(config, SilentReporter(), world=world)
            embedder = held.enter_context(Embedder()) if config.report else None
            ready = embedder.warm_up if embedder else None
            trained = run_adaptation(config, reporter, ready, world)
        # The other processes have ended by now, and what follows is for one.
        if embedder is None:
            return trained
        reporter.line("the model is written; measuring what the report shows")
        with _model_is_written(trained.folder):
            report_trained(trained, embedder)
        run_reported(trained.folder)
    return trained


@contextlib.contextmanager
def _model_is_written(folder: RunFolder) -> Iterator[None]:
    """Say of whatever goes wrong in the report that the training was not lost."""
    try:
        yield
    except Exception as error:
        why = str(error) if isinstance(error, DaptkitError) else f"{type(error).__name__}: {error}"
        raise DaptkitError(
            f"the model is written in '{folder.root}', but its report is not: {why.rstrip('.')}."
            f" Build it with 'daptkit report {folder.root}'."
        ) from error
