"""Only like numbers are compared: the same images, the same quantity, the same estimator, finished and undamaged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from helpers.calls import inside, one_line
from helpers.scored import SUMMARY, scored_run

from pyro_vae.config import Config
from pyro_vae.errors import UserError
from pyro_vae.instruments import comparison
from pyro_vae.instruments.comparable import mark_unlike
from pyro_vae.instruments.quantity import digest_images, name_quantity
from pyro_vae.runs import Folder, RunFolder
from pyro_vae.trace import Batch

FIRST = np.array([-8.0, -9.0, -10.0, -11.0])
SECOND = np.array([-9.0, -9.5, -12.0, -11.5])


def compared(tmp_path: Path, values: np.ndarray = SECOND, **changes: Any) -> list[dict[str, Any]]:
    runs = {"one": scored_run(tmp_path / "one", FIRST), "two": scored_run(tmp_path / "two", values, **changes)}
    return comparison.compare({name: [folder] for name, folder in runs.items()})


def test_differences_are_paired(tmp_path: Path) -> None:
    """Of differences 1, 0.5, 2, 0.5: mean 1, and standard error sqrt(0.5 / 4)."""
    first, second = compared(tmp_path)
    assert (first["name"], first["below_best"], second["name"]) == ("one", 0.0, "two")
    assert second["below_best"] == pytest.approx(1.0)
    assert second["below_best_se"] == pytest.approx(0.125**0.5)


CONFIG = SUMMARY["config"]
UNLIKE: dict[str, tuple[dict[str, Any], str]] = {
    "unfinished": ({"finished": False}, "two belongs to an unfinished run"),
    "no log p(x)": ({"log_likelihood": None, "reasons": {"log_likelihood": "a loss"}}, "two has no log p(x).*a loss"),
    "no reason": ({"log_likelihood": None}, "two has no log p(x).*no reason"),
    "a density": ({"density": True}, "two scores densities"),
    "given labels": ({"quantity": "probability of x given labels"}, "two the probability of x given labels"),
    "more than x": ({"quantity": "probability of x and ink"}, "two the probability of x and ink"),
    "other images": ({"test_images": "other"}, "different test images.*--binarize"),
    "a run of a former version": ({"test_images": None, "config": {**CONFIG, "binarize": "none"}}, "different test"),
    "files of a former version": ({"test_images": None, "config": {**CONFIG, "data": "/a/b.npy"}}, "different test"),
    "other samples": ({"num_samples": 51}, "50 importance samples per image and .*two 51.*--num-samples"),
}


@pytest.mark.parametrize("what", UNLIKE)
def test_unlike_runs_are_refused(what: str, tmp_path: Path, promised: Callable[[str], None]) -> None:
    changes, words = UNLIKE[what]
    with pytest.raises(UserError, match=words.replace("(x)", r"\(x\)")) as caught:
        compared(tmp_path, **changes)
    one_line(caught.value)
    promised("unlike runs are refused in a comparison, in one line")


def test_runs_of_former_versions_are_compared_by_their_configurations(tmp_path: Path) -> None:
    assert len(compared(tmp_path, test_images=None)) == 2


def test_unlike_runs_are_marked_in_a_common_figure() -> None:
    dense, levels = {**SUMMARY, "density": True, "test_images": "noisy"}, {**SUMMARY, "num_test_images": 4}
    dense["num_test_images"] = 4
    assert mark_unlike({"a": levels, "b": levels}) == {"a": "a", "b": "b"}
    assert mark_unlike({"a": dense}) == {"a": "a"}
    others = {"c": {**levels, "test_images": "other"}, "d": {**dense, "num_test_images": 3}}
    found = mark_unlike({"a": levels, "b": dense, **others})
    assert found == {"a": "a", "b": "b (density)", "c": "c (other images)", "d": "d (density, other images)"}


def test_another_number_of_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="different test images"):
        compared(tmp_path, SECOND[:3])


def test_transformed_images_are_compared_within_a_program_only(tmp_path: Path) -> None:
    """In which unit two programs observe x is not known."""
    quantity = {"density": True, "quantity": "density of transformed x"}
    mine = {**CONFIG, "program": "mine.py:factory"}
    runs = {
        "one": scored_run(tmp_path / "one", FIRST, **quantity, config={**mine, "prior": "laplace"}),
        "two": scored_run(tmp_path / "two", SECOND, **quantity, config=mine),
        "three": scored_run(tmp_path / "three", SECOND, **quantity, config={**mine, "program": "other.py:factory"}),
    }
    assert len(comparison.compare({name: [runs[name]] for name in ("one", "two")})) == 2
    with pytest.raises(UserError, match="density of transformed x of mine"):
        comparison.compare({name: [runs[name]] for name in ("one", "three")})


def test_scores_of_another_summary_are_refused(tmp_path: Path) -> None:
    for number, values in enumerate((SECOND + 0.1, SECOND[:3])):
        folder = scored_run(tmp_path / f"{number}", SECOND)
        other = scored_run(tmp_path / f"other{number}", values)
        (folder.path / "scores.nc").write_bytes((other.path / "scores.nc").read_bytes())
        with pytest.raises(UserError, match=r"scores.nc does not belong to summary.json"):
            comparison.compare({"one": [folder], "same": [folder]})


DAMAGED: dict[str, str | Callable[[dict[str, Any]], Any]] = {
    "nothing": "",
    "half": '{"elbo": -1',
    "a list": "[1]",
    "null": "null",
    "an object": "{}",
    "deeply nested": "[" * 100_000,
    "a long number": '{"elbo": ' + "9" * 5000 + "}",
    "NaN": '{"elbo": NaN}',
    "binary": "\0\udcff",
    "a text": lambda summary: {**summary, "elbo": "\x1b[31mred\n"},
    "infinity": lambda summary: {**summary, "rate": 10**400},
    "a flag": lambda summary: {**summary, "num_test_images": True},
    "no images": lambda summary: {**summary, "num_test_images": 0},
    "a list of bounds": lambda summary: {**summary, "iwae": [1]},
    "texts as bounds": lambda summary: {**summary, "iwae": {"50": "x"}},
    "a text as density": lambda summary: {**summary, "density": "no"},
    "a text as reasons": lambda summary: {**summary, "reasons": "no"},
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_summaries_are_named_in_one_line(kind: str, tmp_path: Path) -> None:
    folder = scored_run(tmp_path / "run", SECOND)
    path, content = folder.path / "summary.json", DAMAGED[kind]
    text = content if isinstance(content, str) else json.dumps(content(json.loads(path.read_text())))
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=re.escape(f"{path} is not")) as caught:
        comparison.compare({"one": [scored_run(tmp_path / "one", FIRST)], "two": [folder]})
    assert len(one_line(caught.value)) < 500 + len(str(path))


def external(group: h5py.Group, secret: Path) -> None:
    group.create_dataset("log_likelihood", shape=(4,), dtype="f8", external=[(str(secret), 0, 32)])


def external_link(group: h5py.Group, secret: Path) -> None:
    group["log_likelihood"] = h5py.ExternalLink(str(secret.with_suffix(".nc")), "constant_data/log_likelihood")


def soft_link(group: h5py.Group, secret: Path) -> None:
    group["log_likelihood"] = h5py.SoftLink("/constant_data/elbo")


def virtual(group: h5py.Group, secret: Path) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f8")
    layout[:] = h5py.VirtualSource(str(secret.with_suffix(".nc")), "constant_data/log_likelihood", shape=(4,))
    group.create_virtual_dataset("log_likelihood", layout)


def huge(group: h5py.Group, secret: Path) -> None:
    group.create_dataset("log_likelihood", shape=(2**40,), dtype="f8", chunks=(1024,), compression="gzip")


def texts(group: h5py.Group, secret: Path) -> None:
    group["log_likelihood"] = ["a", "b", "c", "d"]


def a_group(group: h5py.Group, secret: Path) -> None:
    group.create_group("log_likelihood")


def group_elsewhere(group: h5py.Group, secret: Path) -> None:
    file = group.file
    del file["constant_data"]
    file["constant_data"] = h5py.ExternalLink(str(secret.with_suffix(".nc")), "constant_data")


def plugin(group: h5py.Group, secret: Path) -> None:
    """A filter that HDF5 would load as code, from a folder named by the environment."""
    stored = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    stored.set_chunk((4,))
    stored.set_filter(32004, h5py.h5z.FLAG_OPTIONAL, ())
    h5py.h5d.create(group.id, b"log_likelihood", h5py.h5t.IEEE_F64LE, h5py.h5s.create_simple((4,)), stored)


HOSTILE = (external, external_link, soft_link, virtual, huge, texts, a_group, group_elsewhere, plugin)


@pytest.mark.parametrize("change", HOSTILE)
def test_scores_are_read_from_their_own_file_only(
    change: Callable[..., None], tmp_path: Path, promised: Callable[[str], None]
) -> None:
    secret = tmp_path / "secret"
    np.full(4, -7.0).tofile(secret)
    other = scored_run(tmp_path / "other", np.full(4, -7.0))
    (other.path / "scores.nc").rename(secret.with_suffix(".nc"))
    folder = scored_run(tmp_path / "run", np.full(4, -7.0))
    with h5py.File(folder.path / "scores.nc", "r+") as file:
        del file["constant_data/log_likelihood"]
        change(file["constant_data"], secret)
    with pytest.raises(UserError, match=re.escape(f"{folder.path / 'scores.nc'} is not a file of scores")) as caught:
        comparison.compare({"one": [scored_run(tmp_path / "one", FIRST)], "two": [folder]})
    one_line(caught.value)
    promised("a hostile file of scores is refused in one line")


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"text", None])
def test_damaged_scores_are_named_in_one_line(content: bytes | None, tmp_path: Path) -> None:
    folder = scored_run(tmp_path / "run", SECOND)
    path = folder.path / "scores.nc"
    content = path.read_bytes()[:3000] if content is None else content
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        comparison.compare({"one": [folder], "two": [folder]})
    one_line(caught.value)


def test_every_flipped_byte_of_scores_gives_the_same_numbers_or_one_line(tmp_path: Path) -> None:
    """One byte in fifty. A summary of another mean detects values that differ."""
    folder = scored_run(tmp_path / "run", SECOND)
    path, runs = folder.path / "scores.nc", {"one": [folder], "two": [folder]}
    whole = path.read_bytes()
    for index in range(0, len(whole), 50):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0x55]) + whole[index + 1 :])
        found = outcome(runs)
        if isinstance(found, UserError):
            assert "scores.nc" in one_line(found)
        else:
            assert found[0]["log_likelihood"] == pytest.approx(SECOND.mean(), rel=1e-6)


def outcome(runs: dict[str, list[RunFolder]]) -> list[dict[str, Any]] | UserError:
    try:
        return comparison.compare(runs)
    except UserError as error:
        return error


def test_digest_is_of_the_observed_images() -> None:
    x = torch.rand(5, 4, 3)
    assert (
        digest_images(Batch(x))
        == digest_images(Batch(x.double(), torch.zeros(5)))
        == digest_images(Batch(x.flatten(1)))
    )
    others = (x[:4], x.flip(0), x.round(), x + 1e-3 * torch.eye(5)[:, :4, None])
    assert len({digest_images(Batch(other)) for other in (x, *others)}) == 5


def test_quantities_are_named() -> None:
    x, y = torch.rand(3, 2), torch.tensor([0, 1, 1])
    named = {
        name_quantity(Batch(x), ["x"], "x", density=False): "probability of x",
        name_quantity(Batch(x), ["x"], "x", density=True): "density of x",
        name_quantity(Batch(x), ["x", "ink"], "x", density=False): "probability of x and ink",
        name_quantity(Batch(x), ["x"], None, density=True): "density of transformed x",
        name_quantity(Batch(x, y), ["x"], "x", density=False): "probability of x given labels",
        name_quantity(Batch(x, -torch.ones_like(y)), ["x"], "x", density=True): "density of x",  # labels are unknown
    }
    assert list(named) == list(named.values())


def test_finished_runs_are_compared_by_their_folders(tmp_path: Path) -> None:
    """No program is executed: the runs may be of any."""
    runs = [scored_run(tmp_path / "one", FIRST), scored_run(tmp_path / "two", SECOND)]
    paths = [run.path for run in runs]
    result = inside("compare", *paths, "--out", tmp_path / "out", render=True)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [row["name"] for row in rows] == ["one", "two"]
    assert rows[1]["below_best"] == pytest.approx(1.0)
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 3000
    assert inside("compare", *paths, "--figure-format", "pdf", "--out", tmp_path / "out", render=True).returncode == 0
    assert (tmp_path / "out" / "comparison.pdf").read_bytes().startswith(b"%PDF-")
    assert not (tmp_path / "out" / "comparison.png").exists()
    for flags, words in (
        ([paths[0]], "two or more run folders"),
        ([paths[0], paths[0]], "twice"),
        ([*paths, "--priors", "standard", "vamp"], "leave out the flags"),
        ([*paths, "--epochs", 3], "leave out the flags"),
        ([*paths, tmp_path], "is not a finished run: it has no summary.json"),
    ):
        refused = inside("compare", *flags, "--out", tmp_path / "other")
        assert refused.returncode == 2
        assert words in refused.stderr
        assert not (tmp_path / "other").exists()


def test_second_comparison_in_one_folder_is_refused(tmp_path: Path) -> None:
    paths = [scored_run(tmp_path / name, FIRST).path for name in ("one", "two")]
    first = Folder(tmp_path / "out", figures=".")
    first.lock()
    for flags in (paths, ["--priors", "standard", "laplace"]):
        result = inside("compare", *flags, "--out", tmp_path / "out")
        assert result.returncode == 2
        assert "out is being written by another process" in result.stderr
    first.unlock()
    assert inside("compare", *paths, "--out", tmp_path / "out").returncode == 0


def test_defaults_of_the_summaries_are_those_of_a_run() -> None:
    assert SUMMARY["config"].keys() == Config().to_json().keys()
