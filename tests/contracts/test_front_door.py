"""What `import pyro_vae` gives, and what it does not cost."""

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
    *("posterior_probs", "load_run"),
)
# Each takes longer to import than the whole of the package beside Pyro.
HEAVY = {"arviz", "xarray", "pandas", "sklearn", "matplotlib", "PIL", "torchvision", "scipy", "h5py", "torch._dynamo"}
EVERY_MODULE = [module.name for module in pkgutil.walk_packages(pv.__path__, "pyro_vae.")]


def test_the_modules_and_the_names() -> None:
    assert sorted(pv.__all__) == sorted([*MODULES, *NAMES])
    assert set(pv.__all__) <= set(dir(pv))
    for name, path in MODULES.items():
        assert getattr(pv, name) is importlib.import_module(f"pyro_vae.{path}")
    for name in NAMES:
        assert callable(getattr(pv, name))


@pytest.mark.parametrize("room", [pv.priors, pv.likelihoods, pv.posteriors, pv.nets])
def test_every_component_of_a_table_is_found_by_its_class(room: object) -> None:
    """What the flags name is found at the front door, aside from what needs images or channels beside its arguments."""
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


def test_one_version() -> None:
    root = Path(__file__).parents[2]
    assert pv.__version__ == version("pyro_vae")
    assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"] == pv.__version__


def test_the_annotations_are_for_those_who_import_it() -> None:
    root = Path(__file__).parents[2]
    packages = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert packages["package-data"] == {"pyro_vae": ["py.typed"]}
    assert (root / "pyro_vae" / "py.typed").is_file()


def test_what_takes_long_to_import_is_imported_on_use() -> None:
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
def test_no_name_hides_a_module(name: str) -> None:
    """`import a.b.c as m` takes the attribute c of a.b, which may be no function of that name."""
    module = importlib.import_module(name)
    package, _, last = name.rpartition(".")
    assert getattr(sys.modules[package], last) is module
