"""Examples in docstrings run and print the documented output, each with a fixed seed and an empty param store."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pyro
import pytest
import torch

import pyro_vae

ROOT = Path(pyro_vae.__file__).parents[1]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "pyro_vae").rglob("*.py") if ">>> " in path.read_text())
# Public functions and classes whose docstrings have an example.
SHOWN = {
    "pyro_vae.data.assembly.from_arrays",
    "pyro_vae.data.datasets.load",
    "pyro_vae.evaluate.annealing.ais.ais",
    "pyro_vae.evaluate.annealing.imputation.impute",
    "pyro_vae.evaluate.likelihood.diagnostics.psis",
    "pyro_vae.evaluate.likelihood.scoring.score",
    "pyro_vae.evaluate.likelihood.weights.log_weights",
    "pyro_vae.infer.fit.Fit",
    "pyro_vae.infer.objectives.bounds.ELBO",
    "pyro_vae.infer.objectives.wae.mmd",
    "pyro_vae.model.priors.mixture.GaussianMixture",
    "pyro_vae.model.vae.VAE",
}


def examples(path: Path) -> list[doctest.DocTest]:
    """Return the examples of a module; each may use the documented object, and imports everything else."""
    module = importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    tests = [test for test in doctest.DocTestFinder().find(module, globs={}) if test.examples]
    for test in tests:
        name = test.name.removeprefix(f"{module.__name__}.")
        test.globs[name] = getattr(module, name)
    return tests


@pytest.mark.parametrize("path", FILES, ids=str)
def test_examples_print_the_documented_output(path: Path) -> None:
    torch.set_default_dtype(torch.float32)  # the default dtype of a new session
    for example in examples(path):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        with torch.device("cpu"):
            report: list[str] = []
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
        assert not report, "".join(report)


def test_public_functions_have_examples() -> None:
    assert {example.name for path in FILES for example in examples(path)} >= SHOWN
