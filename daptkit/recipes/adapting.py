"""The main job: from labelled source images and unlabelled target images to a run folder."""

from __future__ import annotations

from typing import Any

from daptkit.config import AdaptConfig, resolve_config
from daptkit.errors import UsageError
from daptkit.host import method_options
from daptkit.report import report_trained
from daptkit.report.embedder import Embedder
from daptkit.train.adaptation import AdaptResult, run_adaptation
from daptkit.train.progress import Reporter, SilentReporter


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
    """
    if config is not None and values:
        raise UsageError("give adapt() a configuration or its fields, not both.")
    if config is None:
        config = resolve_config(values, None, method_options)
    report = reporter or SilentReporter()
    if not config.report:
        return run_adaptation(config, report).result
    with Embedder() as embedder:
        trained = run_adaptation(config, report, ready=embedder.warm_up)
        report.line("the model is written; measuring what the report shows")
        report_trained(trained, embedder)
    return trained.result
