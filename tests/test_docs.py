"""The Python blocks of README and docs run as written, and print what they say they print."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from alpha_clip import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(^<!-- not run: .*? -->\n)?^```python\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", re.M | re.S)
BLOCKS = {page: BLOCK.findall(page.read_text(encoding="utf-8")) for page in PAGES}
RUN = [page for page in PAGES if any(not why for why, *_ in BLOCKS[page])]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```\n", re.M | re.S)
LINE = re.compile(r"^(?:\w+=\w+ )?((?:python|torchrun|alpha-clip) .*)$", re.M)
LINES = sorted(
    {
        line
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
        for _, block in FENCE.findall(page.read_text(encoding="utf-8").replace("\\\n", " "))
        for line in LINE.findall(block)
    }
)
COMMANDS = re.findall(r"^```\n(alpha-clip .*?)^```\n\n```\n(.*?)^```\n", PAGES[0].read_text(), re.M | re.S)


def compare(out: str, printed: str, tolerance: float) -> None:
    """Words alike, numbers nearly: processors differ a little."""
    assert re.sub(r"[\d.]+", "", out).split() == re.sub(r"[\d.]+", "", printed).split()
    numbers = [[float(n) for n in re.findall(r"-?\d+\.?\d*", text)] for text in (out, printed)]
    np.testing.assert_allclose(*numbers, atol=tolerance)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for not_run, code, printed in BLOCKS[page]:
        if not not_run:
            out = io.StringIO()
            try:
                with contextlib.redirect_stdout(out):
                    exec(compile(code, page.name, "exec"), names)
            except ImportError as error:  # of an extra; it says what to install
                pytest.skip(str(error))
            compare(out.getvalue(), printed, 0.03)


def test_there_are_blocks_with_output():
    assert {"README.md", "index.md", "masks.md", "methods.md", "coming-from.md"} <= {page.name for page in RUN}
    assert sum(bool(printed) for page in RUN for _, _, printed in BLOCKS[page]) >= 5


@pytest.mark.parametrize(("line", "printed"), COMMANDS)
def test_the_commands_of_the_readme_print_what_it_says(line, printed, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main(shlex.split(line)[1:]) == 0
    compare(capsys.readouterr().out, printed, 3)


class Understood(BaseException):
    """A program has read its arguments."""


@pytest.mark.parametrize("line", LINES)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_commands_of_the_docs_are_understood(line, monkeypatch):
    """By the program itself: its options, their kinds and choices. What it then does, other tests see."""
    parse = argparse.ArgumentParser.parse_args

    def parsed(*args):
        parse(*args)
        raise Understood

    words = shlex.split(re.sub(r"[\[\]]", "", line), comments=True)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.chdir(ROOT)
    before = set(sys.modules)
    try:
        with pytest.raises(Understood):
            run_program(words, monkeypatch)
    except ModuleNotFoundError as error:
        pytest.skip(f"pip install {error.name}")
    finally:
        for name in set(sys.modules) - before:  # those of examples have short names
            if "examples" in (getattr(sys.modules[name], "__file__", None) or ""):
                del sys.modules[name]


def run_program(words: list[str], monkeypatch) -> None:
    if words[0] == "alpha-clip":
        cli.main(words[1:])
    elif "-m" in words:
        module, *arguments = words[words.index("-m") + 1 :]
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        _, file, *arguments = words
        monkeypatch.setattr(sys, "argv", [file, *arguments])
        monkeypatch.syspath_prepend(str((ROOT / file).parent))
        runpy.run_path(file, run_name="__main__")


def test_the_docs_have_commands_of_all_programs():
    programs = {line.partition(" -m alpha_clip.")[2].partition(" ")[0] for line in LINES}
    assert programs >= {"demo", "evaluation", "onnx", "pipeline", "training", "training.check", "weights"}


def test_a_block_that_is_not_run_needs_a_network_or_a_gpu():
    reasons = [why for page in PAGES for why, *_ in BLOCKS[page] if why]
    assert reasons and all(re.search("network|GPU", why) for why in reasons), reasons


def test_every_python_block_says_so():
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            assert language or not re.search(r"^(import|from) \w|^[\w.]+\(.*\)$", block, re.M), block


def test_the_readme_has_a_command_with_output():
    assert COMMANDS


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"^  - .*: (\w[\w.-]*\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == [page.name for page in PAGES[1:]]
