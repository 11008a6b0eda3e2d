"""What is typed in a notebook: NumPy arrays for tensors, strings for paths, configurations as the flags give them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from helpers.calls import one_line
from helpers.programs import small_vae
from torch._subclasses.fake_tensor import FakeTensorMode

import pyro_vae as pv
from pyro_vae import runs
from pyro_vae.config import Config, programs
from pyro_vae.errors import UserError
from pyro_vae.evaluate import AISConfig

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("short_annealing")]

X = np.random.default_rng(0).integers(0, 2, (8, 3, 2))
FEW = AISConfig(num_chains=3, num_temperatures=4, num_leapfrogs=2)
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "log_weights": lambda vae, x: pv.log_weights(vae.model, vae.guide, x, 5, seed=0),
    "score": lambda vae, x: pv.score(vae.model, vae.guide, x, 5, seed=0).log_likelihood,
    "ais": lambda vae, x: pv.ais(vae.model, vae.guide, x, FEW, seed=0).log_w,
    "impute": lambda vae, x: pv.impute(vae.model, vae.guide, x, FEW, fill_value=0.5, seed=0).mean,
    "posterior_means": lambda vae, x: pv.evaluate.posterior_means(vae.guide, x, 0),
    "elbo_surgery": lambda vae, x: pv.evaluate.elbo_surgery(vae.model, vae.guide, x, seed=0),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [">f8", "<f8", "f4"])
def test_arrays_give_the_numbers_of_tensors(name: str, dtype: str) -> None:
    """In the precision of the program, whatever the type, the byte order and the memory layout of the array."""
    torch.set_default_dtype(torch.float32)
    vae = small_vae()
    array = X.astype(dtype)[::-1]
    array.flags.writeable = False
    call, tensor = CALLS[name], torch.tensor(X[::-1].copy(), dtype=torch.float32)
    assert str(call(vae, array)) == str(call(vae, tensor))


def test_fit_to_arrays_is_that_to_tensors() -> None:
    elbos = []
    for batch in (X.astype(float), torch.tensor(X, dtype=torch.get_default_dtype())):
        pyro.set_rng_seed(0)
        vae = small_vae()
        svi = pv.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pv.ELBO())
        elbos.append([(epoch.elbo, epoch.valid_elbo) for epoch in pv.Fit(svi, [batch[:4], batch[4:]], 3, valid=batch)])
    assert elbos[0] == elbos[1]


def test_step_on_an_array_is_that_on_a_tensor() -> None:
    losses = []
    for execution in (None, "recorded"):
        for batch in (X.astype(float), torch.tensor(X, dtype=torch.get_default_dtype())):
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            vae = small_vae()
            svi = pv.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pv.ELBO(), execution=execution)
            losses.append([float(svi.step(batch)) for _ in range(4)])
    assert losses[0] == losses[1]
    assert losses[2] == losses[3]


def test_labels_stay_integers() -> None:
    batch = pv.Batch(X.astype(float), np.arange(8), named={"mask": torch.ones(8)})
    assert torch.equal(batch.args[1], torch.arange(8))
    assert batch[:3].args[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("images", [X.astype(float), torch.ones(8, 3, 2)])
def test_images_instead_of_batches_are_refused(images: Any) -> None:
    """Iterating over them would train on each image as if its rows were images."""
    vae = small_vae()
    svi = pv.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pv.ELBO())
    with pytest.raises(TypeError, match="a list of batches"):
        pv.Fit(svi, images, 1)


FLAGS: dict[str, Any] = {"train_images": 200, "test_images": 20, "epochs": 2, "hidden_dim": 10, "latent_dim": 3}


@pytest.mark.parametrize("name", [name for name in CALLS if name != "impute"])
def test_devices_without_float64_are_refused(name: str) -> None:
    """Tensors that only say that they are on Apple's GPU; `impute` computes with them before it runs a program."""
    with FakeTensorMode():
        x = torch.zeros(4, 3, 2, device="mps")
    with pytest.raises(UserError, match="x is on the device 'mps:0', which has no float64") as caught:
        CALLS[name](small_vae(), x)
    one_line(caught.value)


def test_configuration_of_the_flags_is_that_of_its_resolution() -> None:
    """Device, number of epochs and the path of the data are filled in where they are needed."""
    fits = []
    for config in (Config(**FLAGS), Config(**FLAGS).resolve()):
        pyro.set_rng_seed(0)
        run = runs.prepare(config)
        assert run.config.device != "auto"
        fits.append([epoch.elbo for epoch in runs.make_fit(run)])
    assert fits[0] == fits[1]
    pyro.set_rng_seed(0)
    alone = programs.build(Config(**FLAGS), runs.load_images(Config(**FLAGS)).pixels)
    assert sum(p.numel() for p in alone.parameters()) == sum(p.numel() for p in run.program.parameters())


def test_strings_are_paths(run: Path, tmp_path: Path) -> None:
    assert Config(data_root="some/where") == Config(data_root=Path("some/where"))  # type: ignore[arg-type]
    assert Config(data=tmp_path) == Config(data=str(tmp_path))  # type: ignore[arg-type]
    folder = runs.RunFolder(str(run))
    assert folder.config() == runs.RunFolder(run).config()
    paths = runs.Checkpoints(str(run / "checkpoints"), folder.config()).paths()
    assert list(paths.values()) == sorted((run / "checkpoints").glob("step-*"))
    opened = [pv.load_run(path) for path in (str(run), run)]
    assert all(torch.equal(a, b) for a, b in zip(*(o.program.parameters() for o in opened), strict=True))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((40, 3, 3)))
    loaded = [pv.data.load(path, str(tmp_path)) for path in (tmp_path / "x.npy", str(tmp_path / "x.npy"))]
    assert torch.equal(loaded[0].train, loaded[1].train)
