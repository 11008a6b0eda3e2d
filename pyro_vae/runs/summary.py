r"""summary.json: what is known of a run in numbers, from its fit and from an evaluation."""

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

_NO_METRICS = "metrics.jsonl of the run does not hold it"


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
        folder: where it is written.
        config: the configuration as JSON values.
        numbers: of the evaluation, with the reason of each None under "reasons".
        parameters: number of the fitted parameters.
        metrics: the lines of the run's metrics.jsonl, from which its epochs and its seconds of training are taken.
    """
    seconds: list[Any] = [line.get("seconds") for line in metrics]
    timed = bool(seconds) and all(isinstance(each, int | float) and math.isfinite(each) for each in seconds)
    training = {"epochs": len(metrics) or None, "train_seconds": sum(seconds) if timed else None}
    missing = {name: _NO_METRICS for name, value in training.items() if value is None}
    reasons = {**numbers["reasons"], **missing}
    values = {"config": config, **numbers, "reasons": reasons, "parameters": parameters, **training}
    folder.write_json("summary.json", values)


def read_summary(run: RunFolder) -> dict[str, Any]:
    """Return what a finished run has written as its summary.json."""
    return dict(json.loads((run.path / "summary.json").read_text()))


def num_parameters(program: IsolatedProgram) -> int:
    """Return the number of the fitted parameters of a run; those that go by several names count once."""
    with program.scope():
        tensors = {id(tensor): tensor for tensor in map(unconstrained_param, pyro.get_param_store().keys())}
    return sum(tensor.numel() for tensor in tensors.values())
