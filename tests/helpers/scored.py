"""Folders with the files that a comparison of runs reads, without a fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.config import Config
from pyro_vae.runs import RunFolder
from pyro_vae.runs.netcdf import to_netcdf

SUMMARY: dict[str, Any] = {
    **dict.fromkeys(("bits_per_dim", "squared_error")),
    "config": {**Config().to_json(), "epochs": 3, "num_samples": 50},
    "finished": True,
    "num_samples": 50,
    "log_likelihood_se": 0.1,
    "elbo": -9.0,
    "iwae": {"1": -9.0, "5": -8.5, "50": -8.1},
    "rate": 4.0,
    "distortion": 5.0,
    "active_units": 3,
    "khat_bad_fraction": 0.0,
    "density": False,
    "quantity": "probability of x",
    "test_images": "digest",
    "reasons": {},
    "parameters": 7,
    "epochs": 3,
    "train_seconds": 3.0,
}


def scored_run(path: Path, values: np.ndarray, **changes: Any) -> RunFolder:
    """Return a folder with summary.json and scores.nc for log p(x) of each test image, in nats, shape (N,)."""
    folder = RunFolder(path)
    path.mkdir(parents=True)
    numbers = {"log_likelihood": float(values.mean()), "num_test_images": len(values)}
    folder.write_json("summary.json", {**SUMMARY, **numbers, **changes})
    (path / "scores.nc").write_bytes(to_netcdf({"log_likelihood": values, "elbo": values - 1}))
    return folder
