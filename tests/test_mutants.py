"""The list of mutants (`python tests/mutants`, docs/mutants.md) fits the code that it breaks and the tests it names."""
from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = runpy.run_path(str(ROOT / "tests" / "mutants" / "breaks.py"))["MUTANTS"]


@cache
def parsed(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def is_a_test(name: str) -> bool:
    """tests/test_x.py::TestY::test_z[parameters], of which the parameters are pytest's affair."""
    file, *path = name.partition("[")[0].split("::")
    node: ast.AST = parsed(file)
    for part in path:
        found = [child for child in ast.iter_child_nodes(node)
                 if isinstance(child, (ast.ClassDef, ast.FunctionDef)) and child.name == part]
        if not found:
            return False
        node = found[0]
    return isinstance(node, ast.FunctionDef)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code(mutant):
    """What it replaces is there, once, and the tests that must notice exist."""
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert mutant.tests
    for name in mutant.tests:
        assert is_a_test(name), name


def test_there_are_enough_of_them_and_no_two_are_one():
    assert len(MUTANTS) >= 35
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


def test_the_document_has_the_same_ones():
    rows = re.findall(r"^\| ([\w-]+) \| (.*) \(`(.*)`\) \| (.*) \|$", (ROOT / "docs" / "mutants.md").read_text(),
                      re.MULTILINE)
    told = [(name, breaks, f"epollkit/{file}", tuple(f"tests/{test}" for test in re.findall(r"`(.*?)`", tests)))
            for name, breaks, file, tests in rows]
    assert told == [(mutant.name, mutant.breaks, mutant.file, mutant.tests) for mutant in MUTANTS]


def mutants(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "tests" / "mutants"), *arguments], capture_output=True, text=True,
                          timeout=60, check=False)


def test_the_list():
    done = mutants("--list")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [mutant.name for mutant in MUTANTS]


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["sent-twice", "no-such-thing"], "there is no mutant no-such-thing; --list says which there are"),
    (["--jobs", "0"], "--jobs is a number from 1 on"),
    (["sent-twice", "--write", "x"], "--write is for all of them"),
])
def test_wrong_arguments(arguments, sentence):
    done = mutants(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
