"""The pipelines as plain functions: adapt, diagnose, compare, predict, evaluate and more."""

from daptkit.recipes.adapting import adapt
from daptkit.recipes.checking import check_data
from daptkit.recipes.comparing import compare
from daptkit.recipes.demonstrating import demo
from daptkit.recipes.diagnosing import diagnose
from daptkit.recipes.evaluating import evaluate
from daptkit.recipes.predicting import predict
from daptkit.recipes.reporting import build_report
from daptkit.recipes.simulating import simulate

__all__ = [
    "adapt",
    "build_report",
    "check_data",
    "compare",
    "demo",
    "diagnose",
    "evaluate",
    "predict",
    "simulate",
]
