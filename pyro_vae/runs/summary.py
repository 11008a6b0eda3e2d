r"""summary.json: the numbers of a run, from its fit and its evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro

from pyro_vae.infer.parameters import unconstrained_param
from pyro_vae.runs.folder import Folder
from pyro_vae.runs.own_store import IsolatedProgram
from pyro_vae.runs.run_folder import RunFolder

_NO_METRICS = "it is not recorded in metrics.jsonl of the run"


def write_summary(
    folder: Folder,
    config: Mapping[str, Any],
    numbers: Mapping[str, Any],
    *,
    parameters: int,
    metrics: Sequence[Mapping[str, Any]],
) -> None:
    """Write summary.json of a run, or of a later evaluation of it.

    Args:
        folder: Folder of the file.
        config: Configuration as JSON values.
        numbers: Numbers of the evaluation. The reason for each None is under the key ``reasons``.
        parameters: Number of fitted parameters.
        metrics: Epochs in metrics.jsonl of the run, for the number of epochs and the seconds of training.
    """
    seconds: list[Any] = [line.get("seconds") for line in metrics]
    timed = bool(seconds) and all(isinstance(value, int | float) and math.isfinite(value) for value in seconds)
    training = {"epochs": len(metrics) or None, "train_seconds": sum(seconds) if timed else None}
    missing = {name: _NO_METRICS for name, value in training.items() if value is None}
    reasons = {**numbers["reasons"], **missing}
    values = {"config": config, **numbers, "reasons": reasons, "parameters": parameters, **training}
    folder.write_json("summary.json", values)


def read_summary(run: RunFolder) -> dict[str, Any]:
    """Return the content of summary.json of a finished run."""
    return dict(json.loads((run.path / "summary.json").read_text()))


def num_parameters(program: IsolatedProgram) -> int:
    """Return the number of fitted parameters of a run. Parameters with several names count once."""
    with program.scope():
        tensors = {id(tensor): tensor for tensor in map(unconstrained_param, pyro.get_param_store().keys())}
    return sum(tensor.numel() for tensor in tensors.values())
