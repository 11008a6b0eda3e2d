"""Log importance weights whose tail index is known, and the k-hats estimated for them.

`khat.json` holds the estimates of both major versions of ArviZ and of Pyro. No environment has both versions, so

    PYTHONPATH=. python tests/helpers/tails.py

updates the entries of the installed ArviZ and of Pyro and leaves the other version's unchanged: run it under each.
The weights are drawn by a seeded generator and not stored.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from pyro.ops.stats import fit_generalized_pareto

from pyro_vae.evaluate import psis
from pyro_vae.evaluate.likelihood.diagnostics import is_arviz_1

FOUND = Path(__file__).with_name("khat.json")
DRAWS = 100_000
PARETO = (0.2, 0.5, 0.7, 1.0)
GAUSSIAN = (0.3, 0.5, 0.7, 0.9)
# Name: (tail index k, family, its parameter).
TAILS = {f"generalized Pareto, k = {k}": (k, "pareto", k) for k in PARETO}
TAILS |= {f"Gaussian, sigma = {sigma}": (1 - sigma**2, "gaussian", sigma) for sigma in GAUSSIAN}


def log_weights(name: str, columns: int, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Draw log weights (draws, columns): w = ((1 - u)^-k - 1) / k, or p / q for p = N(0, 1) and q = N(0, sigma^2)."""
    _, family, parameter = TAILS[name]
    generator = np.random.default_rng(seed)
    if family == "pareto":
        u = generator.random((draws, columns))
        return np.log(np.expm1(-parameter * np.log1p(-u)) / parameter)
    z = parameter * generator.standard_normal((draws, columns))
    return 0.5 * (z / parameter) ** 2 - 0.5 * z**2


def pyro_khat(log_w: np.ndarray) -> float:
    """Fit the tail of log weights (draws,) with Pyro's estimator, using the tail length of ArviZ."""
    number = math.ceil(min(0.2 * len(log_w), 3 * math.sqrt(len(log_w))))
    ordered = np.sort(np.exp(log_w - log_w.max()))
    return float(fit_generalized_pareto(torch.as_tensor(ordered[-number:] - ordered[-number - 1]))[0])


def installed_arviz() -> str:
    """Return the name of the installed major version of ArviZ."""
    return "arviz 1.x" if is_arviz_1() else "arviz 0.2x"


def record() -> None:
    """Write the estimates of the installed libraries to `khat.json`."""
    found = json.loads(FOUND.read_text()) if FOUND.exists() else {name: {} for name in TAILS}
    for name in TAILS:
        log_w = log_weights(name, 1)
        here = {installed_arviz(): float(psis(log_w).khat[0]), "pyro": pyro_khat(log_w[:, 0])}
        found[name] |= {library: round(khat, 6) for library, khat in here.items()}
    FOUND.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    record()
