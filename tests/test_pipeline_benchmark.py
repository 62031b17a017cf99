"""The pipeline's benchmark: its lines, its plan and its memory by hand, and that other bytes stop it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXTRA = 'pip install "alpha-clip[pipeline]"'
for needed in ("pycocotools", "pyarrow"):
    pytest.importorskip(needed, reason=EXTRA)
pipeline = pytest.importorskip("benchmarks.pipeline", reason=EXTRA)
Plan = pipeline.Plan

ROOT = Path(__file__).parent.parent


def test_start_and_slope_of_a_line():
    assert pipeline.line_through((100, 7.0), (300, 11.0)) == pytest.approx((5.0, 0.02))


def test_a_plan_by_hand():
    plan = Plan(cpu=0.1, gpu_rate=10, price=2, pairs=2, shard=100, start=20)
    assert plan.rate() == pytest.approx(5)  # 0.1 s of the processor, then 0.1 s of the GPU
    # 2000 pairs are 1000 pictures, 10 shards of 20 s each; 8 GPUs do 8 of them, and then 2.
    assert plan.hours(2000, gpus=1) == pytest.approx((20 + 200) / 3600)
    assert plan.hours(2000, gpus=8) == pytest.approx((20 + 40) / 3600)
    assert plan.hours(2000, gpus=64) == pytest.approx((20 + 20) / 3600)
    assert plan.cost(2000, gpus=8) == pytest.approx(60 / 3600 * 8 * 2)


def test_workers_that_share_a_gpu_take_turns_at_it():
    two, three = (Plan(cpu=0.1, gpu_rate=10, price=2, workers=workers) for workers in (2, 3))
    assert two.rate() == pytest.approx(5)  # one is at the GPU while the other reads
    assert three.rate() == pytest.approx(10 / 3)


def test_the_plans_table_is_marked_as_estimates():
    lines = pipeline.planned([Plan(0.01, 5, 3, shard=10_000), Plan(0.01, 5, 3, shard=1000)]).splitlines()
    assert lines[0] == "| GPUs | pictures in a shard | hours, estimated | cost, estimated |"
    hours = Plan(0.01, 5, 3, shard=1000).hours(1e6, 64)
    assert lines[-6] == f"| 64 | 1000 | {hours:.2f} | {hours * 64 * 3:.0f} |"
    assert lines[-4].startswith("Estimates, for a million pairs") and lines[-2].startswith("Assumed: 5 pictures/s")


def test_memory_counts_what_a_process_has_started():
    before = pipeline.held(os.getpid())
    script = "x = bytes(range(256)) * 2**18; print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with_it, alone = pipeline.held(os.getpid()), pipeline.held(process.pid)
        process.communicate(b"\n")
    assert alone > 2**26
    assert with_it - before > 2**26


def test_other_bytes_stop_it(tmp_path):
    def writes(text: str):
        return lambda of, out: (out / "file").write_text(text)

    pipeline.do(writes("a"), [Path("0.tar")], tmp_path)
    pipeline.do(writes("a"), [Path("0.tar")], tmp_path)
    with pytest.raises(AssertionError, match="the bytes differ from those of the plain loop"):
        pipeline.do(writes("b"), [Path("0.tar")], tmp_path)


@pytest.mark.slow
def test_the_quick_run_prints_its_tables():
    command = [sys.executable, "-m", "benchmarks.pipeline", "--quick", "--ways", "plain loop", "2 processes"]
    found = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )
    assert found.returncode == 0
    assert re.search(r"^\| plain loop \| .* \|  \| \d+ \| \d+ \|$", found.stdout, re.M)
    assert "| MiB, 8 samples | MiB, 24 samples |\n" in found.stdout
    assert "4 samples in a shard. All ways left the same bytes." in found.stdout
    for row in ("segmenting, colour", "writing", "embedding, tiny", "64 | 1000"):
        assert f"| {row}" in found.stdout
