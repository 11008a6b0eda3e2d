"""Mutation testing: each of twelve handwritten bugs makes a test fail."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.mutations import MUTATIONS, ROOT, Mutation, failing_tests

pytestmark = pytest.mark.host


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_target_exists(mutation: Mutation) -> None:
    """Part of the default suite, which does not run the mutations themselves."""
    source = (ROOT / mutation.file).read_text()
    ast.parse(mutation.applied(source))
    with pytest.raises(ValueError, match=r"lost its place: .* holds 0 times, not once, .* Update it"):
        replace(mutation, old=mutation.old + "?").applied(source)
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in (ROOT / file).read_text(), test


@pytest.mark.slow
def test_suite_is_green_without_mutations(tmp_path: Path) -> None:
    assert len(MUTATIONS) == 12
    assert failing_tests(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_mutation_makes_a_test_fail(mutation: Mutation, tmp_path: Path, promised: Callable[[str], None]) -> None:
    assert failing_tests(tmp_path, mutation) != []
    promised("a handwritten bug makes a test fail")
