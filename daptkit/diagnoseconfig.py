"""The options of ``daptkit diagnose``: those of ``adapt`` that it shares, and its own."""

from __future__ import annotations

from dataclasses import dataclass

from daptkit.plugin import option

SHARED = (
    "source",
    "target",
    "source_split",
    "target_split",
    "frames",
    "window",
    "reader_options",
    "skip_unreadable",
    "allow_patient_overlap",
    "cache",
    "model",
    "model_kwargs",
    "pretrained",
    "pretrained_path",
    "init_from",
    "trust",
    "classes",
    "img_size",
    "in_chans",
    "mean",
    "std",
    "seed",
    "device",
    "workers",
)
"""Fields of :class:`daptkit.config.AdaptConfig` that mean the same here."""

FIXED = {"method": "none", "finetune": "full", "aug": "none", "bottleneck": 0}
"""What the others are: images as they are, and a network that nothing trains."""


FREE_WITH_RUN = ("cache", "trust", "device", "workers")
"""Those that ``--run`` leaves open; the others are those of the run."""

RUN_MODELS = ("source-only", "delivered")


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions:
    """Options that ``adapt`` does not have."""

    run: str | None = option(
        None,
        "Finished run to diagnose in place of --source, --target and --model: on its images, by a"
        " model of it.",
        metavar="RUN",
    )
    run_model: str = option(
        "source-only",
        "With --run: whose features and predictions; 'delivered' tells what adapting has left of"
        " the shift.",
        choices=RUN_MODELS,
    )
    target_labels: str | None = option(
        None,
        "CSV with columns path and label of some target images, for the audit alone: they change"
        " neither the diagnosis nor the recommendation.",
        metavar="FILE",
    )
    alpha: float = option(0.05, "Level of the tests.", low=0.001, high=0.2)
    permutations: int = option(999, "Permutations of each test.", low=99, high=100000)
    out: str | None = option(
        None, "Folder to write diagnosis.json and diagnosis.html to; new or empty.", metavar="DIR"
    )
