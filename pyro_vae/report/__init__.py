"""What people look at: figures, results and the run folder."""

from pyro_vae.report import comparison, plots, sampling, speed, systems
from pyro_vae.report.factors import factor_table, measure_factors
from pyro_vae.report.instruments import measure_annealing, measure_classes, measure_slack
from pyro_vae.report.probing import measure_probe, probe_table, write_probe
from pyro_vae.report.results import measure, rehearse, table, write_bounds, write_results

__all__ = [
    "comparison",
    "factor_table",
    "measure",
    "measure_annealing",
    "measure_classes",
    "measure_factors",
    "measure_probe",
    "measure_slack",
    "plots",
    "probe_table",
    "rehearse",
    "sampling",
    "speed",
    "systems",
    "table",
    "write_bounds",
    "write_probe",
    "write_results",
]
