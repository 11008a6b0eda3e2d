"""What measures a fitted run: scores of log p(x) for every run, and the instruments that are asked for.

`evaluate.py` measures with every instrument of `INSTRUMENTS` whose flags ask for it. To add one, write a frozen
dataclass as `Instrument` describes it, in a file of its own, and its name in the table.
"""

from pyro_vae.instruments.annealing import AnnealedImportanceSampling
from pyro_vae.instruments.calibration import Calibration
from pyro_vae.instruments.classes import Classes
from pyro_vae.instruments.factors import Factors
from pyro_vae.instruments.instrument import EvaluatedRun, Instrument, Result
from pyro_vae.instruments.local import LocalPosteriors
from pyro_vae.instruments.probe import Probe

# In the order in which they measure, and in which their tables are printed.
INSTRUMENTS: dict[str, type[Instrument]] = {
    kind.name: kind for kind in (AnnealedImportanceSampling, LocalPosteriors, Calibration, Classes, Probe, Factors)
}

__all__ = ["INSTRUMENTS", "EvaluatedRun", "Instrument", "Result"]
