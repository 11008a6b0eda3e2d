"""Flags of a run: rejected values, and defaults that depend on the data set and the machine."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from helpers.saved import saved

from pyro_vae.config import Config
from pyro_vae.config.saved import read_config

# Values

COUNTS = ("image_size", "train_images", "test_images", "latent_dim", "hidden_dim", "num_particles")
COUNTS += ("epochs", "batch_size", "num_samples", "width")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in COUNTS),
        *((name, -3) for name in COUNTS),
        *((name, value) for name in (*COUNTS, "patience", "warmup_epochs") for value in (2**31, 2**64, 10**30)),
        *(("depth", value) for value in (1001, 2**64)),
        *(("seed", value) for value in (-1, 2**32, 10**30)),
        ("patience", -1),
        ("depth", -1),
        ("deterministic_shards", 0),
        *(("ema", value) for value in (1.5, 1.0, -0.1, math.nan)),
        *(("learning_rate", value) for value in (0.0, -1.0, math.nan, math.inf)),
        *(
            (name, value)
            for name in ("beta", "free_bits", "mmd_weight")
            for value in (-0.1, math.nan, math.inf, 1e31, 1e300)
        ),
    ],
)
def test_values_out_of_range_name_the_flag(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"--{field.replace('_', '-')} is {value};")):
        Config(**{field: value})


def test_largest_values_are_accepted() -> None:
    """Of the seed, by each generator that it seeds."""
    largest = Config(**dict.fromkeys(COUNTS, 2**31 - 1), depth=1000, seed=2**32 - 1, beta=1e30, mmd_weight=1e30)
    assert torch.isfinite(torch.tensor(1e6 * largest.beta))  # the rate of a large image, weighted
    pyro.set_rng_seed(largest.seed)


@pytest.mark.parametrize("field", COUNTS)
def test_minimum_count_is_accepted(field: str) -> None:
    assert getattr(Config(**{field: 1}), field) == 1


@pytest.mark.parametrize(
    ("field", "choices"),
    [
        ("data", ["digits", "mnist", "fashion-mnist", "kmnist", "shapes"]),
        ("prior", ["standard", "mixture"]),
        ("posterior", ["meanfield"]),
        ("likelihood", ["bernoulli", "gaussian"]),
        ("net", ["mlp"]),
        ("objective", ["elbo", "iwae"]),
        ("optimizer", ["adam", "adamax"]),
        # The flag parser restricts these three to their choices. Saved files and programs bypass it, and an unknown
        # binarization would be treated as one that does not fix the test images.
        ("binarize", ["dynamic", "fixed", "threshold", "none"]),
        ("schedule", ["constant", "cosine", "burda"]),
        ("on_nonfinite", ["stop", "rollback"]),
        ("device", ["auto", "cpu", "cuda"]),
    ],
)
def test_unknown_names_list_the_choices(field: str, choices: list[str]) -> None:
    with pytest.raises(ValueError, match=f"{field}.*'nonsense'") as caught:
        Config(**{field: "nonsense"})
    assert all(choice in str(caught.value) for choice in choices)


# Defaults that depend on the data set and the machine


@pytest.mark.parametrize(
    ("name", "epochs", "num_samples"),
    [
        ("digits", 300, 1000),
        ("mnist", 100, 5000),
        ("fashion-mnist", 100, 5000),
        ("kmnist", 100, 5000),
        ("shapes", 100, 1000),
    ],
)
def test_resolved_fills_in_defaults_of_the_data_set(name: str, epochs: int, num_samples: int) -> None:
    settings = Config(data=name).resolve()
    assert (settings.epochs, settings.num_samples) == (epochs, num_samples)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_resolved_keeps_explicit_values(name: str) -> None:
    settings = Config(data=name, epochs=2, num_samples=3, seed=4, device="cpu", compile="on")
    assert settings.resolve() == settings


@pytest.mark.parametrize(
    ("changes", "num_images", "graph"),
    [
        ({}, 1285, "recorded"),  # 300 epochs of 13 steps: finished before compilation would be
        ({"batch_size": 20}, 1285, "compiled"),
        ({"epochs": 18}, 55_000, "recorded"),  # 9,900 steps
        ({"epochs": 19}, 55_000, "compiled"),
        ({"epochs": 100}, 9_900, "recorded"),
        ({"epochs": 100}, 9_901, "compiled"),
        ({"compile": "on"}, 1, "compiled"),
        ({"epochs": 100, "compile": "off"}, 55_000, None),
    ],
)
def test_number_of_steps_decides_whether_a_run_is_compiled(
    changes: dict[str, Any], num_images: int, graph: str, tmp_path: Path
) -> None:
    settings = Config(device="cpu", **changes).resolve()
    assert settings.execution(num_images) == graph
    assert read_config(saved(tmp_path / "config.json", settings.to_json())).execution(num_images) == graph


def test_tf32_is_rejected_on_cpu() -> None:
    with pytest.raises(ValueError, match="--precision tf32 requires a CUDA device"):
        Config(precision="tf32", device="cpu").resolve()


@pytest.mark.parametrize(("there", "taken"), [(True, "cuda"), (False, "cpu")])
def test_auto_device_selects_cuda_if_available(there: bool, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert Config().resolve().device == taken
    assert Config(device="cpu").resolve().device == "cpu"


def test_missing_cuda_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda: no CUDA device"):
        Config(device="cuda").resolve()
