"""The README's Python blocks run as written, and print what it says they print."""

import contextlib
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from alpha_clip import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^```\n(alpha-clip .*?)^```\n\n```\n(.*?)^```\n", README, re.M | re.S)
BLOCKS = re.findall(r"^```python\n(.*?)^```\n(?:\n```\n(.*?)^```\n)?", README, re.M | re.S)
NEEDS_NETWORK: set[str] = set()  # first lines of blocks that fetch weights


def numbers(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+\.?\d*", text)]


@pytest.mark.parametrize(("code", "printed"), BLOCKS, ids=[code.splitlines()[0] for code, _ in BLOCKS])
def test_readme_block(code, printed, tmp_path, monkeypatch):
    if code.splitlines()[0] in NEEDS_NETWORK:
        pytest.skip("needs the network")
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert re.sub(r"[\d.]+", "", out.getvalue()).split() == re.sub(r"[\d.]+", "", printed).split()
    np.testing.assert_allclose(numbers(out.getvalue()), numbers(printed), atol=0.03)  # processors differ a little


def test_readme_has_blocks_with_output():
    assert len(BLOCKS) >= 2
    assert any(printed for _, printed in BLOCKS)


@pytest.mark.parametrize(("line", "printed"), COMMANDS)
def test_readme_command(line, printed, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert cli.main(shlex.split(line)[1:]) == 0
    out = capsys.readouterr().out
    assert re.sub(r"[\d.]+", "", out).split() == re.sub(r"[\d.]+", "", printed).split()
    np.testing.assert_allclose(numbers(out), numbers(printed), atol=3)


def test_readme_has_a_command_with_output():
    assert COMMANDS
