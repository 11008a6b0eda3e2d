"""Measurements of fitted runs: the scores of log p(x) of every run, and optional instruments.

`scripts/evaluate.py` runs each instrument in `INSTRUMENTS` that its flags request. To add an instrument, write a frozen
dataclass that implements the protocol `Instrument` in a separate file, and add it to the table.
"""

from pyro_vae.instruments.annealing import AnnealedImportanceSampling
from pyro_vae.instruments.calibration import Calibration
from pyro_vae.instruments.classes import Classes
from pyro_vae.instruments.estimators import EstimatorComparison
from pyro_vae.instruments.factors import Factors
from pyro_vae.instruments.instrument import EvaluatedRun, Instrument, Result
from pyro_vae.instruments.local import LocalPosteriors
from pyro_vae.instruments.probe import Probe

# Instruments are run, and their tables are printed, in this order.
INSTRUMENTS: dict[str, type[Instrument]] = {
    kind.name: kind
    for kind in (
        AnnealedImportanceSampling,
        EstimatorComparison,
        LocalPosteriors,
        Calibration,
        Classes,
        Probe,
        Factors,
    )
}

__all__ = ["INSTRUMENTS", "EvaluatedRun", "Instrument", "Result"]
