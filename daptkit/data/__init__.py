"""Images and labels: reading a user's data, splits, decoding, conversion and augmentation."""

from daptkit.data.aligned import AlignedImages
from daptkit.data.audit import read_audit_labels
from daptkit.data.augment import Augment, auto_preset
from daptkit.data.convert import Conversion
from daptkit.data.frames import choose_frames, parse_frames
from daptkit.data.image import DecodedImage, FileIdentity, Reader
from daptkit.data.imageset import ImageSet, to_float
from daptkit.data.labels import class_names, encode_labels
from daptkit.data.order import batch_indices, steps_per_epoch
from daptkit.data.patients import Overlap, find_overlaps, refuse_overlap, warn_unknown_patients
from daptkit.data.phantom import PHANTOM_CLASSES
from daptkit.data.readers import Format, Readers
from daptkit.data.simulate import SimulatedSite, simulate_sites
from daptkit.data.sources import read_table
from daptkit.data.splits import train_val_split
from daptkit.data.store import DecodeCache
from daptkit.data.table import ImageTable, choose_split, concat_tables, warn_default_split
from daptkit.data.window import fit_conversion, parse_window

__all__ = [
    "AlignedImages",
    "Augment",
    "Conversion",
    "DecodeCache",
    "DecodedImage",
    "FileIdentity",
    "Format",
    "ImageSet",
    "ImageTable",
    "Overlap",
    "PHANTOM_CLASSES",
    "Reader",
    "Readers",
    "SimulatedSite",
    "auto_preset",
    "batch_indices",
    "choose_frames",
    "choose_split",
    "class_names",
    "concat_tables",
    "encode_labels",
    "find_overlaps",
    "fit_conversion",
    "parse_frames",
    "parse_window",
    "read_audit_labels",
    "read_table",
    "refuse_overlap",
    "simulate_sites",
    "steps_per_epoch",
    "to_float",
    "train_val_split",
    "warn_default_split",
    "warn_unknown_patients",
]
