"""Models: timm backbones with bottleneck and head, local weights, feature cache, model folders."""

from daptkit.cachedir import default_cache_dir
from daptkit.model.alignments import StoredAlignment
from daptkit.model.build import build_model
from daptkit.model.cache import FeatureCache
from daptkit.model.config import ModelConfig, parse_model_kwargs, resolve_model_config
from daptkit.model.files import WeightsReport
from daptkit.model.folder import LoadedModel, load_model_folder, save_model_folder
from daptkit.model.initial import init_from, model_folder
from daptkit.model.lenet import LeNet, daptkit_lenet
from daptkit.model.network import AdaptNet, backbone_fingerprint
from daptkit.model.norms import norm_layers, norm_modules, normalised_by
from daptkit.model.stages import Stage, backbone_stages, modules_above
from daptkit.model.weights import load_backbone_weights

__all__ = [
    "AdaptNet",
    "FeatureCache",
    "LeNet",
    "LoadedModel",
    "ModelConfig",
    "Stage",
    "StoredAlignment",
    "WeightsReport",
    "backbone_fingerprint",
    "backbone_stages",
    "build_model",
    "daptkit_lenet",
    "default_cache_dir",
    "init_from",
    "load_backbone_weights",
    "load_model_folder",
    "model_folder",
    "modules_above",
    "norm_layers",
    "norm_modules",
    "normalised_by",
    "parse_model_kwargs",
    "resolve_model_config",
    "save_model_folder",
]
