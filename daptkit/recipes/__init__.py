"""The pipelines as plain functions: adapt, diagnose, predict, evaluate, report, demo, of data."""

from daptkit.recipes.adapting import adapt
from daptkit.recipes.checking import check_data
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
    "demo",
    "diagnose",
    "evaluate",
    "predict",
    "simulate",
]
