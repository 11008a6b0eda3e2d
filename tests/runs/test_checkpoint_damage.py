"""Only intact checkpoints are loaded, and only as data."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
from pathlib import Path

import pytest
from helpers.checkpoints import state
from helpers.fixtures import Promised

from pyro_vae.errors import CheckpointError
from pyro_vae.runs import checkpoint


def refused(path: Path, words: str = "") -> None:
    with pytest.raises(CheckpointError, match=re.escape(str(path))) as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert words in str(caught.value)


# Damage


def test_every_flipped_bit_is_detected(path: Path, promised: Promised) -> None:
    checkpoint.save(path, state())
    whole = path.read_bytes()
    places = random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for trial in range(2000):
        at = places.randrange(8 * (header if trial % 2 else len(whole)))  # every second one in the header
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        refused(path)
    promised("2,000 of 2,000 checkpoints with a flipped bit are rejected")


def test_every_truncation_is_rejected(path: Path, promised: Promised) -> None:
    checkpoint.save(path, state())
    whole = path.read_bytes()
    lengths = {0, 1, 2, 7, 8, 9, len(whole) - 1, *range(0, len(whole), 50)}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        refused(path)
    promised(f"{len(lengths)} of {len(lengths)} truncated checkpoints are rejected")


def test_zeroed_blocks_and_appended_bytes_are_rejected(path: Path) -> None:
    checkpoint.save(path, state())
    whole = path.read_bytes()
    places = random.Random(1)
    for _ in range(200):
        start, length = places.randrange(len(whole)), places.choice([1, 8, 64, 512])
        block = whole[start : start + length]
        changed = whole[:start] + bytes(len(block)) + whole[start + length :]
        path.write_bytes(changed)
        if changed != whole:
            refused(path)
    path.write_bytes(whole + b"\0")
    refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\n",
        b"hello\n",
        b"{}",
        b'{"format": 1}',
        b"<!DOCTYPE html>\n<html>\n</html>\n",
        b"\x00" * 1000,
        b"\x80\x02}q\x00.",
        b"PK\x03\x04",
        b"\xff" * 8 + b"{}",
    ],
)
def test_other_files_are_rejected(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    refused(path, "not a checkpoint")


def test_pipe_is_rejected_without_blocking(path: Path) -> None:
    os.mkfifo(path)
    refused(path, "not a checkpoint")


def test_file_larger_than_memory_is_not_read(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**42)
    refused(path, "not a checkpoint")


def test_missing_file_and_folder_are_rejected(path: Path) -> None:
    refused(path, "No such file")
    path.mkdir()
    refused(path, "cannot be read")


# Crafted files with a valid digest


def signed(text: str, tensors: bytes = b"", header: str = "") -> bytes:
    """Return a file with a custom header and a valid digest."""
    blank = "0" * 64
    metadata = json.dumps(text.replace("DIGEST", blank))
    content = f'{{"__metadata__":{{"pyro_vae":{metadata}}}{header}}}'.encode()
    content = len(content).to_bytes(8, "little") + content + tensors
    return content.replace(blank.encode(), hashlib.sha256(content).hexdigest().encode(), 1)


GOOD = '{"format": 2, "sha256": "DIGEST", "state": {"dict": [["x", {"tensor": "0"}]]}}'
CLAIMS = {
    "a tensor of 10 GB": ',"0":{"dtype":"U8","shape":[10000000000],"data_offsets":[0,10000000000]}',
    "10 GB in four bytes": ',"0":{"dtype":"U8","shape":[100000,100000],"data_offsets":[0,4]}',
    "a shape that overflows": ',"0":{"dtype":"F32","shape":[4294967296,4294967296,2],"data_offsets":[0,4]}',
    "offsets that run backwards": ',"0":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}',
    "no tensor of that name": ',"1":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}',
    "a type that is none": ',"0":{"dtype":"object","shape":[4],"data_offsets":[0,4]}',
}


def test_crafted_valid_file_is_loaded(path: Path) -> None:
    """Shows that each rejection below is due to the claim that it tests."""
    path.write_bytes(signed(GOOD, b"abcd", ',"0":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}'))
    assert checkpoint.load(path)["x"].tolist() == list(b"abcd")


@pytest.mark.parametrize("claim", CLAIMS)
def test_claimed_sizes_are_validated(claim: str, path: Path) -> None:
    path.write_bytes(signed(GOOD, b"abcd", CLAIMS[claim]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(path, "not a checkpoint")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 2, "sha256": "DIGEST"}',
        '{"format": 2, "sha256": "DIGEST", "state": ' + 50_000 * '{"list": [' + 50_000 * "]}" + "}",
        '{"format": 2, "sha256": "DIGEST", "state": {"function": ["os.system"]}}',
        '{"format": 2, "sha256": "DIGEST", "state": {"dict": [[{}, 1]]}}',
        '{"format": 2, "sha256": "DIGEST", "state": {}}',
        '{"format": 2, "sha256": "DIGEST", "state": ',
        '{"format": ' + 5000 * "9" + ', "sha256": "DIGEST", "state": {}}',
    ],
)
def test_malformed_state_is_rejected(text: str, path: Path) -> None:
    path.write_bytes(signed(text))
    refused(path)


def test_future_format_is_named(path: Path) -> None:
    path.write_bytes(signed('{"format": 3, "sha256": "DIGEST", "state": {"dict": []}}'))
    refused(path, "format 3")
