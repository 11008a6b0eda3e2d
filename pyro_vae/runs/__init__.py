"""What is on disk: run folders, checkpoints, and fitted runs opened again."""

from pyro_vae.runs import checkpoint
from pyro_vae.runs.checkpoints import History
from pyro_vae.runs.durable import durably, fit_in_folder
from pyro_vae.runs.folder import Folder, RunFolderError
from pyro_vae.runs.load import load_run
from pyro_vae.runs.run import Labelled, Run, load_images, prepare
from pyro_vae.runs.run_folder import RunFolder, versions

__all__ = [
    "Folder",
    "History",
    "Labelled",
    "Run",
    "RunFolder",
    "RunFolderError",
    "checkpoint",
    "durably",
    "fit_in_folder",
    "load_images",
    "load_run",
    "prepare",
    "versions",
]
