"""The pipelines as plain functions: adapt, predict, evaluate, build_report and demo."""

from daptkit.recipes.adapting import adapt
from daptkit.recipes.demonstrating import demo
from daptkit.recipes.evaluating import evaluate
from daptkit.recipes.predicting import predict
from daptkit.recipes.reporting import build_report

__all__ = ["adapt", "build_report", "demo", "evaluate", "predict"]
