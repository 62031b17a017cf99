"""The Python blocks of README and docs run as written, and print what they say they print."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from alpha_clip import cli

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(^<!-- not run: .*? -->\n)?^```python\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", re.M | re.S)
BLOCKS = {page: BLOCK.findall(page.read_text(encoding="utf-8")) for page in PAGES}
RUN = [page for page in PAGES if any(not why for why, *_ in BLOCKS[page])]
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


def test_the_readme_has_a_command_with_output():
    assert COMMANDS


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"^  - .*: (\w[\w.-]*\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == [page.name for page in PAGES[1:]]
