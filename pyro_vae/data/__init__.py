"""Data loading: one tensor per split, binarization and dequantization, and the order of batches."""

from pyro_vae.data.arrays import to_uint8
from pyro_vae.data.assembly import from_arrays
from pyro_vae.data.batches import Batches
from pyro_vae.data.collection import Collection
from pyro_vae.data.datasets import DATASETS, Dataset, defaults, load
from pyro_vae.data.formats import from_dataset, from_file, from_folder, from_path
from pyro_vae.data.images import BINARIZATIONS, Images, Observed
from pyro_vae.data.labels import Labels, mask_labels
from pyro_vae.data.numbers import Numbers, column_names, from_numbers
from pyro_vae.errors import DataError

__all__ = [
    "BINARIZATIONS",
    "DATASETS",
    "Batches",
    "Collection",
    "DataError",
    "Dataset",
    "Images",
    "Labels",
    "Numbers",
    "Observed",
    "column_names",
    "defaults",
    "from_arrays",
    "from_dataset",
    "from_file",
    "from_folder",
    "from_numbers",
    "from_path",
    "load",
    "mask_labels",
    "to_uint8",
]
