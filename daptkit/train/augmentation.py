"""Which augmentation a run uses, and whether its options for it fit together."""

from __future__ import annotations

from daptkit.config import AdaptConfig
from daptkit.data import AlignedImages, ImageSet, auto_preset
from daptkit.errors import UsageError


def check_augmentation(config: AdaptConfig) -> None:
    """Refuse options that ask for an augmentation which the run would not do.

    Raises:
        UsageError: ``--aug`` names a preset in a frozen run without views, or there are
            ``--trunk-views`` where no features are cached or nothing is augmented.
    """
    if not config.trunk_views:
        if config.finetune == "frozen" and config.aug not in ("auto", "none"):
            raise UsageError(
                f"--aug {config.aug}: a frozen run reads cached features of the images as they are;"
                " use --aug none, cache augmented views too by --trunk-views N, or use --finetune"
                " full."
            )
        return
    if config.finetune != "frozen":
        raise UsageError(
            f"--trunk-views {config.trunk_views} is for --finetune frozen; --finetune"
            f" {config.finetune} augments the images at every step, so leave the option out."
        )
    if config.aug == "none":
        raise UsageError(
            f"--trunk-views {config.trunk_views}: with --aug none every view is the image as it"
            " is; name a preset or use --aug auto, or leave --trunk-views out."
        )


def augmentation(config: AdaptConfig, images: ImageSet | AlignedImages) -> str:
    """Return the name of the preset that a run uses; ``none`` for features of plain images."""
    if config.finetune == "frozen" and not config.trunk_views:
        return "none"
    return auto_preset(images) if config.aug == "auto" else config.aug
