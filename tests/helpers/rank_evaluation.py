"""Evaluations that tests run in one process and in several, on 7 images in batches of 2."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from helpers.programs import images, small_vae
from torch import Tensor, nn

from pyro_vae import cli, parallel, ranks
from pyro_vae.evaluate import AISConfig, Scores
from pyro_vae.evaluate.annealing import pilot
from pyro_vae.evaluate.features import finetune
from pyro_vae.infer import validation
from pyro_vae.infer.validation import validate
from pyro_vae.instruments import Result, batches, probe
from pyro_vae.instruments.annealing import measure_ais
from pyro_vae.instruments.batches import posterior_means_batched, score_batched
from pyro_vae.instruments.calibration import Calibration
from pyro_vae.instruments.classes import measure_classes
from pyro_vae.instruments.local import measure_inference_gaps
from pyro_vae.instruments.probe import probe_rows
from pyro_vae.instruments.scores import measure_scores
from pyro_vae.runs import LabeledImages
from pyro_vae.trace import Batch, CompiledBackend, EagerBackend, Layout, Program

TIMES = ("seconds", "evaluate_seconds")


class Mixture(nn.Module):
    """Two classes y, which the guide leaves to enumeration, and a guide with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(4, 6)

    def model(self, x: Tensor) -> None:
        pyro.module("mixture", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=torch.tensor([0.2, -0.1])), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(4.0 * y.unsqueeze(-1) - 2, torch.ones(4)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z).unflatten(-1, (3, 2))).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("mixture", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x.flatten(1)), 0.7).to_event(1))


class FailingBackend(CompiledBackend):
    """A backend whose graph fails for a batch that begins with an image of ones, which changes all later results."""

    def draw(self, guide: Program, batch: Batch, num_samples: int, layout: Layout) -> Any:
        return EagerBackend.draw(self, guide, batch, num_samples, layout)

    def log_density(self, program: Program, batch: Batch, values: Mapping[str, Tensor], layout: Layout) -> Any:
        if batch.x[0].all():
            self._refused.add("graph")
        sites = EagerBackend.log_density(self, program, batch, values, layout)
        return {name: term + self.num_refused for name, term in sites.items()}


def plain(value: Any) -> Any:
    """Return scores, results and tensors as arrays and JSON values, without times."""
    if isinstance(value, Result):
        return plain({"numbers": value.numbers, "per_image": value.per_image})
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items() if name not in TIMES}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if hasattr(value, "__dataclass_fields__"):
        return plain(vars(value))
    return value.numpy() if isinstance(value, Tensor) else value


def flat(value: Any, name: str = "") -> dict[str, np.ndarray]:
    """Return nested values as arrays by their path."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: array for key, each in items for path, array in flat(each, f"{name}/{key}").items()}
    return {name: np.asarray("none" if value is None else value)}


def measure() -> dict[str, np.ndarray]:
    """Return the results of all evaluations, without times."""
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    batches.EVAL_BATCH_SIZE, probe._FINETUNED_SUBSETS, finetune._MIN_STEPS, validation._VALID_BATCH = 2, 3, 4, 2
    pilot._MIN_STEPS = 4
    vae, mixture, untrained, x = small_vae(), Mixture(), Mixture(), images(7)
    classes = np.arange(24) % 2
    train, test = LabeledImages(images(24), classes), LabeledImages(x, classes[:7])
    run: Any = SimpleNamespace(fitted=SimpleNamespace(program=vae), test=x)
    found = {
        "validation": [validate(vae.model, vae.guide, Batch(x), 0, parallel.map_parts) for x in (x, images(24))],
        "scores": measure_scores(vae, x, 60, density=False, seed=0),
        "one image": measure_scores(vae, x[:1], 60, density=False, seed=0),
        "adapted proposals": score_batched(vae, x, 40, seed=0, compiled=False, proposal="adaptive"),
        "failing graph": fail_in_third_batch(vae, x.clone()),
        "mixture": measure_scores(mixture, x, 30, density=False, seed=1),
        "means": posterior_means_batched(vae, x, 5),
        "annealing": measure_ais(vae, x, AISConfig(3, 4, 2), 0),
        "local": measure_inference_gaps(vae, x, 3, 0),
        "calibration": Calibration(20).measure(run, 0),
        "classes": measure_classes(mixture, x, classes[:7], 0),
        "probe": probe_rows(mixture, untrained, train, test, 0),
    }
    return flat(plain(found))


def fail_in_third_batch(vae: Any, x: Tensor) -> Scores:
    x[4] = 1
    compiled, batches.CompiledBackend = batches.CompiledBackend, FailingBackend  # type: ignore[misc]
    try:
        return score_batched(vae, x, 60, seed=0, compiled=True)
    finally:
        batches.CompiledBackend = compiled  # type: ignore[misc]


def measure_compiled() -> dict[str, np.ndarray]:
    """Return scores with compiled graphs. The last batch is smaller, and runs eagerly."""
    torch.set_default_dtype(torch.float32)
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    batches.EVAL_BATCH_SIZE = 2
    return flat(plain(score_batched(small_vae(), images(7), 60, seed=0, compiled=True)))


if __name__ == "__main__":
    with cli.exit_status(), ranks.process_group("cpu"):
        results = {"eager": measure, "compiled": measure_compiled}[sys.argv[1]]()
        np.savez(Path(sys.argv[2]) / f"{ranks.rank()}.npz", **results)
