"""The training objective, against its definition; in parts and in processes, against itself whole."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from distributed_run import Uneven, settings
from test_training import SIZE, Halves, config, tiny_model, words_to_ids
from torch import Tensor

from alpha_clip.model import ALPHA_MEAN, ALPHA_STD, CLIP
from alpha_clip.training import Sample, SecondText, TrainConfig, finetune
from alpha_clip.training.data import Item, collate
from alpha_clip.training.loss import (
    Labels,
    contrastive_sum,
    distillation_sum,
    hard_negatives_sum,
    same_image_pairs,
    same_image_sum,
    token_drift_sum,
)
from alpha_clip.training.objective import Objective
from alpha_clip.training.optim import make_optimizers


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def labels(
    text: list[int],
    picture: list[int] | None = None,
    whole: set[int] = frozenset(),
    other: list[int] | None = None,
    weight: list[float] | None = None,
) -> Labels:
    n = len(text)
    return Labels(
        torch.tensor(text),
        torch.tensor(other or text),
        torch.tensor(range(n) if picture is None else picture),
        torch.tensor(range(n) if picture is None else picture),
        torch.tensor([i in whole for i in range(n)]),
        torch.tensor(weight or [1.0] * n),
    )


def contrast(image: Tensor, text: Tensor, of: Labels, scale: float = 10.0) -> Tensor:
    return contrastive_sum(image, text, of, image, text, of, 0, torch.tensor(scale))


# --- contrast ---


def test_contrast_of_different_texts_is_clip_s():
    image, text, own = unit(6, 8), unit(6, 8, seed=1), torch.arange(6)
    logits = 10 * image @ text.T
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(contrast(image, text, labels([0, 1, 2, 3, 4, 5])) / 6, expected)


def test_what_is_no_negative_is_left_out_pair_by_pair():
    text_id, picture, whole = [0, 1, 0, 2, 1, 3, 4], [0, 0, 1, 1, 2, 3, 3], {1, 5}
    image, table = unit(7, 8), unit(5, 8, seed=1)
    text = table[text_id]
    total = 0.0
    for i in range(7):
        kept = [
            j
            for j in range(7)
            if j == i or (text_id[j] != text_id[i] and not (picture[i] == picture[j] and (i in whole or j in whole)))
        ]
        positive = 10 * image[i] @ text[i]
        to_texts = torch.stack([10 * image[i] @ text[j] for j in kept]).logsumexp(0)
        to_images = torch.stack([10 * image[j] @ text[i] for j in kept]).logsumexp(0)
        total += (to_texts - positive + to_images - positive) / 2
    torch.testing.assert_close(contrast(image, text, labels(text_id, picture, whole)), total)


def test_two_texts_of_a_sample_share_its_loss_and_leave_each_other_out():
    """Rows: sample 0 is graded, half "a", half its picture's caption; sample 1 is "a" too; 2 and 3 are other things."""
    image, table = unit(4, 8), unit(4, 8, seed=1)
    of = labels([0, 1, 0, 2, 3], [0, 0, 1, 1, 0], {1}, other=[1, 0, 0, 2, 3], weight=[0.6, 0.4, 1, 1, 1])
    v, t = image[[0, 0, 1, 2, 3]], table[[0, 1, 0, 2, 3]]
    # For each row, the rows whose text is a negative of its image, and whose image is one of its text.
    texts = {0: [3, 4], 1: [3], 2: [1, 3, 4], 3: [0, 1, 2, 4], 4: [0, 2, 3]}
    images = {0: [3, 4], 1: [2, 3], 2: [3, 4], 3: [0, 1, 2, 4], 4: [0, 2, 3]}
    total = 0.0
    for p in range(5):
        for against, of_it, negatives in ((t, v[p], texts[p]), (v, t[p], images[p])):
            own = 10 * of_it @ against[p]
            others = [10 * of_it @ against[q] + of.weight[q].log() for q in negatives]
            total += of.weight[p] * (torch.stack([own, *others]).logsumexp(0) - own) / 2
    torch.testing.assert_close(contrast(v, t, of), total)


@pytest.mark.parametrize("b", [0.0, 1.0])
def test_a_graded_sample_ends_as_its_region_and_as_the_whole_picture(b):
    """At the ends of the range a sample of two texts has the loss of one that has that text alone."""
    v, t = unit(3, 8), unit(4, 8, seed=1)
    two = labels([0, 1, 2, 3], [0, 0, 1, 1], {1}, other=[1, 0, 2, 3], weight=[1 - b, b, 1, 1])
    one = labels([int(b), 2, 3], [0, 1, 1], {0} if b else set())
    expected = contrast(v, t[[int(b), 2, 3]], one)
    torch.testing.assert_close(contrast(v[[0, 0, 1, 2]], t, two), expected)


def test_rows_of_a_part_against_all_sum_to_the_whole():
    image, text, every = unit(6, 8), unit(6, 8, seed=1), labels([0, 1, 2, 0, 3, 4], [0, 0, 1, 1, 2, 2], {1})
    parts = []
    for rows in (slice(0, 2), slice(2, 6)):
        own = every.map(lambda x, rows=rows: x[rows])
        parts.append(contrastive_sum(image[rows], text[rows], own, image, text, every, rows.start, torch.tensor(10.0)))
    torch.testing.assert_close(sum(parts), contrast(image, text, every))


# --- the regions of one picture ---

LEFT, RIGHT, BOTH = [1.0, 1, 0, 0, 0, 0], [0.0, 0, 0, 1, 1, 0], [1.0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"picture": [0, 1]}, False),
        ({"text": [5, 5]}, False),
        ({"whole": {1}}, False),
        ({"weight": [1.0, 0.5]}, False),  # it shows something else too
        ({"masks": [LEFT, LEFT]}, False),
        ({"masks": [LEFT, BOTH]}, False),  # one within the other
        ({"masks": [LEFT, [0.0, 0.1, 0, 1, 1, 1]]}, True),  # they hardly touch
        ({"masks": [LEFT, [0.0, 1, 1, 1, 1, 1]]}, False),  # IoU 1/6
    ],
)
def test_two_regions_are_told_apart_where_they_are_beyond_doubt(changes, expected):
    given = {"text": [0, 1], "picture": [0, 0], "masks": [LEFT, RIGHT]} | changes
    masks = torch.tensor(given.pop("masks"))
    pairs = same_image_pairs(unit(2, 8), labels(**given), masks)
    assert pairs.tolist() == [[False, expected], [expected, False]]


def test_phrases_that_mean_the_same_are_not_told_apart():
    text = torch.stack([unit(8), F.normalize(unit(8) + 0.1 * unit(8, seed=1), dim=0)])
    assert not same_image_pairs(text, labels([0, 1], [0, 0]), torch.tensor([LEFT, RIGHT])).any()


def test_same_image_sum_is_its_definition():
    image, text = unit(5, 8), unit(5, 8, seed=1)
    pairs = torch.zeros(5, 5, dtype=torch.bool)
    for i, j in ((0, 1), (0, 2), (3, 4)):
        pairs[i, j] = pairs[j, i] = True
    expected = 0.0
    for i in range(5):
        among = [i, *pairs[i].nonzero()[:, 0].tolist()]
        over_texts = torch.stack([10 * image[i] @ text[j] for j in among])
        over_masks = torch.stack([10 * image[j] @ text[i] for j in among])
        expected += (over_texts.logsumexp(0) - over_texts[0] + over_masks.logsumexp(0) - over_masks[0]) / 2
    torch.testing.assert_close(same_image_sum(image, text, pairs, torch.tensor(10.0)), expected)
    nothing = same_image_sum(image.requires_grad_(), text, torch.zeros_like(pairs), torch.tensor(10.0))
    nothing.backward()
    assert nothing == 0 and not image.grad.any()


def test_hard_negatives_sum_is_its_definition():
    image, texts, own = unit(3, 8), unit(5, 8, seed=1), torch.tensor([0, 3, 2])
    hard_negatives = torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]], dtype=torch.bool)
    expected = 0.0
    for i in (0, 2):
        logits = 10 * texts[hard_negatives[i]] @ image[i]
        expected += logits.logsumexp(0) - 10 * texts[own[i]] @ image[i]
    torch.testing.assert_close(hard_negatives_sum(image, texts, own, hard_negatives, torch.tensor(10.0)), expected)
    assert hard_negatives_sum(image, texts, own, torch.zeros_like(hard_negatives), torch.tensor(10.0)) == 0


@pytest.mark.parametrize("alpha", [True, False])
def test_the_same_image_loss_falls_only_with_alpha(alpha, tmp_path):
    """Without alpha both masks of a picture have the same feature, and the second half stays at log 2."""
    tune = config(steps=80, batch_size=16, alpha_lr=1e-2 if alpha else 0.0, same_image=1.0)
    finetune(tiny_model(), Halves(), tune, tmp_path, tokenize=words_to_ids)
    curve = [json.loads(line)["same_image"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    if alpha:
        assert curve[-1] < 0.2 < 0.6 < curve[0]
    else:
        assert min(curve) >= math.log(2) / 2 - 1e-3


# --- distillation ---


def test_distillation_and_token_drift():
    a, b = unit(4, 8), unit(4, 8, seed=1)
    torch.testing.assert_close(distillation_sum(a, b), (1 - F.cosine_similarity(a, b)).sum())
    assert float(distillation_sum(a, a)) == pytest.approx(0, abs=1e-6)
    z, z0 = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    expected = sum((x - y).norm() ** 2 / y.norm() ** 2 for x, y in zip(z, z0, strict=True))
    torch.testing.assert_close(token_drift_sum(z, z0), expected)


# --- parts ---


def gradients(tune: TrainConfig, cut: list[int]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of one step on the first 12 pictures, in parts that end at `cut`."""
    model = moved_model()
    make_optimizers(model, tune)
    objective = Objective(model, tune, words_to_ids)
    with torch.no_grad():  # or nothing would have drifted
        model.visual.positional_embedding += 0.1 * torch.randn_like(model.visual.positional_embedding)
    items = [Item(i, i, str(i), Uneven()[i]) for i in range(12)]
    bounds = [0, *cut, 12]
    terms = objective.backward([collate(items[i:j]) for i, j in itertools.pairwise(bounds)])
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, terms


def moved_model() -> CLIP:
    """Alpha weights that are not zero."""
    model = tiny_model()
    torch.nn.init.normal_(model.visual.conv1_alpha.weight, std=0.1)
    return model


@pytest.mark.parametrize("cut", [[6], [1, 5, 11]])
@pytest.mark.parametrize("train_text", [True, False])
def test_gradients_in_parts_are_those_of_the_whole_batch(cut, train_text):
    tune = replace(settings(), train_text=train_text, same_image=0.7)
    whole, terms = gradients(tune, [])
    parts, terms_in_parts = gradients(tune, cut)
    assert terms.keys() == {"loss", "contrast", "same_image", "hard_negatives", "distill"}
    assert terms == pytest.approx(terms_in_parts, abs=1e-5)
    assert all(value > 0 for value in terms.values())
    assert whole.keys() == parts.keys() and ("logit_scale" in whole) == train_text
    for name, gradient in whole.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-5)


def test_the_loss_is_the_sum_of_its_terms():
    _, terms = gradients(replace(settings(), same_image=0.7), [])
    assert terms["loss"] == pytest.approx(
        terms["contrast"] + 0.7 * (terms["same_image"] + terms["hard_negatives"]) + terms["distill"]
    )
    _, alone = gradients(replace(settings(), same_image=0.0, distill=0.0, distill_tokens=0.0), [])
    assert alone == {"loss": pytest.approx(terms["contrast"]), "contrast": pytest.approx(terms["contrast"])}


# --- processes ---


def torchrun(processes: int, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = Path(__file__).with_name("distributed_run.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *launch, str(script), str(out), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of one process, outside of torchrun."""
    out = tmp_path_factory.mktemp("alone")
    finetune(tiny_model(), Uneven(30), settings(), out, validation=Uneven(12), tokenize=words_to_ids)
    return out


def assert_same_run(out: Path, expected: Path) -> None:
    curves = [[json.loads(line) for line in (o / "metrics.jsonl").read_text().splitlines()] for o in (out, expected)]
    for ours, theirs in zip(*curves, strict=True):
        for line in (ours, theirs):
            del line["samples_per_second"]
        assert ours == pytest.approx(theirs, abs=1e-5)
    ours, theirs = (torch.load(o / "last.pt", weights_only=True)["model"] for o in (out, expected))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=2e-4, msg=name)  # Adam divides by ~0


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "accumulate"), [(2, 1), (4, 2), (2, 4)])
def test_many_processes_are_as_one(alone, tmp_path, processes, accumulate):
    done = torchrun(processes, tmp_path, "--accumulate", str(accumulate))
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
def test_pictures_that_come_twice_in_a_batch_are_the_same_for_many_processes(tmp_path):
    done = torchrun(2, tmp_path / "two", "--pictures", "5")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "one"
    finetune(tiny_model(), Uneven(5), settings(), out, validation=Uneven(12), tokenize=words_to_ids)
    assert_same_run(tmp_path / "two", out)


@pytest.mark.slow
def test_a_dead_process_ends_the_job_with_its_name(tmp_path):
    done = torchrun(2, tmp_path, "--dies")
    assert done.returncode != 0
    assert "exitcode  : 9" in done.stderr and "rank      : 1" in done.stderr
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path):
    done = torchrun(2, tmp_path, "--stop-after", "3")
    assert done.returncode != 0 and "stopped by a signal after step 3" in done.stderr, done.stderr
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 3
    finetune(tiny_model(), Uneven(30), settings(), tmp_path, validation=Uneven(12), tokenize=words_to_ids)
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["step", "save"])
def test_a_run_that_was_killed_ends_bit_equal(alone, tmp_path, moment):
    command = [sys.executable, str(Path(__file__).with_name("distributed_run.py")), str(tmp_path), "--killed", moment]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 2  # the second save, of step 4, was not to be
    finetune(tiny_model(), Uneven(30), settings(), tmp_path, validation=Uneven(12), tokenize=words_to_ids)
    ours, theirs = (torch.load(out / "last.pt", weights_only=True)["model"] for out in (tmp_path, alone))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- masks of several values ---

TEXTS = ["red", "green", "day", "night"]


def text_ids(texts) -> Tensor:
    return torch.tensor([[5, TEXTS.index(text) + 1, 7] for text in texts])


class Graded:
    """A red and a green half, by day or by night; each is a sample, with more or less of what is around it."""

    def __init__(self, b: float | None = None) -> None:
        self.b = b

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> list[Sample]:
        rng = np.random.default_rng(index)
        first, night = rng.integers(2, size=2).tolist()
        image, left = torch.zeros(3, SIZE, SIZE), torch.zeros(1, SIZE, SIZE)
        image[2] = 1 - night
        image[first, :, : SIZE // 2] = image[1 - first, :, SIZE // 2 :] = left[..., : SIZE // 2] = 1
        samples = []
        for colour, mask in ((first, left), (1 - first, 1 - left)):
            b = rng.random() if self.b is None else self.b
            caption = SecondText(TEXTS[2 + night], b, whole=True)
            samples.append(Sample(image, TEXTS[colour], (mask.clamp_min(b) - ALPHA_MEAN) / ALPHA_STD, caption))
        return samples


@pytest.mark.parametrize("trained_on", [None, 0.0])
@torch.no_grad()
def test_training_on_graded_masks_makes_both_texts_hold_in_between(trained_on):
    """Each among the texts that do not hold; after training on plain masks, the captions stay a matter of chance."""
    model = tiny_model()
    tune = config(steps=80, batch_size=16, lr=1e-3, alpha_lr=1e-2, train_text=True, same_image=0.0)
    with torch.enable_grad():
        finetune(model, Graded(trained_on), tune, tokenize=text_ids)
    text = F.normalize(model.encode_text(text_ids(TEXTS)), dim=-1)

    def right(b: float, whole: bool) -> float:
        samples = [sample for i in range(1000, 1040) for sample in Graded(b)[i]]
        image, alpha = torch.stack([s.image for s in samples]), torch.stack([s.alpha for s in samples])
        cosines = F.normalize(model.encode_image(image, alpha), dim=-1) @ text.T
        own = torch.tensor([[TEXTS.index(s.text), TEXTS.index(s.second.text)] for s in samples])
        cosines.scatter_(1, own[:, 0 if whole else 1, None], -1)  # what holds too is no mistake
        return float((cosines.argmax(dim=1) == own[:, int(whole)]).float().mean())

    assert right(0.0, whole=False) > 0.95
    captions = [right(b, whole=True) for b in (0.5, 1.0)]
    if trained_on is None:
        assert min(*captions, right(0.5, whole=False)) > 0.95
    else:
        assert max(captions) < 0.8
