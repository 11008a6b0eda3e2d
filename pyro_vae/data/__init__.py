"""Images in: one uint8 tensor per split, what a program observes of it, and the order of an epoch."""

from pyro_vae.data.images import DataError, Images, Labels, to_uint8
from pyro_vae.data.observe import Batches, binarize, observe, observe_once, some_labels
from pyro_vae.data.sources import DATASETS, TRAINING_IMAGES, load

__all__ = [
    "DATASETS",
    "TRAINING_IMAGES",
    "Batches",
    "DataError",
    "Images",
    "Labels",
    "binarize",
    "load",
    "observe",
    "observe_once",
    "some_labels",
    "to_uint8",
]
