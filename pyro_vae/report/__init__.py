"""What people look at: figures, results and the run folder."""

from pyro_vae.report import plots
from pyro_vae.report.results import measure, table, write_results
from pyro_vae.report.run import RunFolder, RunFolderError, versions

__all__ = ["RunFolder", "RunFolderError", "measure", "plots", "table", "versions", "write_results"]
