"""Files of a run: run folders, checkpoints, fits that can be resumed, and loading of finished runs."""

from pyro_vae.runs import checkpoint
from pyro_vae.runs.checkpoints import Checkpoints
from pyro_vae.runs.durable import fit_in_folder, run_with_checkpoints
from pyro_vae.runs.fitting import make_fit
from pyro_vae.runs.folder import Folder, RunFolderError, raise_if_undrawn
from pyro_vae.runs.load import load_run
from pyro_vae.runs.many import fit_many_in_folders
from pyro_vae.runs.own_program import check_flags_read
from pyro_vae.runs.results import names_of, place_results
from pyro_vae.runs.run import LabeledImages, Run, load_images, prepare
from pyro_vae.runs.run_folder import RunFolder, seed_path, versions

__all__ = [
    "Checkpoints",
    "Folder",
    "LabeledImages",
    "Run",
    "RunFolder",
    "RunFolderError",
    "check_flags_read",
    "checkpoint",
    "fit_in_folder",
    "fit_many_in_folders",
    "load_images",
    "load_run",
    "make_fit",
    "names_of",
    "place_results",
    "prepare",
    "raise_if_undrawn",
    "run_with_checkpoints",
    "seed_path",
    "versions",
]
