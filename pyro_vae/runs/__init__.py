"""Files of a run: run folders, checkpoints, fits that can be resumed, and loading of finished runs."""

from pyro_vae.runs import checkpoint
from pyro_vae.runs.checkpoints import Checkpoints
from pyro_vae.runs.durable import fit_in_folder, run_with_checkpoints
from pyro_vae.runs.folder import Folder, RunFolderError
from pyro_vae.runs.load import load_run
from pyro_vae.runs.run import LabeledImages, Run, load_images, prepare
from pyro_vae.runs.run_folder import RunFolder, versions

__all__ = [
    "Checkpoints",
    "Folder",
    "LabeledImages",
    "Run",
    "RunFolder",
    "RunFolderError",
    "checkpoint",
    "fit_in_folder",
    "load_images",
    "load_run",
    "prepare",
    "run_with_checkpoints",
    "versions",
]
