"""What is on disk: run folders, checkpoints, and fitted runs opened again."""

from pyro_vae.runs import checkpoint
from pyro_vae.runs.checkpoints import History
from pyro_vae.runs.durable import durably
from pyro_vae.runs.folder import Folder, RunFolderError
from pyro_vae.runs.load import Fitted, Labelled, load_run
from pyro_vae.runs.run_folder import RunFolder, versions

__all__ = [
    "Fitted",
    "Folder",
    "History",
    "Labelled",
    "RunFolder",
    "RunFolderError",
    "checkpoint",
    "durably",
    "load_run",
    "versions",
]
