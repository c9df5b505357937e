"""A small network for small images, so that digits need no pretrained weights."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

MIN_SIZE = 16
"""Smallest input edge: two 5x5 convolutions and two poolings leave one pixel of 16."""

default_cfgs = generate_default_cfgs(
    {
        "daptkit_lenet": {
            "url": "",
            "input_size": (1, 28, 28),
            "fixed_input_size": True,
            "num_classes": 10,
            "mean": (0.5,),
            "std": (0.5,),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "first_conv": "conv1",
            "classifier": "fc",
        }
    }
)


class LeNet(nn.Module):
    """LeNet with 20 and 50 filters and 500 features (LeCun et al. 1998, Proc. IEEE 86(11)).

    conv 20 of 5x5, max-pool, ReLU, conv 50 of 5x5, max-pool, ReLU, linear 500, ReLU, dropout,
    linear K.

    Args:
        num_classes: K; 0 leaves the classifier out and returns the 500 features.
        in_chans: channels C of the images.
        img_size: edge of the images in pixels, at least 16; fixes the first linear layer.
        drop_rate: dropout before the classifier, in [0, 1).
        global_pool: accepted for timm's sake; the network has no global pooling.

    Raises:
        ValueError: ``img_size`` is smaller than 16.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        img_size: int | tuple[int, int] = 28,
        drop_rate: float = 0.0,
        global_pool: str = "",
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, width) < MIN_SIZE:
            raise ValueError(f"img_size is {height}x{width}; the smallest is {MIN_SIZE}.")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 500
        self.drop_rate = drop_rate
        self.conv1 = nn.Conv2d(in_chans, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * _pooled(height) * _pooled(width), self.num_features)
        self.fc = _classifier(self.num_features, num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's description of the layers' order."""
        return {"stem": r"^conv1", "blocks": [(r"^conv2", (0,)), (r"^fc1", (1,))]}

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one of ``num_classes`` outputs, 0 for none."""
        self.num_classes = num_classes
        self.fc = _classifier(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to maps (N, 50, h, w)."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # (N, 20, (H - 4) / 2, (W - 4) / 2)
        return F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 50, h, w)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map maps (N, 50, h, w) to logits (N, K), or to features (N, 500)."""
        x = F.relu(self.fc1(x.flatten(1)))  # (N, 500)
        x = F.dropout(x, self.drop_rate, self.training)
        if pre_logits:
            return x
        logits: Tensor = self.fc(x)  # (N, K)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, K); to features (N, 500) without classifier."""
        return self.forward_head(self.forward_features(x))


def _pooled(edge: int) -> int:
    return ((edge - 4) // 2 - 4) // 2


def _classifier(features: int, num_classes: int) -> nn.Module:
    return nn.Linear(features, num_classes) if num_classes > 0 else nn.Identity()


@register_model  # type: ignore[untyped-decorator,unused-ignore]
def daptkit_lenet(pretrained: bool = False, **kwargs: Any) -> LeNet:
    """Build :class:`LeNet` through timm: ``timm.create_model("daptkit_lenet", img_size=28)``."""
    made: LeNet = build_model_with_cfg(LeNet, "daptkit_lenet", pretrained, **kwargs)
    return made
