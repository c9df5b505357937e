"""Images and labels: reading a user's data, splits, decoding, conversion and augmentation."""

from daptkit.data.augment import Augment, auto_preset
from daptkit.data.convert import Conversion
from daptkit.data.image import DecodedImage, Reader
from daptkit.data.imageset import ImageSet, to_float
from daptkit.data.labels import class_names, encode_labels
from daptkit.data.order import batch_indices, steps_per_epoch
from daptkit.data.phantom import PHANTOM_CLASSES
from daptkit.data.simulate import SimulatedSite, simulate_sites
from daptkit.data.sources import read_table
from daptkit.data.splits import train_val_split
from daptkit.data.table import ImageTable, choose_split, concat_tables
from daptkit.data.window import fit_conversion

__all__ = [
    "Augment",
    "Conversion",
    "DecodedImage",
    "ImageSet",
    "ImageTable",
    "PHANTOM_CLASSES",
    "Reader",
    "SimulatedSite",
    "auto_preset",
    "batch_indices",
    "choose_split",
    "class_names",
    "concat_tables",
    "encode_labels",
    "fit_conversion",
    "read_table",
    "simulate_sites",
    "steps_per_epoch",
    "to_float",
    "train_val_split",
]
