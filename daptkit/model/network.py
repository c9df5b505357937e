"""Backbone, bottleneck and head as one module, with taps on any layer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from daptkit.errors import UsageError, did_you_mean
from daptkit.model.config import ModelConfig
from daptkit.model.stages import modules_above

OWN_TAPS = ("features", "logits", "trunk")
"""Taps that every network has: bottleneck output, logits, pooled backbone output."""


class AdaptNet(nn.Module):
    """Normalisation, backbone, bottleneck (Linear, ReLU), dropout and a linear head.

    z = backbone((x - mean) / std), f = relu(A z + a) (f = z without bottleneck), logits = B f + b.

    Args:
        backbone: maps images (N, C, H, W) to pooled features (N, D').
        config: the resolved configuration.
        trunk_dim: D'.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, config: ModelConfig, trunk_dim: int) -> None:
        super().__init__()
        self.config = config
        self.trunk_dim = trunk_dim
        self.backbone = backbone
        self.bottleneck = _bottleneck(trunk_dim, config.bottleneck)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.bottleneck or trunk_dim, config.num_classes)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # Not persistent: the configuration is their one home.
        shape = (1, config.in_chans, 1, 1)
        self.register_buffer("mean", torch.tensor(config.mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(shape), persistent=False)
        self._frozen = False
        self._in_eval: frozenset[str] = frozenset()
        self._norms_in_eval: frozenset[str] = frozenset()

    @property
    def frozen(self) -> bool:
        """Whether nothing of the backbone is trained."""
        return self._frozen

    def trunk(self, images: Tensor, backbone: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Map images (N, C, H, W), uint8 or in [0, 1], to pooled features (N, D').

        Args:
            images: images.
            backbone: what is called in place of the backbone, such as its compiled form.
        """
        if images.dtype == torch.uint8:
            images = images.float() / 255
        # Convolutions are made for channels last: on a CPU a step is 1.02 to 1.3 times as fast.
        images = images.contiguous(memory_format=torch.channels_last)
        pooled: Tensor = (backbone or self.backbone)((images - self.mean) / self.std)  # (N, D')
        return pooled

    def forward(
        self,
        images_or_trunk: Tensor,
        layers: Sequence[str] = ("features",),
        *,
        from_trunk: bool = False,
        backbone: Callable[[Tensor], Tensor] | None = None,
        align: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the logits (N, K) and the tapped activations.

        Args:
            images_or_trunk: images (N, C, H, W), uint8 or in [0, 1]; or trunk features (N, D').
            layers: ``"features"``, ``"logits"``, ``"trunk"`` or paths of modules of this network,
                such as ``"backbone.layer4"``.
            from_trunk: the input is the trunk's output; the backbone is not run.
            backbone: what is called in place of the backbone, such as its compiled form. Where a
                layer within it is asked for, the backbone itself is called: it alone shows it.
            align: what pooled features (N, D') pass before the bottleneck.

        Returns:
            Logits, and taps by name: always ``"features"`` (N, D) and ``"logits"`` (N, K);
            ``"trunk"`` is what ``align`` has not changed.

        Raises:
            UsageError: unknown layer, or a layer of the backbone while reading trunk features.
        """
        paths = [layer for layer in layers if layer not in OWN_TAPS]
        self._check_paths(paths, from_trunk)
        if any(_in_backbone(path) for path in paths):
            backbone = None
        with self._tapped(paths) as taps:
            # (N, D')
            trunk = images_or_trunk if from_trunk else self.trunk(images_or_trunk, backbone)
            features = self.bottleneck(trunk if align is None else align(trunk))  # (N, D)
            logits: Tensor = self.head(self.dropout(features))  # (N, K)
        taps["features"] = features
        taps["logits"] = logits
        if "trunk" in layers:
            taps["trunk"] = trunk
        return logits, taps

    def dims(self, layers: Sequence[str] = ("features",)) -> dict[str, int]:
        """Return the flattened size of each tap for one image, ``{"features": D, ...}``.

        Raises:
            UsageError: unknown layer.
        """
        size = self.config.img_size
        blank = torch.zeros(1, self.config.in_chans, size, size, device=self.mean.device)
        with torch.no_grad(), evaluating(self):
            _, taps = self(blank, layers)
        return {name: tap[0].numel() for name, tap in taps.items()}

    def freeze_backbone(self) -> None:
        """Stop training the backbone, and keep it in eval mode from now on."""
        self.train_backbone(())

    def train_backbone(self, parameters: Collection[str]) -> None:
        """Train these parameters of the backbone alone, and keep the rest of it in eval mode.

        In train mode its running statistics would drift to the batches even without a gradient.

        Args:
            parameters: names within the backbone.
        """
        trained = frozenset(parameters)
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in trained)
        everything = {name for name, _ in self.backbone.named_modules()}
        self._in_eval = frozenset(everything - modules_above(self.backbone, trained))
        self._frozen = not trained
        self.train(self.training)

    def freeze_batchnorm(self) -> None:
        """Keep the backbone's BatchNorm in eval mode: its affine parameters alone are trained."""
        self._norms_in_eval = frozenset(self.batchnorm())
        self.train(self.training)

    @contextmanager
    def running_statistics_held(self) -> Iterator[None]:
        """Normalise by the batch in the block, but leave the running statistics as they are."""
        layers = [layer for layer in self.batchnorm().values() if isinstance(layer, _BatchNorm)]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.momentum = 0.0
        try:
            yield
        finally:
            for layer, momentum in zip(layers, momenta, strict=True):
                layer.momentum = momentum

    def batchnorm(self) -> dict[str, nn.Module]:
        """Return the backbone's BatchNorm layers by their names within it."""
        modules = self.backbone.named_modules()
        return {name: m for name, m in modules if isinstance(m, _BatchNorm)}

    def train(self, mode: bool = True) -> AdaptNet:
        """Set train or eval mode; what is frozen of the backbone stays in eval mode."""
        super().train(mode)
        for name, module in self.backbone.named_modules():
            if name in self._in_eval or name in self._norms_in_eval:
                module.training = False
        return self

    def _check_paths(self, paths: Sequence[str], from_trunk: bool) -> None:
        if not paths:
            return
        known = dict(self.named_modules())
        for path in paths:
            if path not in known or not path:
                nested = f"backbone.{path}"
                hint = f" Did you mean {nested!r}?" if nested in known else ""
                hint = hint or did_you_mean(path, [*OWN_TAPS, *known])
                raise UsageError(f"the model {self.config.name} has no layer {path!r}.{hint}")
            if from_trunk and _in_backbone(path):
                raise UsageError(
                    f"layer {path!r} lies in the backbone, but a frozen run reads cached features "
                    "and does not run the backbone. Use --finetune full, or a layer after it."
                )

    @contextmanager
    def _tapped(self, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Collect the outputs of the modules at ``paths`` while the block runs."""
        taps: dict[str, Tensor] = {}
        handles = [
            self.get_submodule(path).register_forward_hook(_recorder(taps, path)) for path in paths
        ]
        try:
            yield taps
        finally:
            for handle in handles:
                handle.remove()


def _in_backbone(path: str) -> bool:
    return path.split(".")[0] == "backbone"


def _recorder(taps: dict[str, Tensor], path: str) -> Callable[[nn.Module, object, object], None]:
    def record(module: nn.Module, inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise UsageError(f"layer {path!r} returns {type(output).__name__}, not one tensor.")
        # A copy: an in-place activation after this layer would overwrite what was tapped.
        taps[path] = output.clone()

    return record


def _bottleneck(trunk_dim: int, features: int) -> nn.Module:
    if features == 0:
        return nn.Identity()
    linear = nn.Linear(trunk_dim, features)
    nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.ReLU())


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put every module in eval mode for the block, then give each its own mode back."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def state_fingerprint(module: nn.Module) -> str:
    """Return the sha256 of a module's tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def backbone_fingerprint(net: AdaptNet) -> str:
    """Return the fingerprint of the backbone alone."""
    return state_fingerprint(net.backbone)
