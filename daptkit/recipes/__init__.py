"""The pipelines as plain functions: adapt, predict, evaluate, build_report, simulate and demo."""

from daptkit.recipes.adapting import adapt
from daptkit.recipes.demonstrating import demo
from daptkit.recipes.evaluating import evaluate
from daptkit.recipes.predicting import predict
from daptkit.recipes.reporting import build_report
from daptkit.recipes.simulating import simulate

__all__ = ["adapt", "build_report", "demo", "evaluate", "predict", "simulate"]
