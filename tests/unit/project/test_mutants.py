"""The lists of mutants fit the project: each text stands once in its file, and each test file is there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def mutants() -> Any:
    spec = importlib.util.spec_from_file_location("mutants", ROOT / "scripts" / "mutants.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_mutant_fits_the_project(mutants: Any) -> None:
    lists = mutants.read_mutants(ROOT)
    assert {"data", "evaluate", "models", "pipeline", "sample", "stage", "train"} == set(lists)
    assert mutants.problems_of([mutant for part in lists.values() for mutant in part], ROOT) == []


def test_a_mutant_that_fits_no_more_is_named(mutants: Any, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\ny = 1\n")
    (tmp_path / "test_a.py").write_text("")
    made = [
        mutants.Mutant("fits", "a.py", "x = 1", "x = 2", ["test_a.py"]),
        mutants.Mutant("twice", "a.py", "= 1", "= 2", ["test_a.py"]),
        mutants.Mutant("gone", "b.py", "x = 1", "x = 2", ["test_a.py"]),
        mutants.Mutant("same", "a.py", "x = 1", "x = 1", ["test_a.py"]),
        mutants.Mutant("untested", "a.py", "x = 1", "x = 2", ["test_b.py"]),
        mutants.Mutant("fits", "a.py", "x = 1", "x = 3", []),
    ]
    assert mutants.problems_of(made, tmp_path) == [
        "fits: stands 2 times",
        "twice: '= 1' stands 2 times in a.py, not once",
        "gone: 'x = 1' stands 0 times in b.py, not once",
        "same: changes nothing",
        "untested: no file test_b.py",
        "fits: names no test",
    ]
