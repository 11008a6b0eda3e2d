from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from helpers.calls import one_line

from pyro_vae import data
from pyro_vae.config import Config, programs
from pyro_vae.config.saved import read_config
from pyro_vae.model import likelihoods
from pyro_vae.runs import load_images

OTHER = Config(
    program="my.py:factory",
    data="mnist",
    data_root=Path("some/where else"),
    image_size=9,
    channels=3,
    skip_bad=True,
    binarize="none",
    train_images=7,
    test_images=8,
    prior="mixture",
    posterior="mixture",
    likelihood="gaussian",
    net="gated",
    depth=4,
    width=16,
    labels=30,
    latent_dim=3,
    hidden_dim=4,
    objective="beta",
    num_particles=5,
    beta=0.5,
    warmup_epochs=12,
    free_bits=0.2,
    mmd_weight=20.0,
    epochs=6,
    batch_size=2,
    optimizer="adamax",
    learning_rate=0.1 + 0.2,  # 17 digits
    schedule="burda",
    on_nonfinite="rollback",
    patience=9,
    ema=0.99,
    num_samples=10,
    seed=11,
    device="cpu",
    compile="on",
    precision="bf16",
)


def saved(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values))
    return path


# The file


@pytest.mark.parametrize("settings", [Config(), OTHER, OTHER.resolved()], ids=["default", "other", "resolved"])
def test_a_configuration_survives_the_file(settings: Config, tmp_path: Path) -> None:
    assert read_config(saved(tmp_path / "config.json", settings.to_json())) == settings


def test_the_other_configuration_differs_in_every_field() -> None:
    # So that the round trip above sees each of them.
    same = [field.name for field in fields(Config) if getattr(OTHER, field.name) == getattr(Config(), field.name)]
    assert same == []


def test_a_run_of_an_earlier_version_is_read_as_it_was(tmp_path: Path) -> None:
    added = ("labels", "image_size", "channels", "skip_bad", "depth", "width", "optimizer", "ema")
    values = {name: value for name, value in Config(prior="vamp").to_json().items() if name not in added}
    assert read_config(saved(tmp_path / "config.json", values)) == Config(prior="vamp")


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "config.json", {**Config().to_json(), "latent_dims": 3, "betas": 1.0})
    with pytest.raises(ValueError, match=re.escape(f"{path} ") + ".*betas, latent_dims"):
        read_config(path)


@pytest.mark.parametrize("field", ["latent_dim", "learning_rate"])
def test_values_out_of_range_are_refused_in_a_file_too(field: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "config.json", {**Config().to_json(), field: 0})
    with pytest.raises(ValueError, match=f"--{field.replace('_', '-')} is 0"):
        read_config(path)


def test_a_file_that_is_not_an_object(tmp_path: Path) -> None:
    path = saved(tmp_path / "config.json", ["latent_dim", 3])
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a configuration")):
        read_config(path)


def test_a_file_without_its_data_root_names_it(tmp_path: Path) -> None:
    values = Config().to_json()
    del values["data_root"]
    path = saved(tmp_path / "config.json", values)
    with pytest.raises(ValueError, match="data_root"):
        read_config(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("latent_dim", "fifty"), ("learning_rate", "fast"), ("data_root", 3), ("prior", ["standard"])],
)
def test_values_of_another_type_are_refused_by_name(field: str, value: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "config.json", {**Config().to_json(), field: value})
    with pytest.raises(ValueError, match=f"{field}|{field.replace('_', '-')}"):
        read_config(path)


GOOD = json.dumps(Config().to_json())


def with_seed(value: str) -> str:
    return GOOD.replace('"seed": 0', f'"seed": {value}')


# What stands in the file, and what the message must say.
NO_CONFIGURATION: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "it is not JSON (Expecting value: line 1"),
    "binary": (bytes(range(256)), "it is not JSON ("),
    "zeros": (bytes(1000), "it is not JSON ("),
    "no UTF-8": (GOOD.replace("vae", "\xe9").encode("latin-1"), "it is not JSON ('utf-8' codec"),
    "twice": (GOOD + GOOD, "it is not JSON (Extra data"),
    "deep": ("[" * 100_000, "while decoding a JSON"),
    "deep and closed": ("[" * 100_000 + "]" * 100_000, "while decoding a JSON"),
    "deep objects": ('{"a":' * 100_000, "while decoding a JSON"),
    "a deep value": (with_seed("[" * 300 + "]" * 300), "seed is [[[[[[[...]]]]]]]"),
    "NaN": (with_seed("NaN"), "NaN is no number of JSON"),
    "infinity": (with_seed("-Infinity"), "-Infinity is no number of JSON"),
    "a float beyond floats": (GOOD.replace('"beta": 1.0', '"beta": 1e400'), "--beta is inf"),
    "10,000 digits": (with_seed("9" * 10_000), "Exceeds the limit (4300 digits)"),
    "4,000 digits": (with_seed("9" * 4_000), "seed is 9999"),
    "4,000 digits and a sign": (with_seed("-" + "9" * 4_000), "seed is -999"),
    "4,000 digits of a float": (GOOD.replace('"beta": 1.0', '"beta": ' + "9" * 4_000), "beta is 9999"),
    "more than 64 bits": (with_seed(str(2**63)), "seed is 9223372036854775808"),
    "a key twice": (GOOD[:-1] + ', "seed": 1}', "'seed' is there 2 times"),
    "null": ("null", "unknown or missing NoneType"),
    "a number": ("3", "unknown or missing int"),
    "text": ('"seed"', "unknown or missing str"),
    "no keys": ("{}", "unknown or missing batch_size, beta, binarize, compile, data and "),
    "thousands of keys": (json.dumps({f"{i:0100d}": i for i in range(5000)}), " more."),
    "a key with control characters": (GOOD[:-1] + r', "a\n\u001b[31m": 1}', r"missing a\n\x1b[31m"),
    "true": (with_seed("true"), "seed is True"),
    "no count": (with_seed("null"), "seed is None"),
    "a fraction": (with_seed("1.5"), "seed is 1.5"),
    "a million letters": (GOOD.replace("digits", "x" * 1_000_000), "data is 'xxxx"),
    "control characters": (GOOD.replace("vae", r"a\n\u001b[31m"), r"program is 'a\n\x1b[31m'"),
    "out of range": (GOOD.replace('"latent_dim": 50', '"latent_dim": 0'), "--latent-dim is 0"),
    "an unknown part": (GOOD.replace("meanfield", "median"), "Unknown posterior 'median'"),
}


@pytest.mark.parametrize("kind", NO_CONFIGURATION)
def test_a_file_that_is_no_configuration_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    content, says = NO_CONFIGURATION[kind]
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="configuration") as caught:
        read_config(path)
    message = one_line(caught.value)
    assert message.startswith(f"{path} is not a configuration")
    assert says in message
    assert len(message) < 400 + len(str(path))


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for length in range(len(GOOD)):
        path.write_text(GOOD[:length])
        with pytest.raises(ValueError, match="is not JSON") as caught:
            read_config(path)
        assert one_line(caught.value).startswith(str(path))


def test_bytes_changed_anywhere_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    rng = np.random.default_rng(0)
    refused = []
    for _ in range(500):
        content = bytearray(GOOD.encode())
        content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(content)
        try:
            read_config(path)
        except ValueError as error:
            refused.append(error)
    assert all(one_line(error).startswith(str(path)) for error in refused)
    assert len(refused) > 250  # most letters are of names


def test_a_folder_and_nothing_are_no_configuration(tmp_path: Path) -> None:
    for path, says in ((tmp_path, "Is a directory"), (tmp_path / "config.json", "No such file")):
        with pytest.raises(ValueError, match=says) as caught:
            read_config(path)
        assert one_line(caught.value).startswith(str(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_what_editors_make_of_a_file_is_read(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    settings = Config(data_root=Path("données"))
    path.write_bytes(json.dumps(settings.to_json(), ensure_ascii=False, indent=4).encode(encoding))
    assert read_config(path) == settings


# Values


COUNTS = ("image_size", "train_images", "test_images", "latent_dim", "hidden_dim", "num_particles")
COUNTS += ("epochs", "batch_size", "num_samples", "width")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, 0) for name in COUNTS),
        *((name, -3) for name in COUNTS),
        ("patience", -1),
        ("depth", -1),
        *(("ema", value) for value in (1.5, 1.0, -0.1, math.nan)),
        *(("learning_rate", value) for value in (0.0, -1.0, math.nan, math.inf)),
        *((name, value) for name in ("beta", "free_bits", "mmd_weight") for value in (-0.1, math.nan, math.inf)),
    ],
)
def test_values_out_of_range_name_the_flag(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^--{field.replace('_', '-')} is {value};"):
        Config(**{field: value})


@pytest.mark.parametrize("field", COUNTS)
def test_the_least_count_is_accepted(field: str) -> None:
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
        # The flag parser holds these three to their choices; a saved file and a program come without it, and
        # an unknown binarization would pass for one that fixes no test images.
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
def test_resolved_fills_in_what_the_data_set_decides(name: str, epochs: int, num_samples: int) -> None:
    settings = Config(data=name).resolved()
    assert (settings.epochs, settings.num_samples) == (epochs, num_samples)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_resolved_keeps_what_was_asked_for(name: str) -> None:
    settings = Config(data=name, epochs=2, num_samples=3, seed=4, device="cpu", compile="on")
    assert settings.resolved() == settings


@pytest.mark.parametrize(
    ("changes", "graph"),
    [
        ({}, "recorded"),  # 300 epochs of 13 steps: over before a compiler is done
        ({"batch_size": 20}, "compiled"),
        ({"data": "mnist", "epochs": 18}, "recorded"),  # 9,900 steps
        ({"data": "mnist", "epochs": 19}, "compiled"),
        ({"data": "mnist", "epochs": 100, "train_images": 9_900}, "recorded"),
        ({"data": "mnist", "epochs": 100, "train_images": 9_901}, "compiled"),
        ({"compile": "on"}, "compiled"),
        ({"data": "mnist", "compile": "off"}, None),
    ],
)
def test_a_run_is_compiled_by_its_number_of_steps(changes: dict[str, Any], graph: str, tmp_path: Path) -> None:
    settings = Config(device="cpu", **changes).resolved()
    assert settings.graph == graph
    assert read_config(saved(tmp_path / "config.json", settings.to_json())).graph == graph


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_the_images_are_as_many_as_is_known_of_them(name: str) -> None:
    assert len(data.load(name, Path()).train) == data.DATASETS[name].num_train


def test_tf32_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="--precision tf32 is of CUDA devices"):
        Config(precision="tf32", device="cpu").resolved()


@pytest.mark.parametrize(("there", "taken"), [(True, "cuda"), (False, "cpu")])
def test_auto_takes_cuda_where_it_is(there: bool, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert Config().resolved().device == taken
    assert Config(device="cpu").resolved().device == "cpu"


def test_cuda_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda: no CUDA device"):
        Config(device="cuda").resolved()


# Parts


@pytest.mark.parametrize(
    ("objective", "unread"),
    [
        ("elbo", {"beta": 2.0}),
        ("iwae", {"warmup_epochs": 3}),
        ("beta", {"free_bits": 0.3}),
        ("free-bits", {"beta": 0.5}),
        ("beta-tcvae", {"mmd_weight": 10.0}),
        ("wae-mmd", {"beta": 0.5}),
    ],
)
def test_a_flag_that_the_objective_does_not_read_is_refused(objective: str, unread: dict[str, float]) -> None:
    (name,) = unread
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} is of --objective .*, not of {objective}"):
        programs.build_objective(Config(objective=objective, **unread), 100)


@pytest.mark.parametrize(
    ("net", "unread", "says"),
    [
        ("linear", {"depth": 3}, r"--depth is of --net mlp and .* and resnet, not of linear"),
        ("linear", {"width": 8}, r"--width is of --net conv and resnet, not of linear; .* --hidden-dim"),
        *((net, {"width": 8}, f"not of {net}; .* --hidden-dim") for net in ("mlp", "relu", "gated", "funnel")),
    ],
)
def test_a_flag_that_the_networks_do_not_read_is_refused(net: str, unread: dict[str, int], says: str) -> None:
    settings, images = small(net=net, **unread)
    with pytest.raises(ValueError, match=says) as caught:
        programs.build(settings, images)
    one_line(caught.value)
    assert programs.unread(settings) | {"width": None} == programs.unread(replace(settings, depth=None, width=None))


@pytest.mark.parametrize("flags", [{"depth": 2}, {"width": 32}])
def test_a_program_of_ones_own_may_read_any_flag_of_networks(flags: dict[str, int]) -> None:
    programs.check(Config(program="my.py:factory", net="linear", **flags))


@pytest.mark.parametrize(
    ("net", "flags", "layers"),
    [
        ("mlp", {}, 6),
        ("mlp", {"depth": 0}, 2),
        ("relu", {"depth": 1}, 4),
        ("funnel", {"depth": 5}, 12),
        ("gated", {"depth": 3}, 14),
        ("conv", {}, 8),
        ("conv", {"depth": 1, "width": 4}, 16),
        ("resnet", {"width": 4}, 24),
        ("resnet", {"depth": 3}, 32),
    ],
)
def test_networks_are_as_deep_and_as_wide_as_asked_for(net: str, flags: dict[str, int], layers: int) -> None:
    """Counted by their weights, of both networks; a residual block has two, and a gated layer."""
    settings, images = small(net=net, **flags)
    vae = programs.build(settings, images)
    weights = [p for name, p in vae.named_parameters() if name.endswith("weight")]
    assert len(weights) == layers
    if net in ("conv", "resnet"):
        assert {p.shape[0] for p in weights if p.dim() == 4} == {k * flags.get("width", 32) for k in (1, 2)}
    if net == "funnel":
        assert [p.shape[0] for p in vae.posterior.net[1].parameters() if p.dim() == 2] == [4, 2, 1, 1, 1, 6]


def small(**changes: Any) -> tuple[Config, data.Images]:
    settings = Config(device="cpu", latent_dim=3, hidden_dim=4, **changes)
    return settings, load_images(settings).pixels


def test_the_bernoulli_decoder_starts_at_the_mean_image() -> None:
    settings, images = small(binarize="fixed")
    vae = programs.build(settings, images)
    mean = images.train.numpy().reshape(len(images.train), -1).mean(0) / 255
    mean = np.clip(mean, 1e-3, 1 - 1e-3)  # corners are always black
    assert isinstance(vae.likelihood, likelihoods.Bernoulli)
    bias = vae.likelihood.bias.detach().flatten().numpy()
    np.testing.assert_allclose(bias, np.log(mean / (1 - mean)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_same_seed_gives_the_same_parameters(likelihood: str) -> None:
    settings, images = small(likelihood=likelihood, prior="mixture", binarize="none")

    def parameters(seed: int) -> dict[str, torch.Tensor]:
        pyro.set_rng_seed(seed)
        return programs.build(settings, images).state_dict()

    first, second, other = parameters(3), parameters(3), parameters(4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    weights = [name for name in first if name.endswith("weight")]
    assert len(weights) == 6  # three layers each way
    assert not any(torch.equal(first[name], other[name]) for name in weights)


def test_load_images_takes_the_first_and_binarizes() -> None:
    settings, images = small(binarize="threshold", train_images=20, test_images=10)
    grey = data.load("digits", settings.data_root)
    assert torch.equal(images.train, 255 * (grey.train[:20] >= 128).byte())
    assert torch.equal(images.test, 255 * (grey.test[:10] >= 128).byte())
