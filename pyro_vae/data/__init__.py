"""Images in: one uint8 tensor per split, what a program observes of it, and the order of an epoch."""

from pyro_vae.data.datasets import DATASETS, Dataset, load
from pyro_vae.data.images import DataError, Images, Labels, to_uint8
from pyro_vae.data.observed import Batches, binarize, observe, observe_once, some_labels

__all__ = [
    "DATASETS",
    "Batches",
    "DataError",
    "Dataset",
    "Images",
    "Labels",
    "binarize",
    "load",
    "observe",
    "observe_once",
    "some_labels",
    "to_uint8",
]
