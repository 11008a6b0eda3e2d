r"""summary.json: the numbers of a run, from its fit and its evaluation."""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro

from pyro_vae.config.saved import read_json
from pyro_vae.errors import UserError
from pyro_vae.infer.parameters import unconstrained_param
from pyro_vae.runs.folder import Folder
from pyro_vae.runs.own_store import IsolatedProgram

# Entries that comparisons of runs read.
_NUMBERS: tuple[str, ...] = (
    "log_likelihood",
    "log_likelihood_se",
    "bits_per_dim",
    "elbo",
    "rate",
    "distortion",
    "active_units",
)
_NUMBERS += ("khat_bad_fraction", "parameters", "epochs", "train_seconds", "squared_error")
_COUNTS = ("num_test_images", "num_samples")
_NO_METRICS = "it is not recorded in metrics.jsonl of the run"


def write_summary(
    folder: Folder,
    config: Mapping[str, Any],
    numbers: Mapping[str, Any],
    *,
    parameters: int,
    metrics: Sequence[Mapping[str, Any]],
    finished: bool = True,
) -> None:
    """Write summary.json of a run, or of a later evaluation of it.

    Args:
        folder: Folder of the file.
        config: Configuration as JSON values.
        numbers: Numbers of the evaluation. The reason for each None is under the key ``reasons``.
        parameters: Number of fitted parameters.
        metrics: Epochs in metrics.jsonl of the run, for the number of epochs and the seconds of training.
        finished: Whether the fit of the run is finished.
    """
    seconds: list[Any] = [line.get("seconds") for line in metrics]
    timed = bool(seconds) and all(isinstance(value, int | float) and math.isfinite(value) for value in seconds)
    training = {"epochs": len(metrics) or None, "train_seconds": sum(seconds) if timed else None}
    missing = {name: _NO_METRICS for name, value in training.items() if value is None}
    reasons = {**numbers["reasons"], **missing}
    values = {"config": config, "finished": finished, **numbers, "reasons": reasons, "parameters": parameters}
    values |= training
    folder.write_json("summary.json", values)


def read_summary(folder: Folder) -> dict[str, Any]:
    """Return the content of summary.json of a finished run, or of an evaluation. The file is untrusted.

    Raises:
        UserError: If it is missing or damaged, or an entry that comparisons read is missing or has another type. The
            message names the file.
    """
    path = folder.path / "summary.json"
    if not path.exists():
        raise UserError(f"{folder.path} is not a finished run: it has no summary.json.")
    values = read_json(path, "the summary of a run")
    if not isinstance(values, dict):
        raise UserError(f"{path} is not the summary of a run: it contains a {type(values).__name__}.")
    checks: dict[str, Callable[[Any], bool]] = {
        **dict.fromkeys(_NUMBERS, lambda value: value is None or is_number(value)),
        **dict.fromkeys(_COUNTS, lambda value: type(value) is int and value > 0),
        "density": lambda value: isinstance(value, bool),
        "iwae": lambda value: isinstance(value, dict) and all(v is None or is_number(v) for v in value.values()),
        "reasons": lambda value: isinstance(value, dict),
        "config": lambda value: isinstance(value, dict),
    }
    for name, valid in checks.items():
        if name not in values or not valid(values[name]):
            found = reprlib.repr(values[name]) if name in values else "missing"
            raise UserError(f"{path} is not the summary of a run: {name} is {found}; fit or evaluate the run again.")
    return values


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def num_parameters(program: IsolatedProgram) -> int:
    """Return the number of fitted parameters of a run. Parameters with several names count once."""
    with program.scope():
        tensors = {id(tensor): tensor for tensor in map(unconstrained_param, pyro.get_param_store().keys())}
    return sum(tensor.numel() for tensor in tensors.values())
