"""What the README shows is what happens."""

import doctest
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import xpconv

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", [b for b in blocks("python") if "train_digits" not in b])
def test_the_examples_of_the_readme_run(block, capsys):
    for library in ("torch", "jax"):
        if f"import {library}" in block and find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    exec(compile(block, "README.md", "exec"), {})
    for shown in re.findall(r"print\(.*\)\s+# (\(.*\))$", block, flags=re.MULTILINE):
        assert shown in capsys.readouterr().out


def test_the_first_screen_has_ten_lines_that_run_and_four_numbers():
    assert len(blocks("python")[0].strip().splitlines()) == 10
    assert len(blocks("pycon")) == 2


@pytest.mark.parametrize("block", blocks("pycon"))
def test_the_sessions_of_the_readme_print_what_they_show(block):
    examples = doctest.DocTestParser().get_doctest(block, {"xpconv": xpconv, "np": np}, "README", None, 0)
    assert examples.examples
    report = []
    doctest.DocTestRunner().run(examples, out=report.append)
    assert not report, "".join(report)


def test_each_of_the_two_commands_is_one_line():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert commands[0].endswith("xpconv demo")
    assert "pytest" in commands[1]


def test_what_the_readme_names_exists():
    for name in re.findall(r"`(xpconv\.[\w.]+)\(", README):
        thing = xpconv
        for part in name.split(".")[1:]:
            thing = getattr(thing, part)
    for name in re.findall(r"\[[^\]]+\]\(([\w./]+)\)", README):
        assert (ROOT / name).exists(), name
