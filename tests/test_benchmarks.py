"""The benchmark's own arithmetic: turns, medians, ratios, FLOPs, exponents, and that disagreement stops it."""

import sys

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from alpha_clip.model import VisionTransformer
from benchmarks import lines, peers, roof, scaling, tables, timing


def test_ways_take_turns_and_warm_up_is_not_counted():
    calls = []
    times = timing.in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warm_up=1)
    assert calls == ["a", "b"] * 4
    assert [len(times[name].wall) for name in "ab"] == [len(times[name].cpu) for name in "ab"] == [3, 3]


def test_processor_time_counts_children():
    import subprocess

    before = timing.own_cpu()
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert timing.own_cpu() > before + 0.01


def line(**times):
    return tables.Line("a line", {name: timing.Times(*both) for name, both in times.items()}, "ours", 2)


def test_ratios_are_of_medians_to_the_fastest_other():
    of = line(ours=([1, 9, 2], [4, 4, 4]), slow=([8, 8, 8], [6, 6, 6]), fast=([3, 3, 3], [8, 8, 8]))
    assert of.against_fastest() == (1.5, 1.5)
    assert "| slow | 8000, 8000-8000 | 4.00 | 6000 | 1.50 |" in tables.table(of)
    assert tables.summary([of]).splitlines()[-1] == "| a line | 1.50x | 1.50x | 2x |"


@torch.no_grad()
def test_flops_are_those_that_torch_counts():
    tower = VisionTransformer(32, 8, 128, 3, 2, 64)
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # it cannot count the CPU's own kernel
        tower.tokens(torch.randn(2, 3, 32, 32))
    convolutions = 2 * 2 * 16 * 3 * 64 * 128 + 2 * 64 * 128  # of RGB, and of one patch of alpha
    assert counter.get_total_flops() == 2 * roof.tower_flops(17, 128, 3) + convolutions


def test_the_roof_takes_as_long_as_the_flops_at_the_best_rate(monkeypatch):
    monkeypatch.setattr(roof, "best_rate", lambda rows, width, dtype, packed: 200.0 if packed else 100.0)
    monkeypatch.setattr(roof, "can_pack", lambda: True)
    assert roof.seconds(1000, 8, 64, torch.float32) == {"plain": 10, "prepacked": 5}


def test_a_rate_is_measured_at_all_shapes():
    kinds = [False, True] if roof.can_pack() else [False]
    assert all(roof.best_rate(4, 32, torch.float32, packed) > 0 for packed in kinds)


def test_exponents():
    sizes = [1, 2, 4, 8, 16]
    assert scaling.exponent(sizes, [100, 3, *(5 * n**1.5 for n in sizes[2:])]) == pytest.approx(1.5)


def test_disagreement_is_named():
    first = torch.eye(3)
    peers.assert_equal([first, first + 1e-7], ["ours", "theirs"], 1e-5)
    with pytest.raises(AssertionError, match="theirs differs from ours"):
        peers.assert_equal([first, first + 1e-3], ["ours", "theirs"], 1e-5)
    with pytest.raises(AssertionError, match=r"theirs gives \(2, 3\), ours \(3, 3\)"):
        peers.assert_equal([first, first[:2]], ["ours", "theirs"], 1e-5)


def test_a_missing_peer_ends_it_with_the_remedy(monkeypatch):
    monkeypatch.setattr(peers, "PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(SystemExit, match=r'not installed: no_such_package. pip install -e "\.\[bench\]"'):
        peers.require()


def test_ids_are_compared_up_to_the_end():
    ids = torch.tensor([[5, 3, 9, 9, 9], [5, 9, 0, 0, 0]])
    assert lines.until_the_end(ids).tolist() == [[5, 3, 9, 0, 0], [5, 9, 0, 0, 0]]


def test_the_sentences_are_all_names_in_all_templates():
    pytest.importorskip("open_clip", reason="pip install -e '.[test]'")
    assert len(lines.NAMES) == len(set(lines.NAMES)) == 20
    made = lines.sentences(lines.NAMES)
    assert len(set(made)) == 1600
    assert all("cat" in sentence for sentence in made[:80]) and "traffic light" in made[80]
