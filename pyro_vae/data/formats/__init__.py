"""Data of a user's own on disk, or as a torch data set: each format read, checked and split."""

from pyro_vae.data.formats.folders import from_folder
from pyro_vae.data.formats.own_files import from_file, from_path
from pyro_vae.data.formats.torch_datasets import from_dataset

__all__ = ["from_dataset", "from_file", "from_folder", "from_path"]
