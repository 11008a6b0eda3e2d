"""The public names of `import pyro_vae`, and what it does not import."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import pyro_vae as pv

MODULES = {
    "data": "data",
    "config": "config",
    "model": "model",
    "trace": "trace",
    "infer": "infer",
    "evaluate": "evaluate",
    "runs": "runs",
    "priors": "model.priors",
    "likelihoods": "model.likelihoods",
    "posteriors": "model.posteriors",
    "nets": "model.nets",
}
NAMES = (
    *("VAE", "TwoLayerVAE", "DensityModel", "CVAE", "GMVAE", "M2"),
    *(
        "SVI",
        "Fit",
        "FitMany",
        "Optim",
        "ELBO",
        "IWAE",
        "Renyi",
        "BetaELBO",
        "MeanFieldELBO",
        "STL",
        "DReG",
        "FreeBits",
    ),
    *(
        "BetaTCVAE",
        "WAE",
        "Batch",
        "log_weights",
        "score",
        "Scores",
        "ais",
        "bdmc",
        "psis",
        "impute",
        "per_image_elbos",
    ),
    *("posterior_probs", "load_run", "VAEEstimator"),
)
# Each takes longer to import than the rest of the package once Pyro is imported.
HEAVY = {"arviz", "xarray", "pandas", "sklearn", "matplotlib", "PIL", "torchvision", "scipy", "h5py", "torch._dynamo"}
EVERY_MODULE = [module.name for module in pkgutil.walk_packages(pv.__path__, "pyro_vae.")]


def test_public_modules_and_names() -> None:
    assert sorted(pv.__all__) == sorted([*MODULES, *NAMES])
    assert set(pv.__all__) <= set(dir(pv))
    for name, path in MODULES.items():
        assert getattr(pv, name) is importlib.import_module(f"pyro_vae.{path}")
    for name in NAMES:
        assert callable(getattr(pv, name))


@pytest.mark.parametrize("room", [pv.priors, pv.likelihoods, pv.posteriors, pv.nets])
def test_every_table_component_is_exported_by_its_class(room: object) -> None:
    """Except those that are built from images or channels in addition to their arguments."""
    from pyro_vae.config import components

    tables = {
        pv.priors: components.PRIORS,
        pv.likelihoods: components.LIKELIHOODS,
        pv.posteriors: components.POSTERIORS,
        pv.nets: components.NETS,
    }
    for name, build in tables[room].items():
        if name not in ("vamp", "pixelcnn"):
            built = getattr(build, "func", build)
            assert getattr(room, built.__name__) is built


def test_version_is_consistent() -> None:
    root = Path(__file__).parents[2]
    assert pv.__version__ == version("pyro_vae")
    assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"] == pv.__version__


def test_package_ships_type_annotations() -> None:
    root = Path(__file__).parents[2]
    packages = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert packages["package-data"] == {"pyro_vae": ["py.typed"]}
    assert (root / "pyro_vae" / "py.typed").is_file()


def test_slow_imports_are_deferred() -> None:
    code = """
import json, sys
import pyro
before = set(sys.modules)
import pyro_vae
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(json.loads(done.stdout))


@pytest.mark.parametrize("name", EVERY_MODULE)
def test_no_name_shadows_a_module(name: str) -> None:
    """`import a.b.c as m` binds the attribute c of a.b, which must not be a function with that name."""
    module = importlib.import_module(name)
    package, _, last = name.rpartition(".")
    assert getattr(sys.modules[package], last) is module
