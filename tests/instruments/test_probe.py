"""The probe instrument: measurement and table."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_vae.data import Labels
from pyro_vae.evaluate import Accuracy
from pyro_vae.instruments import Result
from pyro_vae.instruments.probe import measure_probe, probe_rows, probe_table
from pyro_vae.model import nets, posteriors
from pyro_vae.runs import LabeledImages
from pyro_vae.runs.folder import Folder

pytestmark = pytest.mark.on_device


def program_of(gain: float) -> SimpleNamespace:
    """q(z|x) centered at `gain`, a `pyro.param`, times the one pixel of five that determines the class."""

    def guide(x: Tensor) -> None:
        factor = pyro.param("gain", torch.tensor(gain))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", dist.Normal(factor * x[:, 2:3], 1.0).to_event(1))

    return SimpleNamespace(model=None, guide=guide)


def labelled(number: int) -> LabeledImages:
    """Return images whose third pixel determines the class, and whose other pixels are louder noise."""
    classes = np.arange(number) % 2
    x = 3 * torch.randn(number, 5)
    x[:, 2] = torch.as_tensor(2.0 * classes - 1).to(x)
    return LabeledImages(x, classes)


def test_program_that_encodes_the_class_needs_few_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its means separate the classes from 10 labels on; pixels and principal components, mostly noise, do not.

    The untrained program has a gain of 0, although the store holds the fitted gain under the same name.
    """
    monkeypatch.setattr("pyro_vae.instruments.probe._FINETUNED_SUBSETS", 2)
    fitted, blind = program_of(1.0), program_of(0.0)
    fitted.guide(labelled(2).x)  # puts the fitted gain into the store
    rows = probe_rows(fitted, blind, labelled(40), labelled(500), 0)
    found = {(row["features"], row["classifier"], row["labels"]): row["accuracy"] for row in rows}
    assert {labels for *_, labels in found} == {10, 40}
    for classifier in ("logistic", "kNN"):
        assert found["posterior means", classifier, 10] == 1
        for other in ("pixels", "principal components"):
            assert found[other, classifier, 10] < 0.8
    assert found["fitted encoder", "fine-tuned", 10] == 1
    assert found["random encoder", "fine-tuned", 10] == 0.5


def test_without_closed_form_means_the_rest_is_probed(caplog: pytest.LogCaptureFixture) -> None:
    flow = posteriors.IAF(nets.Dense((5,), 8, depth=1).encoder, 2)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            pyro.sample("z", flow(x))

    program = SimpleNamespace(model=None, guide=guide)
    with caplog.at_level(logging.INFO, "pyro_vae"):
        rows = probe_rows(program, program, labelled(20), labelled(20), 0)
    assert {row["classifier"] for row in rows} == {"logistic", "kNN"}
    lines = [message for message in caplog.messages if "fine-tuned" in message]
    assert lines == [
        "No encoder is fine-tuned: the guide does not have exactly one latent site with a closed-form mean."
    ]


def test_program_without_latents_has_only_pixels(caplog: pytest.LogCaptureFixture) -> None:
    program = SimpleNamespace(model=None, guide=lambda x: None)
    with caplog.at_level(logging.INFO, "pyro_vae"):
        rows = probe_rows(program, program, labelled(20), labelled(1), 0)
    assert {row["features"] for row in rows} == {"pixels"}
    assert {row["se"] for row in rows} == {None}  # undefined for one test image
    assert "No posterior means are probed: the program has no latent site." in caplog.messages


def test_both_layers_are_probed() -> None:
    """The class is the product of two signs, one in each latent: only both latents together determine it."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[0]):
            z1 = pyro.sample("z1", dist.Normal(x[:, :1], 0.1).to_event(1))
            pyro.sample("z2", dist.Normal(x[:, 1:2] + 0 * z1, 0.1).to_event(1))

    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0], [-1.0, 1.0]]).repeat(10, 1)
    known = LabeledImages(torch.cat([signs, 3 * torch.randn(40, 3)], 1), np.arange(40) % 2)
    program = SimpleNamespace(model=None, guide=guide)
    rows = probe_rows(program, program, known, known, 0)
    found = {row["features"]: row["accuracy"] for row in rows if (row["classifier"], row["labels"]) == ("kNN", 40)}
    assert found["posterior means"] == 1
    assert found["pixels"] < 1
    assert {row["classifier"] for row in rows} == {"logistic", "kNN"}


def test_probe_needs_two_classes(tmp_path: Path) -> None:
    x = {split: torch.rand(4, 5) for split in ("train", "test")}
    labels = Labels(("shape", "size"), *(torch.tensor([[3, 0], [3, 1]]).repeat(2, 1) for _ in range(3)))
    found = measure_probe(None, None, x, labels, 0)
    assert found == Result(None, {"probe": "all training images have the same shape"})
    found.write(Folder(tmp_path), "probe")
    assert list(tmp_path.iterdir()) == []


def test_table_has_a_column_for_each_number_of_labels() -> None:
    cells = [
        ("pixels", "kNN", 10, 0.25, 0.02),
        ("pixels", "kNN", 1285, 0.5, None),
        ("means", "kNN", 10, 0.75, 0.04),
        ("means", "kNN", 1285, 0.875, 0.01),
        ("encoder", "fine-tuned", 10, 0.3, 0.05),
        ("encoder", "fine-tuned", 1285, 0.6, 0.06),
    ]
    rows = [dict(zip(Accuracy._fields, row, strict=True)) for row in cells]
    lines = probe_table({"runs\n/a": {"probe": rows}, "b": {"probe": None, "reasons": {"probe": "why"}}}).splitlines()
    assert lines[0].split() == ["runs\\n/a", "10", "labels", "1,285", "labels"]
    assert [line.split() for line in lines[1:4]] == [
        ["kNN,", "pixels", "25.0", "+-", "2.0", "50.0", "+-", "-"],
        ["kNN,", "means", "75.0", "+-", "4.0", "87.5", "+-", "1.0"],
        ["fine-tuned,", "encoder", "30.0", "+-", "5.0", "60.0", "+-", "6.0"],
    ]
    assert lines[4] == "b: not probed, why"
