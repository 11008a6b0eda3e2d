"""Random streams: every purpose of a seed is listed here once, and no two measurements draw from the same stream."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.programs import images, two_layer
from torch import Tensor

import pyro_vae
from pyro_vae.evaluate import AISConfig, impute, sbc_ranks
from pyro_vae.instruments.annealing import measure_ais
from pyro_vae.instruments.factors import measure_factors
from pyro_vae.instruments.generated import prior_samples, reconstructions, sample_images
from pyro_vae.instruments.local import measure_inference_gaps
from pyro_vae.instruments.probe import probe_rows
from pyro_vae.instruments.scores import measure_scores
from pyro_vae.runs import LabeledImages
from pyro_vae.trace import isolation
from pyro_vae.trace.seeds import derive_seed, global_generator

# Purpose, as words joined by "/" (* is a variable one), and the file that uses it.
PURPOSES = {
    "": "evaluate/likelihood/weights.py",
    "adapt": "evaluate/proposals/adaptive.py",
    "amortized": "evaluate/posterior/local.py",
    "anneal": "evaluate/annealing/ais.py",
    "averages": "evaluate/latents/decoding.py",
    # The same batches of scores; those of validation images have another purpose inside.
    "batch/*": "evaluate/likelihood/scoring.py, infer/validation.py, instruments/batches.py",
    "bidirectional": "evaluate/annealing/ais.py",
    "calibration": "evaluate/posterior/calibration.py",
    "classes": "evaluate/posterior/classes.py",
    "completion": "evaluate/latents/decoding.py",
    "describe": "trace/roles.py",
    "draw/*": "instruments/probe.py",
    "factors/*": "instruments/factors.py",
    "factors/figure": "instruments/factors.py",
    "features": "evaluate/features/frechet.py",
    "finetune": "evaluate/features/finetune.py",
    "gallery codes/*": "instruments/gallery.py",
    "gallery/*": "instruments/gallery.py",
    "impute": "evaluate/annealing/imputation.py",
    "local": "evaluate/posterior/local.py",
    "manifold": "instruments/samples.py",
    "part/*": "evaluate/latents/decoding.py",
    "means": "evaluate/latents/moments.py",
    "moments": "evaluate/latents/moments.py",
    "pixel site": "evaluate/annealing/imputation.py",
    "pixels": "evaluate/latents/decoding.py",
    "posterior latents": "evaluate/latents/decoding.py",
    "principal components": "evaluate/features/probe.py",
    "prior latents": "evaluate/latents/decoding.py",
    "prior samples": "instruments/generated.py",
    "probe/*": "instruments/probe.py",
    "reconstructions": "instruments/generated.py",
    "row/*": "evaluate/likelihood/noise_by_row.py",
    "surgery": "evaluate/posterior/surgery.py",
    "training subsets": "instruments/gallery.py",
    "traversals": "instruments/samples.py",
    "validation": "infer/validation.py",
}


def purposes(tree: ast.AST) -> Iterator[str]:
    """Yield the purposes of the seeds in `derive_seed(seed, *purpose)` and `read_only(seed=seed, purpose=...)`."""
    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            continue
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        seed = keywords.get("seed")
        if call.func.id == "derive_seed":
            words = call.args[1:]
        elif call.func.id == "read_only" and seed is not None and not isinstance(seed, ast.Constant):
            words = [keywords.get("purpose", ast.Constant(""))]
            if isinstance(words[0], ast.Name):  # the argument of `_apply_to_pixels`, whose callers follow
                continue
        elif call.func.id == "_apply_to_pixels" and not isinstance(call.args[-2], ast.Constant):
            words = call.args[-1:]
        else:
            continue
        yield "/".join(str(word.value) if isinstance(word, ast.Constant) else "*" for word in words)


def test_every_purpose_is_listed_once() -> None:
    """Seeds that are constants are those of runs without draws."""
    root = Path(pyro_vae.__file__).parent
    found: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        for purpose in purposes(ast.parse(path.read_text())):
            if path.name != "isolation.py":  # which hashes the purpose that it is given
                found.setdefault(purpose, set()).add(path.relative_to(root).as_posix())
    assert {purpose: ", ".join(sorted(files)) for purpose, files in found.items()} == PURPOSES


@pytest.mark.usefixtures("short_annealing")
def test_no_two_measurements_draw_from_the_same_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """All with seed 0: the seed of each context that has drawn random numbers is used once."""
    drawn: list[int] = []
    seed_rng = isolation.seed_rng

    @contextmanager
    def recorded(x: Tensor, seed: int | None) -> Iterator[None]:
        with seed_rng(x, seed):
            generator = global_generator(x.device)
            before = generator.get_state()
            yield
            if seed is not None and not torch.equal(before, generator.get_state()):
                drawn.append(seed)

    monkeypatch.setattr(isolation, "seed_rng", recorded)
    monkeypatch.setattr("pyro_vae.evaluate.latents.disentanglement._NUM_TREES", 2)
    program, x = two_layer(), images(12)
    labels = torch.stack([torch.arange(12) % 2, torch.arange(12) % 3], 1)
    labeled = LabeledImages(x, labels[:, 0].cpu().numpy())
    settings = AISConfig(2, 3, 1)
    measure_scores(program, x, 40, density=False, seed=0)
    prior_samples(program, x, 3, 0, draws=True)
    reconstructions(program, x, 0, draws=True)
    sample_images(program, x, 0, means=False)
    measure_ais(program, x, settings, 0)
    measure_inference_gaps(program, x, 2, 0)
    sbc_ranks(program.model, program.guide, x, 3, seed=0)
    measure_factors(program, (x, labels), (x, labels), ("two", "three"), 0)
    probe_rows(program, program, labeled, labeled, 0)
    missing = x.clone()
    missing[:, 0] = torch.nan
    impute(program.model, program.guide, missing, settings, fill_value=torch.zeros_like(x[0]), seed=0)
    assert len(drawn) >= 20
    checks = {derive_seed(0, ""), derive_seed(0, "describe")}  # of programs, which discard what they draw
    assert [seed for seed, times in Counter(drawn).items() if times > 1 and seed not in checks] == []
