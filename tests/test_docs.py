"""The documentation is run: code blocks, docstring examples, the options of commands, links and named files."""

from __future__ import annotations

import doctest
import functools
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastdiff
from fastdiff.data import ICONS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {
    "fastdiff": ("-c", "import sys; from fastdiff.cli import main; sys.exit(main())"),
    "bench/run.py": (str(ROOT / "bench" / "run.py"),),
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and in one namespace, as a reader would paste them."""
    code = blocks(page, "python")
    if not code:
        pytest.skip("no Python in this page")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, object] = {}
    for number, block in enumerate(code, 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


def docstring_examples() -> list[doctest.DocTest]:
    # Examples leave out the imports of public names, and of a folder with a model.
    names = {"fastdiff": fastdiff, "torch": torch, "folder": ICONS}
    for package in (fastdiff.nn, fastdiff.models, fastdiff.sampling, fastdiff.training, fastdiff.diffusion):
        names |= {name: getattr(package, name) for name in package.__all__}
    modules = [m.name for m in pkgutil.walk_packages(fastdiff.__path__, "fastdiff.")]
    modules = [name for name in modules if not name.endswith(("._C", ".__main__"))]
    found = []
    for module in map(importlib.import_module, ["fastdiff", *modules]):
        found += [test for test in doctest.DocTestFinder().find(module, extraglobs=names) if test.examples]
    return found


EXAMPLES = docstring_examples()


def test_there_are_docstring_examples() -> None:
    assert "fastdiff.nn.group_norm_silu.GroupNormSiLU" in [example.name for example in EXAMPLES]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_docstring_example_runs(example: doctest.DocTest) -> None:
    output: list[str] = []
    result = doctest.DocTestRunner().run(example, out=output.append, clear_globs=False)
    assert result.attempted and not result.failed, "".join(output)


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Of each call of our own commands in a shell block: the program, and its arguments."""
    for page in PAGES:
        for block in blocks(page, "bash"):
            for command in re.split(r"&&|\n", block):
                words = shlex.split(command, comments=True)
                for program in COMMANDS:
                    if words[:1] == [program] or words[:2] == ["python", program]:
                        yield program, words[words.index(program) + 1 :]


@functools.cache
def help_text(program: str, subcommand: str) -> str:
    command = [sys.executable, *COMMANDS[program], subcommand, "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(("program", "arguments"), sorted({(p, tuple(a)) for p, a in command_lines()}), ids=str)
def test_options_of_documented_commands_exist(program: str, arguments: tuple[str, ...]) -> None:
    subcommand, *options = arguments
    known = help_text(program, subcommand)
    for option in options:
        if option.startswith("-"):
            assert re.search(rf"(?<!\S){option}(?![\w-])", known), f"{program} {subcommand} has no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    named = re.findall(r"`((?:\.ci|bench|cmake|csrc|docs|examples|fastdiff|tests)/[\w./-]*)`", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing
