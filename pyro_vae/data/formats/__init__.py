"""Readers of your own data, from files or from a torch data set. Each reader checks and splits the data."""

from pyro_vae.data.formats.folders import from_folder
from pyro_vae.data.formats.own_files import from_file, from_path
from pyro_vae.data.formats.torch_datasets import from_dataset

__all__ = ["from_dataset", "from_file", "from_folder", "from_path"]
