"""Phrases that a reader of English stops at do not come back, in the package, the scripts and the documents."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A regular expression, any case, and what to write instead.
FORBIDDEN = {
    r"\b(is|are) of (?!type\b|order\b)": "belongs to, requires, supports, has",
    r"^\s+\w+: (of|likewise)\b": "name the thing: 'seed: Random seed for the samples.'",
    r"\bso many\b(?! that)": "N, the first N",
    r"\bin the place of\b": "instead of, replaces",
    r", for one\b": "e.g.",
    r"\ball but\b(?! (the|one)\b)": "nearly",
    r"(?<!there )\bis no (?!longer\b)[a-z]+ (of|and|to)\b": "is not a",
    r"\bas (it is|they are|it stands|they stand)\b": "unchanged",
    r"\bof one's own\b": "custom, your own",
    r"\b(gray|grey) (ones|pixels) go\b": "require",
    r"\bgrey|colour|behaviour|neighbour|labelled": "American spelling",
    r"(initial|normal|optim|maxim|minim)is(e|ed|ing|ation)\b": "American spelling",
    r"\bwhole or not at all\b": "atomically",
    r"\ba line of the log\b": "is logged",
    r"\b(anybody|somebody|stranger)": "untrusted, third-party, another user",
    r"\b(loss|gradient|weight|number|value|result)s?( that)? (is|are) not finite\b": "non-finite",
    r"\bhungr(y|ier|iest)\b": "memory-intensive",
    r"\bwhat (it is|they are|there is)\b": "name the thing",
    r"\b(held|holds) against\b": "compared with",
    r"\banew\b": "again",
    r"\bwhole numbers\b": "integers",
    r"\bits very\b": "the same",
    r"\ba kill\b": "a crash, being killed",
    r"\bmakes of\b": "computes from",
    r"\b(beside|besides) (it|them)\b": "with it, next to it, in addition",
}
SUFFIXES = (".py", ".md", ".toml", ".yml", ".cff")


def sources() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / path for path in listed if path.endswith(SUFFIXES) and not path.startswith("tests/")]


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_a_forbidden_phrase_is_nowhere(pattern: str) -> None:
    phrase = re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    found = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0].strip()!r}"
        for path in sources()
        for text in [path.read_text()]
        for match in phrase.finditer(text)
    ]
    assert not found, f"write {FORBIDDEN[pattern]!r} instead:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "sentence",
    [
        "tf32 is of CUDA devices",
        "    seed: of the draws.",
        "the first so many images",
        "a tensor in the place of x",
        "the hungriest likelihood",
        "a loss that is not finite",
        "Return what it is.",
        "The colour of pixels",
    ],
)
def test_the_patterns_match_what_they_forbid(sentence: str) -> None:
    assert any(re.search(pattern, sentence, re.IGNORECASE | re.MULTILINE) for pattern in FORBIDDEN)
