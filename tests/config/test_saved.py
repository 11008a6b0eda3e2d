"""Saved configurations: read back as they were written, or rejected with a one-line error."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.calls import one_line
from helpers.saved import saved

from pyro_vae.config import Config
from pyro_vae.config.saved import read_config

OTHER = Config(
    program="my.py:factory",
    data="mnist",
    data_root=Path("some/where else"),
    image_size=9,
    channels=3,
    skip_bad=True,
    splits=(0.5, 0.25, 0.25),
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
    deterministic_shards=2,
)


@pytest.mark.parametrize("settings", [Config(), OTHER, OTHER.resolve()], ids=["default", "other", "resolved"])
def test_configuration_round_trips_through_a_file(settings: Config, tmp_path: Path) -> None:
    assert read_config(saved(tmp_path / "config.json", settings.to_json())) == settings


def test_changed_configuration_differs_in_every_field() -> None:
    # Guards the round trip above, which would otherwise miss a field.
    same = [field.name for field in fields(Config) if getattr(OTHER, field.name) == getattr(Config(), field.name)]
    assert same == []


def test_missing_fields_of_an_earlier_version_get_their_defaults(tmp_path: Path) -> None:
    added = ("labels", "image_size", "channels", "skip_bad", "splits", "depth", "width", "optimizer", "ema")
    added += ("deterministic_shards",)
    values = {name: value for name, value in Config(prior="vamp").to_json().items() if name not in added}
    assert read_config(saved(tmp_path / "config.json", values)) == Config(prior="vamp")


FIRST = """
program data data_root binarize train_images test_images prior posterior likelihood net latent_dim hidden_dim objective
num_particles beta warmup_epochs free_bits mmd_weight epochs batch_size learning_rate schedule patience on_nonfinite
num_samples seed device compile precision
"""  # the flags of the first run folders


def test_every_flag_that_was_added_later_may_be_missing(tmp_path: Path) -> None:
    """One at a time, and all together, as in the oldest run folders."""
    values = Config(prior="vamp").to_json()
    added = values.keys() - FIRST.split()
    assert added < values.keys()
    for missing in (*({name} for name in added), added):
        kept = {name: value for name, value in values.items() if name not in missing}
        assert read_config(saved(tmp_path / "config.json", kept)) == Config(prior="vamp")


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "config.json", {**Config().to_json(), "latent_dims": 3, "betas": 1.0})
    with pytest.raises(ValueError, match=re.escape(f"{path} ") + ".*betas, latent_dims"):
        read_config(path)


@pytest.mark.parametrize("field", ["latent_dim", "learning_rate"])
def test_values_out_of_range_are_rejected_in_a_file(field: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "config.json", {**Config().to_json(), field: 0})
    with pytest.raises(ValueError, match=f"--{field.replace('_', '-')} is 0"):
        read_config(path)


def test_file_without_a_json_object_is_rejected(tmp_path: Path) -> None:
    path = saved(tmp_path / "config.json", ["latent_dim", 3])
    with pytest.raises(ValueError, match=re.escape(f"{path} is not a configuration")):
        read_config(path)


def test_missing_data_root_is_named(tmp_path: Path) -> None:
    values = Config().to_json()
    del values["data_root"]
    path = saved(tmp_path / "config.json", values)
    with pytest.raises(ValueError, match="data_root"):
        read_config(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("latent_dim", "fifty"), ("learning_rate", "fast"), ("data_root", 3), ("prior", ["standard"])],
)
def test_values_of_the_wrong_type_are_named(field: str, value: Any, tmp_path: Path) -> None:
    path = saved(tmp_path / "config.json", {**Config().to_json(), field: value})
    with pytest.raises(ValueError, match=f"{field}|{field.replace('_', '-')}"):
        read_config(path)


GOOD = json.dumps(Config().to_json())


def with_seed(value: str) -> str:
    return GOOD.replace('"seed": 0', f'"seed": {value}')


# Name: (content of the file, expected part of the message).
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
    "NaN": (with_seed("NaN"), "NaN is not valid JSON"),
    "infinity": (with_seed("-Infinity"), "-Infinity is not valid JSON"),
    "a float beyond floats": (GOOD.replace('"beta": 1.0', '"beta": 1e400'), "--beta is inf"),
    "10,000 digits": (with_seed("9" * 10_000), "Exceeds the limit (4300 digits)"),
    "4,000 digits": (with_seed("9" * 4_000), "seed is 9999"),
    "4,000 digits and a sign": (with_seed("-" + "9" * 4_000), "seed is -999"),
    "4,000 digits of a float": (GOOD.replace('"beta": 1.0', '"beta": ' + "9" * 4_000), "beta is 9999"),
    "more than 64 bits": (with_seed(str(2**63)), "seed is 9223372036854775808"),
    "a key twice": (GOOD[:-1] + ', "seed": 1}', "'seed' occurs 2 times"),
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
def test_malformed_configuration_is_rejected_with_one_line(kind: str, tmp_path: Path) -> None:
    content, says = NO_CONFIGURATION[kind]
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="configuration") as caught:
        read_config(path)
    message = one_line(caught.value)
    assert message.startswith(f"{path} is not a configuration")
    assert says in message
    assert len(message) < 400 + len(str(path))


def test_truncated_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for length in range(len(GOOD)):
        path.write_text(GOOD[:length])
        with pytest.raises(ValueError, match="is not JSON") as caught:
            read_config(path)
        assert one_line(caught.value).startswith(str(path))


def test_corrupted_file_is_read_or_rejected_with_one_line(tmp_path: Path) -> None:
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
    assert len(refused) > 250  # most letters are part of keys


def test_folder_and_missing_file_are_not_configurations(tmp_path: Path) -> None:
    for path, says in ((tmp_path, "Is a directory"), (tmp_path / "config.json", "No such file")):
        with pytest.raises(ValueError, match=says) as caught:
            read_config(path)
        assert one_line(caught.value).startswith(str(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_file_saved_by_an_editor_is_read(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    settings = Config(data_root=Path("données"))
    path.write_bytes(json.dumps(settings.to_json(), ensure_ascii=False, indent=4).encode(encoding))
    assert read_config(path) == settings
