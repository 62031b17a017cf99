"""The training code: order, views, masks and loop."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open

import alpha_clip
from alpha_clip import masks
from alpha_clip.model import ALPHA_MEAN, ALPHA_STD, CLIP, FOREGROUND, convert_weights
from alpha_clip.scenes import draw_scene
from alpha_clip.training import PRESETS, Picture, Region, Sample, SecondText, TrainConfig, finetune
from alpha_clip.training.data import Item, Parts, Positions, batches, collate
from alpha_clip.training.optim import lr_at, make_optimizers
from alpha_clip.training.pictures import BadSample
from alpha_clip.training.records import UnreadableData
from alpha_clip.training.state import Log
from alpha_clip.training.views import _warn_of_no_caption, views
from alpha_clip.transforms import Preprocess, mask_box

SIZE = 16
WORDS = ["red", "green", "blue"]


def tiny_model(seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    return CLIP(32, SIZE, 2, 64, 8, 8, 8, 64, 1, 1)


def words_to_ids(texts):
    """Start 5, one id for the word, end 7."""
    return torch.tensor([[5, WORDS.index(t) + 1, 7] for t in texts])


class Halves:
    """Two colours side by side: which one is meant, only the mask says."""

    def __init__(self, length: int = 512) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[Sample]:
        rng = np.random.default_rng(index)
        left, right = rng.permutation(3)[:2]
        image = torch.zeros(3, SIZE, SIZE)
        image[left, :, : SIZE // 2] = 1
        image[right, :, SIZE // 2 :] = 1
        mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
        mask[..., : SIZE // 2] = True
        return [
            Sample(image, WORDS[colour], (m.float() - ALPHA_MEAN) / ALPHA_STD)
            for colour, m in ((left, mask), (right, ~mask))
        ]


def config(**settings) -> TrainConfig:
    return TrainConfig(**({"steps": 4, "batch_size": 8, "workers": 0, "warmup": 2, "lr": 1e-3} | settings))


# ---- config


def test_config_refuses_a_warm_up_longer_than_the_run():
    with pytest.raises(ValueError, match=r"TrainConfig\.warmup is 11, expected 0 to 10, the steps in all"):
        TrainConfig(10, warmup=11)


@pytest.mark.parametrize(("steps", "peak"), [(50, 5), (1000, 100), (9000, 200)])
def test_the_warm_up_is_at_most_a_tenth_of_the_run_by_default(steps, peak):
    assert [lr_at(s, TrainConfig(steps)) for s in (peak - 1, peak)] == [1, 1] and lr_at(
        0, TrainConfig(steps)
    ) == 1 / peak


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate", "save_every", "evaluate_every"])
def test_config_refuses_zero(name):
    with pytest.raises(ValueError, match=rf"TrainConfig\.{name} is 0, expected at least 1"):
        TrainConfig(**({"steps": 1} | {name: 0}))


def test_config_refuses_an_unknown_optimizer():
    with pytest.raises(ValueError, match=r"TrainConfig\.optimizer is 'sgd', expected 'adamw' or 'muon'"):
        TrainConfig(1, optimizer="sgd")


def test_config_refuses_shares_above_one():
    with pytest.raises(ValueError, match=r"box \+ ellipse \+ jitter is 1\.3, expected shares of at most 1"):
        TrainConfig(1, box=0.5, ellipse=0.5)


def test_config_refuses_uneven_parts():
    with pytest.raises(ValueError, match=r"TrainConfig\.batch_size is 256, expected a multiple of accumulate, 3"):
        TrainConfig(1, accumulate=3)


def test_config_refuses_negative():
    with pytest.raises(ValueError, match=r"TrainConfig\.lr is -1, expected at least 0"):
        TrainConfig(1, lr=-1)


# ---- data


def test_positions_of_a_step_are_the_same_however_they_are_cut():
    settings = config(steps=3, batch_size=8)
    straight = list(Parts(settings, 0, 0, 1))
    assert straight == [[*range(s * 8, s * 8 + 8)] for s in range(3)]
    for world, parts in ((2, 1), (1, 4), (2, 2), (4, 2)):
        cut = replace(settings, accumulate=parts)
        ranks = [list(Parts(cut, 0, rank, world)) for rank in range(world)]
        assert all(len(rank) == 3 * parts for rank in ranks)
        for step in range(3):
            mine = [p for rank in ranks for part in rank[step * parts : (step + 1) * parts] for p in part]
            assert sorted(mine) == straight[step]
    assert [p[0] for p in Parts(settings, 0, 1, 2)] == [1, 9, 17]


@pytest.mark.parametrize("step", [0, 1, 3])
def test_positions_resume_where_they_stopped(step):
    settings = config(steps=3, batch_size=8, accumulate=2)
    parts = Parts(settings, step, 1, 2)
    assert list(parts) == list(Parts(settings, 0, 1, 2))[step * 2 :] and len(parts) == len(list(parts))


def test_a_batch_that_cannot_be_cut_evenly_is_refused():
    with pytest.raises(ValueError, match="batch_size is 8, expected a multiple of 6, 3 processes x 2 parts"):
        Parts(config(accumulate=2), 0, 0, 3)


class Numbers:
    """Item i is a sample whose text is i."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return Sample(torch.zeros(3, 8, 8), str(index))


def read(settings: TrainConfig, start: int, stop: int) -> list[int]:
    items = Positions(Numbers(), settings, Preprocess(8))
    return [int(items[p].samples[0].text) for p in range(start, stop)]


def test_every_item_comes_once_an_epoch_and_each_is_shuffled_anew():
    epochs = [read(config(seed=3), i, i + 10) for i in (0, 10, 20)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert read(config(seed=3), 7, 17) == epochs[0][7:] + epochs[1][:7]
    assert read(config(seed=4), 0, 10) != epochs[0]


class Drawing(Halves):
    """Draws from every global random state."""

    def __getitem__(self, index):
        noise = torch.rand(1).item() + np.random.rand() + random.random()  # noqa: NPY002
        return Sample(torch.full((3, SIZE, SIZE), noise), WORDS[index % 3])


def test_what_a_data_set_draws_follows_from_seed_epoch_and_item():
    items = [Positions(Drawing(10), config(seed=s), Preprocess(SIZE)) for s in (0, 0, 1)]
    torch.manual_seed(5)
    before = torch.rand(1), torch.manual_seed(5)
    (a, b, c), (again,) = ([x[3].samples[0].image[0, 0, 0] for x in items] for items in (items, items[:1]))
    assert a == b == again != c
    assert items[0][13].samples[0].image[0, 0, 0] != a  # the next epoch
    assert torch.rand(1) == before[0]  # nobody else's draws are touched


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_whose_data_set_draws_resumes_to_the_bit(workers, tmp_path):
    settings = config(steps=4, save_every=2, workers=workers)
    straight = finetune(tiny_model(), Drawing(20), settings, tokenize=words_to_ids)
    calls = itertools.count()

    def terminated_in_step_2(texts):
        if next(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        return words_to_ids(texts)

    with pytest.raises(SystemExit, match="stopped by a signal after step 2"):
        finetune(tiny_model(), Drawing(20), settings, tmp_path, tokenize=terminated_in_step_2)
    resumed = finetune(tiny_model(), Drawing(20), settings, tmp_path, tokenize=words_to_ids)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_collate_numbers_the_different_texts():
    image = torch.zeros(3, 4, 4)
    alpha = torch.full((1, 4, 4), -FOREGROUND)
    error = BadSample("k", "it is broken")
    cat = Sample(image, "A  cat", alpha)
    others = [Sample(image, "dog"), Sample(image, "a cat "), Sample(image, None)]
    items = [Item(7, 3, "x", [cat]), Item(9, 4, "y", (), error), Item(8, 5, "z", others)]
    batch = collate(items)
    assert batch.texts == ["a cat", "dog"]
    assert batch.text_index.tolist() == [0, 1, 0]
    assert batch.sample_index.tolist() == [0, 1, 2] and batch.first_text.tolist() == [0, 1, 0, -1]
    assert batch.labels.picture.tolist() == [7, 8, 8] and batch.labels.view_group.tolist() == [3, 5, 5]
    assert batch.keys == ["x", "z", "z", "z"]
    assert batch.whole.tolist() == [False, True, True, True] and batch.labels.whole.tolist() == [False, True, True]
    assert batch.labels.weight.tolist() == [1, 1, 1]
    assert batch.alpha[0].eq(-FOREGROUND).all()
    assert batch.alpha[1].eq(FOREGROUND).all()
    assert batch.mask[:2].tolist() == [[0] * 16, [1] * 16]
    assert batch.bad == [error] and not batch.hard_negatives.any()
    again = collate([Item(i, i, "", [Sample(image, text)]) for i, text in enumerate(("dog", "A CAT"))]).labels.text_id
    assert batch.labels.text_id.tolist() == batch.labels.other_id.tolist() == [again[1], again[0], again[1]]


def test_pictures_without_a_caption_are_whole_where_the_start_is_held_to():
    samples = seen(config(whole=0.2, distill=1.0, box=0.0, ellipse=0.0, jitter=0.0), picture(caption=None))
    assert np.mean([s.text is None for s in samples]) == pytest.approx(0.2, abs=0.04)
    assert all((s.text is None) == (s.alpha is None) for s in samples)


def test_whole_pictures_without_words_are_distilled_and_nothing_else(tmp_path):
    class Wordless(Halves):
        def __getitem__(self, index):
            samples = super().__getitem__(index)
            return [*samples, Sample(samples[0].image, None)]

    curves = []
    for data in (Halves(20), Wordless(20)):
        out = tmp_path / type(data).__name__
        finetune(tiny_model(), data, config(steps=3, lr=1e-2, distill=1.0), out, tokenize=words_to_ids)
        curves.append([json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()])
    without, with_them = curves
    assert with_them[0]["contrast"] == pytest.approx(without[0]["contrast"], abs=1e-6)  # before they part
    assert all(line["distill"] == 0 for line in without) and with_them[-1]["distill"] > 1e-4


def test_collate_gives_a_second_text_a_row_and_hard_negatives_their_texts():
    image, alpha = torch.zeros(3, 4, 4), torch.zeros(1, 4, 4)
    graded = Sample(image, "cat", alpha, SecondText("all of it", 0.25, whole=True))
    same = Sample(image, "dog", alpha, SecondText(" DOG", 0.25))
    union = Sample(image, "cat and dog", alpha, hard_negatives=("cat", "dog"))
    batch = collate([Item(4, 4, "", [graded, same]), Item(5, 5, "", [union])])
    assert batch.texts == ["cat", "all of it", "dog", "cat and dog"]
    assert batch.sample_index.tolist() == [0, 0, 1, 2] and batch.first_text.tolist() == [0, 2, 3]
    assert batch.text_index.tolist() == [0, 1, 2, 3]
    labels, ids = batch.labels, batch.labels.text_id.tolist()
    assert labels.other_id.tolist() == [ids[1], ids[0], ids[2], ids[3]]
    assert labels.weight.tolist() == [0.75, 0.25, 1, 1]
    assert labels.whole.tolist() == [False, True, False, False] and labels.picture.tolist() == [4, 4, 4, 5]
    assert batch.hard_negatives.tolist() == [[False] * 4, [False] * 4, [True, False, True, True]]


def test_a_part_of_which_nothing_can_be_read_is_empty():
    batch = collate([Item(0, 0, "k", (), BadSample("k", "it is broken"))], size=8)
    assert len(batch) == 0 and batch.image.shape == (0, 3, 8, 8) and len(batch.bad) == 1
    assert len(batch.labels.weight) == 0 and batch.hard_negatives.shape == (0, 0)


def test_a_bad_picture_alone_in_its_part_is_passed_over():
    whole, parts = (
        finetune(tiny_model(), Broken({7}), config(steps=25, accumulate=n), tokenize=words_to_ids) for n in (1, 8)
    )
    for a, b in zip(whole.visual.parameters(), parts.visual.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)


def test_a_batch_of_which_nothing_can_be_read_is_refused():
    found = r"nothing of a whole batch could be read: .*its picture is broken\. `python -m alpha_clip\.training\.check"
    with pytest.raises(UnreadableData, match=found):
        finetune(tiny_model(), Broken({*range(200)}), config(), tokenize=words_to_ids)


def test_gradients_that_are_not_finite_leave_the_checkpoint_as_it_was(tmp_path):
    model, steps = tiny_model(), itertools.count()
    model.visual.proj.register_hook(lambda g: g * float("nan") if next(steps) == 2 else g)
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 2"):
        finetune(model, Halves(20), config(save_every=1, steps=4), tmp_path, tokenize=words_to_ids)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["step"] == 2
    assert all(p.isfinite().all() for p in state["model"].values())


def test_a_fixed_temperature_stays_as_it_is():
    model = tiny_model()
    model.logit_scale.data.fill_(5.0)
    finetune(model, Halves(20), config(), tokenize=words_to_ids)
    assert model.logit_scale.detach() == 5.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grad_clip": 0.0}, "lets no gradient through"),
        ({"distill_tokens": 1.0}, "a weight within distill, which is 0"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="the training set is empty"):
        batches(Halves(0), config(), Preprocess(SIZE))


# ---- views


def picture(objects: int = 3, caption: str | None = "a picture") -> Picture:
    scene = draw_scene(5, 64, objects=(objects, objects), overlap=0.0)
    regions = tuple(Region(r.noun, r.mask) for r in scene.regions)
    return Picture("5", Image.fromarray(scene.image), caption, regions)


def seen(settings: TrainConfig, picture: Picture, count: int = 200, size: int = 32) -> list[Sample]:
    preprocess = Preprocess(size)
    return [s for i in range(count) for s in views(picture, preprocess, settings, np.random.default_rng(i)).samples]


def test_views_have_the_shares_that_the_settings_say():
    plain = config(whole=0.0, box=0.0, ellipse=0.0, jitter=0.0)
    _, alpha = Preprocess(32)(picture().image, np.stack([r.mask for r in picture().regions]), geometry="pad")
    clean = {r.phrase: a for r, a in zip(picture().regions, alpha, strict=True)}
    assert all(torch.equal(s.alpha, clean[s.text]) for s in seen(plain, picture(), 5))
    samples = seen(replace(plain, whole=0.1, box=0.2), picture())
    assert len(samples) == 600
    assert sum(s.alpha is None for s in samples) / 600 == pytest.approx(0.1, abs=0.03)
    assert {s.text for s in samples if s.alpha is None} == {"a picture"}
    changed = [s for s in samples if s.alpha is not None and not torch.equal(s.alpha, clean[s.text])]
    assert len(changed) / 540 == pytest.approx(0.2, abs=0.05)
    jittered = seen(replace(plain, jitter=1.0), picture(), 20)
    assert sum(torch.equal(s.alpha, clean[s.text]) for s in jittered) < 10


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_whole_pictures_have_any_share(share):
    samples = seen(config(whole=share, box=0.0, ellipse=0.0, jitter=0.0), picture(), 400)
    assert np.mean([s.alpha is None for s in samples]) == pytest.approx(share, abs=0.05)
    assert len({s.text for s in samples}) == (3 if share == 0 else 1 if share == 1 else 4)


NOTHING_ELSE = {"whole": 0.0, "box": 0.0, "ellipse": 0.0, "jitter": 0.0}


def wide(caption: str | None = "all of it") -> Picture:
    """Three squares side by side in a picture that is padded to a square."""
    masks = np.zeros((3, 32, 64), np.float32)
    for k in range(3):
        masks[k, 8:24, 20 * k : 20 * k + 16] = 1
    regions = tuple(Region(phrase, m) for phrase, m in zip(("a cat", "a dog", "a car"), masks, strict=True))
    return Picture("wide", Image.new("RGB", (64, 32)), caption, regions)


def masks_of(samples: list[Sample]) -> dict[str, torch.Tensor]:
    return {s.text: s.alpha * ALPHA_STD + ALPHA_MEAN for s in samples}


PLAIN_MASKS = masks_of(views(wide(), Preprocess(64), config(**NOTHING_ELSE), np.random.default_rng(0)).samples)


def test_graded_masks_show_the_surroundings_in_part_and_name_them_as_much():
    shares = []
    for sample in seen(config(graded=1.0, **NOTHING_ELSE), wide(), 60, size=64):
        b = sample.second.weight
        assert (sample.second.text, sample.second.whole) == ("all of it", True)
        mask = sample.alpha * ALPHA_STD + ALPHA_MEAN
        assert mask[0, 0, 0] == pytest.approx(b, abs=1e-6)  # padding too, so that b = 1 is the whole picture
        torch.testing.assert_close(mask, PLAIN_MASKS[sample.text].clamp_min(b))
        shares.append(b)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.1) and min(shares) < 0.1 and max(shares) > 0.9


def test_weighted_masks_are_two_regions_that_count_by_their_weight():
    for sample in seen(config(graded=0.0, weighted=1.0, **NOTHING_ELSE), wide(), 20, size=64):
        mask, w = sample.alpha * ALPHA_STD + ALPHA_MEAN, sample.second.weight / (1 - sample.second.weight)
        first, second = (PLAIN_MASKS[t] for t in (sample.text, sample.second.text))
        assert 0 < w <= 1 and not sample.second.whole
        torch.testing.assert_close(mask, torch.maximum(first, w * second))


def test_unions_show_two_or_three_regions_named_together_among_all_such_names():
    every = {"a cat", "a dog", "a car"}
    counts = []
    for i in range(60):
        samples = views(wide(), Preprocess(64), config(union=0.5, **NOTHING_ELSE), np.random.default_rng(i)).samples
        names = [s.text.replace(" and ", ", ").split(", ") for s in samples]
        assert len(samples) == 3 and all(set(of) <= every and len(set(of)) == len(of) for of in names)
        for sample, of in zip(samples, names, strict=True):
            expected = torch.stack([PLAIN_MASKS[name] for name in of]).amax(dim=0)
            torch.testing.assert_close(sample.alpha * ALPHA_STD + ALPHA_MEAN, expected)
            if max(map(len, names)) > 1:  # there is a union: all are told apart
                assert (
                    len(sample.hard_negatives) == len(set(sample.hard_negatives)) == 3 + 3 + 1
                    and sample.text in sample.hard_negatives
                )
            else:
                assert not sample.hard_negatives
        counts += map(len, names)
    assert np.mean(np.array(counts) > 1) == pytest.approx(0.5, abs=0.1) and {1, 2, 3} == set(counts)


def test_a_kind_that_a_picture_cannot_give_is_a_region_alone():
    alone, without_caption = replace_regions(wide(), wide().regions[:1]), wide(caption=None)
    twice = replace_regions(wide(), (wide().regions[0],) * 2)
    _warn_of_no_caption.cache_clear()
    with pytest.warns(UserWarning, match="the share of graded masks is not reached: pictures without a caption"):
        samples = seen(config(graded=1.0, **NOTHING_ELSE), without_caption, 5)
    assert all(s.second is None for s in samples)
    for given, settings in (
        (alone, {"weighted": 1.0}),
        (alone, {"union": 1.0}),
        (twice, {"union": 0.5, "weighted": 0.5}),  # two things of one name
    ):
        samples = seen(config(**settings, **NOTHING_ELSE), given, 5)
        assert all(s.second is None and not s.hard_negatives and s.text in PLAIN_MASKS for s in samples)


def test_views_without_a_caption_are_regions_and_without_regions_the_caption():
    assert not any(s.alpha is None for s in seen(config(whole=1.0), picture(caption=None), 5))
    alone = replace_regions(picture(), ())
    assert [(s.text, s.alpha) for s in seen(config(), alone, 2)] == [("a picture", None)] * 2
    with pytest.raises(BadSample, match="neither a region nor a caption"):
        seen(config(), replace_regions(picture(caption=None), ()), 1)


def replace_regions(picture: Picture, regions: tuple[Region, ...]) -> Picture:
    return Picture(picture.key, picture.image, picture.caption, regions)


def test_views_of_a_mask_of_nothing_are_a_bad_sample():
    empty = Region("nothing", np.zeros((64, 64), np.float32))
    for settings in (config(box=1.0, ellipse=0, jitter=0), config(box=0, ellipse=0, jitter=0)):
        with pytest.raises(BadSample, match="5"):
            seen(settings, replace_regions(picture(), (empty,)), 1)


def test_regions_too_small_for_the_input_are_left_out_and_counted(tmp_path):
    speck = np.zeros((600, 800), np.float32)
    speck[300:302, 400:402] = 1
    half = np.zeros_like(speck)
    half[:, :400] = 1
    image = Image.new("RGB", (800, 600))
    both = Picture("k", image, None, (Region("red", speck), Region("green", half)))
    shown = views(both, Preprocess(SIZE), config(whole=0.0), np.random.default_rng(0))
    assert [sample.text for sample in shown.samples] == ["green"] and shown.too_small == 1
    finetune(tiny_model(), [both] * 8, config(steps=2), tmp_path, tokenize=words_to_ids)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["too_small"] for line in logged] == [8, 16] and logged[-1]["unreadable"] == 0
    assert torch.load(tmp_path / "last.pt", weights_only=True)["too_small"] == 16
    specks = [Picture("k", image, None, (Region("red", speck),))] * 8
    with pytest.raises(UnreadableData, match="8 regions are too small for the model's input"):
        finetune(tiny_model(), specks, config(), tokenize=words_to_ids)


def test_many_regions_are_drawn_anew_each_time():
    many = replace_regions(picture(), picture().regions * 5)
    per_view = [len(views(many, Preprocess(32), config(), np.random.default_rng(i)).samples) for i in range(5)]
    assert per_view == [8] * 5
    numbered = replace_regions(many, tuple(Region(str(i), r.mask) for i, r in enumerate(many.regions)))
    drawn = {frozenset(s.text for s in seen(config(whole=0.0), numbered, 1)) for _ in range(2)}
    drawn |= {
        frozenset(s.text for s in views(numbered, Preprocess(32), config(whole=0.0), np.random.default_rng(9)).samples)
    }
    assert len(drawn) == 2  # the same for the same seed, others for another


# ---- masks

OBJECT = draw_scene(5, 64, objects=(1, 1), scale=(0.4, 0.6)).regions[0]


def test_box_fills_the_bounds():
    x0, y0, x1, y1 = OBJECT.box
    expected = np.zeros((64, 64), np.float32)
    expected[y0:y1, x0:x1] = 1
    assert np.array_equal(masks.box(OBJECT.mask), expected)
    assert mask_box(OBJECT.mask) == OBJECT.box


def test_ellipse_touches_the_bounds_and_has_an_ellipse_s_area():
    ellipse, box = masks.ellipse(OBJECT.mask), masks.box(OBJECT.mask)
    assert ellipse.sum() / box.sum() == pytest.approx(np.pi / 4, rel=0.03)
    assert np.all(ellipse <= box)
    x0, y0, x1, y1 = OBJECT.box
    assert all(side.any() for side in (ellipse[y0], ellipse[y1 - 1], ellipse[:, x0], ellipse[:, x1 - 1]))


def test_jitter_stays_near_and_within_range():
    rng = np.random.default_rng(0)
    for _ in range(50):
        jittered = masks.jitter(OBJECT.mask, rng)
        assert jittered.shape == OBJECT.mask.shape
        assert jittered.dtype == np.float32
        assert jittered.min() >= 0 and jittered.max() <= 1
        both = np.minimum(jittered, OBJECT.mask).sum() / np.maximum(jittered, OBJECT.mask).sum()
        assert both > 0.3


def test_lay_over_puts_the_silhouette_into_the_bounds():
    ring = np.zeros((32, 32), np.float32)
    ring[4:20, 6:30] = 1
    ring[8:16, 12:24] = 0
    laid = masks.lay_over(ring, OBJECT.mask)
    x0, y0, x1, y1 = OBJECT.box
    assert mask_box(laid) == OBJECT.box
    assert laid[(y0 + y1) // 2, (x0 + x1) // 2] == 0


@pytest.mark.parametrize("change", [masks.box, masks.ellipse, lambda m: masks.lay_over(m, OBJECT.mask)])
def test_masks_of_nothing_are_refused(change):
    with pytest.raises(ValueError, match=r"no pixel above 0\.5"):
        change(np.zeros((64, 64), np.float32))


# ---- optimizer


def test_frozen_text_tower_has_no_gradient_and_no_group():
    model = tiny_model()
    (optimizer,) = make_optimizers(model, config())
    trained = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert trained == {id(p) for p in model.visual.parameters()}
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"visual"}


def test_alpha_convolution_has_its_own_rate_and_gains_no_decay():
    model = tiny_model()
    (optimizer,) = make_optimizers(model, config(train_text=True, lr=1e-5, alpha_lr=1e-3))
    alpha, decayed, plain = optimizer.param_groups
    assert [p.shape for p in alpha["params"]] == [model.visual.conv1_alpha.weight.shape]
    assert alpha["lr"] == 1e-3 and decayed["lr"] == plain["lr"] == 1e-5
    undecayed = {id(p) for p in plain["params"]}
    for name, p in model.named_parameters():
        spared = p.ndim < 2 or "embedding" in name
        assert (id(p) in undecayed) == spared, name
    assert plain["weight_decay"] == 0


def test_weight_decay_and_betas_are_what_the_settings_say():
    adamw, muon = make_optimizers(tiny_model(), config(optimizer="muon", weight_decay=0.3, train_text=True))
    alpha, decayed, plain = adamw.param_groups
    assert (alpha["weight_decay"], decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.3, 0)
    assert [group["weight_decay"] for group in muon.param_groups] == [0.3]
    assert adamw.defaults["betas"] == (0.9, 0.98)


def test_the_learning_rate_follows_its_schedule_and_gradients_are_clipped(monkeypatch):
    settings = config(steps=4, warmup=2, lr=1e-3, alpha_lr=1e-2, grad_clip=0.01)
    rates, norms, step = [], [], torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        rates.append([group["lr"] for group in self.param_groups])
        norms.append(torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]).norm())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    finetune(tiny_model(), Halves(20), settings, tokenize=words_to_ids)
    assert rates == [pytest.approx([1e-2 * f, 1e-3 * f, 1e-3 * f]) for f in (0.5, 1.0, 1.0, 0.5)]
    assert norms == [pytest.approx(0.01, rel=1e-3)] * 4


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = tiny_model()
    adamw, muon = make_optimizers(model, config(optimizer="muon", train_text=True))
    trained = [{id(p) for g in o.param_groups for p in g["params"]} for o in (adamw, muon)]
    for name, p in model.named_parameters():
        assert (id(p) in trained[1]) == ("resblocks" in name and p.ndim == 2), name
        assert (id(p) in trained[0]) != (id(p) in trained[1]), name


def test_learning_rate_warms_up_and_ends_near_zero():
    settings = config(steps=100, warmup=10)
    factors = [lr_at(s, settings) for s in range(100)]
    assert factors[0] == 0.1 and max(factors) == factors[10] == 1
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[-1] < 1e-3


# ---- loop


CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)


def accuracy(model: CLIP) -> float:
    """On halves never trained on; without the mask, one half at best."""
    items = [Item(i, i, "", Halves()[i]) for i in range(1000, 1100)]
    batch = collate(items)
    with torch.no_grad():
        text = F.normalize(model.encode_text(words_to_ids(batch.texts)), dim=-1)
        named = (F.normalize(model.encode_image(batch.image, batch.alpha), dim=-1) @ text.T).argmax(dim=1)
    return float((named == batch.text_index).float().mean())


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_training_learns_to_follow_the_mask(device):
    model = tiny_model().to(device)
    before = {n: p.clone() for n, p in model.named_parameters()}
    settings = config(steps=60, batch_size=16, lr=1e-3, alpha_lr=1e-2, train_text=True)
    finetune(model, Halves(), settings, tokenize=words_to_ids)
    assert not model.training
    model.cpu()
    assert accuracy(model) > 0.95
    assert not torch.equal(before["text_projection"].cpu(), model.text_projection)


def test_frozen_text_tower_does_not_move():
    model = tiny_model()
    before = {n: p.clone() for n, p in model.named_parameters()}
    finetune(model, Halves(), config(alpha_lr=1e-2), tokenize=words_to_ids)
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"visual"}


def test_two_runs_are_bit_equal_and_other_seeds_are_not():
    runs = [finetune(tiny_model(), Halves(20), config(seed=s), tokenize=words_to_ids) for s in (0, 0, 1)]
    a, b, c = (torch.cat([p.flatten() for p in run.visual.parameters()]) for run in runs)
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("settings", [{"precision": "bfloat16"}, {"checkpoint_activations": True}, {"accumulate": 4}])
def test_what_saves_memory_leaves_the_result_nearly_the_same(settings):
    base = config(alpha_lr=1e-2, distill=1.0, distill_tokens=1.0)
    runs = [finetune(tiny_model(), Halves(20), replace(base, **s), tokenize=words_to_ids) for s in ({}, settings)]
    start, plain, other = (
        torch.cat([p.detach().flatten() for p in m.visual.parameters()]) for m in (tiny_model(), *runs)
    )
    assert (plain - other).norm() <= (0.3 if "precision" in settings else 0.01) * (plain - start).norm()
    assert not runs[1].visual.transformer.checkpointing


def test_half_precision_comes_back_as_it_came_and_is_trained_in_float32():
    model = tiny_model()
    convert_weights(model, torch.float16)
    seen: list[torch.dtype] = []
    model.visual.conv1.register_forward_hook(lambda m, i, o: seen.append(m.weight.dtype))
    before = model.visual.conv1_alpha.weight.clone()
    finetune(model, Halves(), config(alpha_lr=1e-2), tokenize=words_to_ids)
    assert set(seen) == {torch.float32}
    assert model.dtype == torch.float16 and model.ln_final.weight.dtype == torch.float32
    assert not torch.equal(model.visual.conv1_alpha.weight, before)


class Killed(BaseException):
    """As by kill -9: nothing gets to tidy up."""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("moment", ["in a step", "in a save"])
def test_a_killed_run_resumes_to_the_bit(optimizer, moment, tmp_path, monkeypatch):
    settings = config(steps=6, save_every=2, distill=1.0, optimizer=optimizer)
    straight = finetune(tiny_model(), Halves(20), settings, tmp_path / "straight", tokenize=words_to_ids)

    calls = itertools.count()
    name, when = ("torch.nn.utils.clip_grad_norm_", 3) if moment == "in a step" else ("os.fsync", 3)
    original = torch.nn.utils.clip_grad_norm_ if moment == "in a step" else os.fsync

    def kill(*args):
        if next(calls) == when:
            raise Killed
        return original(*args)

    monkeypatch.setattr(name, kill)
    with pytest.raises(Killed):
        finetune(tiny_model(), Halves(20), settings, tmp_path / "stopped", tokenize=words_to_ids)
    monkeypatch.undo()
    assert torch.load(tmp_path / "stopped" / "last.pt", weights_only=True)["step"] == 2
    resumed = finetune(tiny_model(), Halves(20), settings, tmp_path / "stopped", tokenize=words_to_ids)
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert steps_logged(tmp_path / "stopped") == steps_logged(tmp_path / "straight") == [1, 2, 3, 4, 5, 6]


def steps_logged(folder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(number, tmp_path):
    before = signal.signal(number, signal.default_int_handler)  # where the tests run in the background, SIG_IGN
    settings = config(steps=6, save_every=100)
    straight = finetune(tiny_model(), Halves(20), settings, tokenize=words_to_ids)
    calls = itertools.count()

    def terminated_in_step_2(texts):
        if next(calls) == 1:
            signal.raise_signal(number)
        return words_to_ids(texts)

    with pytest.raises(SystemExit, match=r"stopped by a signal after step 2, saved in .*: the same command goes on"):
        finetune(tiny_model(), Halves(20), settings, tmp_path, tokenize=terminated_in_step_2)
    assert signal.getsignal(number) is signal.default_int_handler
    signal.signal(number, before)
    resumed = finetune(tiny_model(), Halves(20), settings, tmp_path, tokenize=words_to_ids)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_a_folder_with_a_run_of_other_settings_is_refused(tmp_path):
    finetune(tiny_model(), Halves(20), config(), tmp_path, tokenize=words_to_ids)
    with pytest.raises(ValueError, match=r"holds a run with other settings \(seed: 0 there, 1 here\): name another"):
        finetune(tiny_model(), Halves(20), config(seed=1), tmp_path, tokenize=words_to_ids)
    finetune(tiny_model(), Halves(20), config(workers=1, accumulate=2), tmp_path, tokenize=words_to_ids)


def test_loss_that_is_not_finite_stops_the_run_keeps_the_checkpoint_and_names_the_batch(tmp_path):
    finetune(tiny_model(), Halves(20), config(steps=2), tmp_path / "good", tokenize=words_to_ids)
    model = tiny_model()
    model.visual.class_embedding.data.fill_(float("nan"))
    message = r"the loss is not finite at step 0; its pictures are in .*bad_batch\.json: lower the learning rate"
    with pytest.raises(FloatingPointError, match=message):
        finetune(model, Halves(20), config(steps=2), tmp_path / "bad", tokenize=words_to_ids)
    first = np.random.default_rng([0, 0]).permutation(20)[:8]  # of epoch 0 with seed 0
    assert json.loads((tmp_path / "bad" / "bad_batch.json").read_text())["pictures"] == sorted(map(str, first.tolist()))
    assert not (tmp_path / "bad" / "last.pt").exists()


class Broken(Halves):
    """Some items cannot be read."""

    def __init__(self, bad: set[int], length: int = 200) -> None:
        super().__init__(length)
        self.bad = bad

    def __getitem__(self, index):
        if index in self.bad:
            raise BadSample(str(index), "its picture is broken")
        return super().__getitem__(index)


def test_a_few_bad_pictures_are_skipped_and_counted(tmp_path):
    finetune(tiny_model(), Broken({7}), config(steps=25), tmp_path, tokenize=words_to_ids)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["unreadable"] == 1


def test_unreadable_pictures_are_counted_over_the_whole_run(tmp_path):
    bad = {int(i) for i in np.random.default_rng([0, 0]).permutation(200)[[10, 60, 100]]}  # in steps 2, 8 and 13
    for unreadable in (0, 2):  # the second time from step 10 on
        if unreadable:
            assert torch.load(tmp_path / "last.pt", weights_only=True)["unreadable"] == unreadable
        with pytest.raises(RuntimeError, match="3 of 104 pictures could not be read, more than 1%, the last because"):
            finetune(tiny_model(), Broken(bad), config(steps=25, save_every=5), tmp_path, tokenize=words_to_ids)


def test_more_than_one_in_a_hundred_bad_pictures_stops_the_run():
    message = r"of 1\d\d pictures could not be read, more than 1%, .*its picture is broken.*alpha_clip\.training\.check"
    with pytest.raises(RuntimeError, match=message):
        finetune(tiny_model(), Broken(set(range(0, 200, 20))), config(steps=25), tokenize=words_to_ids)


def drift_of_a_run(**settings) -> float:
    class Whole(Halves):
        def __getitem__(self, index):
            first, second = super().__getitem__(index)
            return [first, second, Sample(first.image, first.text)]

    model, start = tiny_model(), tiny_model()
    images = torch.stack([Halves()[i][0].image for i in range(64)])
    finetune(model, Whole(), config(steps=30, alpha_lr=1e-2, **settings), tokenize=words_to_ids)
    with torch.no_grad():
        now, then = (m.visual.tokens(images, layer=-2)[:, 1:] for m in (model, start))
        features = F.cosine_similarity(model.visual(images), start.visual(images)).mean()
    return float(1 - features), float((now - then).square().sum() / then.square().sum())


def test_distillation_keeps_whole_pictures_near_the_start():
    free, held, tokens_held = (
        drift_of_a_run(**s) for s in ({}, {"distill": 20.0}, {"distill": 20.0, "distill_tokens": 5.0})
    )
    assert held[0] < free[0] / 2
    assert tokens_held[1] < held[1] / 2


def test_best_is_what_load_takes_and_validation_is_logged(tmp_path):
    model = tiny_model()
    settings = config(steps=40, batch_size=16, lr=1e-3, alpha_lr=1e-2, train_text=True, evaluate_every=10)
    finetune(model, Halves(), settings, tmp_path, validation=Halves(40), tokenize=words_to_ids)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [line["region_accuracy"] for line in lines if "region_accuracy" in line]
    assert len(scores) == 4 and scores[-1] > scores[0]
    assert all(0 < line["drift"] < 2 for line in lines if "drift" in line)
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        metrics = json.loads(file.metadata()["metrics"])
    assert metrics["region_accuracy"] == max(scores)
    best, _ = alpha_clip.load(str(tmp_path / "best.safetensors"), "cpu")
    last, _ = alpha_clip.load(str(tmp_path / "last.pt"), "cpu")
    assert torch.equal(last.visual.proj, model.visual.proj)
    assert best.visual.proj.shape == model.visual.proj.shape


def test_validation_sees_masks_as_they_are_and_counts_what_it_cannot_read(tmp_path):
    def scores(name, validation, **changes):
        settings = config(steps=1, warmup=0, **changes)
        finetune(tiny_model(), Halves(20), settings, tmp_path / name, validation=validation, tokenize=words_to_ids)
        return json.loads((tmp_path / name / "metrics.jsonl").read_text())

    clean = scores("clean", Pictures())
    changed = scores("changed", Pictures(), box=1.0, ellipse=0.0, jitter=0.0, whole=0.9)
    assert clean["region_accuracy"] == changed["region_accuracy"] and clean["validation_unreadable"] == 0
    assert scores("one", Broken({0}, 50))["validation_unreadable"] == 1
    for bad, length in ((2, 100), (10, 10)):
        with pytest.raises(RuntimeError, match=f"{bad} of {length} pictures could not be read"):
            scores(str(length), Broken({*range(bad)}, length))


class Pictures:
    """Drawn scenes of red, green and blue things, as `Picture`s."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        scene = draw_scene(index, 32, objects=(2, 2), overlap=0.0)
        regions = tuple(Region(WORDS[(index + k) % 3], r.mask) for k, r in enumerate(scene.regions))
        return Picture(str(index), Image.fromarray(scene.image), "blue", regions)


def test_a_run_is_gone_on_with_from_what_it_began_with_alone(tmp_path):
    finetune(tiny_model(), Halves(20), config(), tmp_path, tokenize=words_to_ids)
    message = (
        "holds a run that began with other weights or data .*20 pictures .* there, .*{} pictures .* here.: give it"
    )
    with pytest.raises(ValueError, match=message.format(30)):
        finetune(tiny_model(), Halves(30), config(), tmp_path, tokenize=words_to_ids)
    with pytest.raises(ValueError, match=message.format(20)):
        finetune(tiny_model(seed=1), Halves(20), config(), tmp_path, tokenize=words_to_ids)
    renamed = Halves(20)
    renamed.keys = [str(i) for i in range(20)]
    with pytest.raises(ValueError, match=message.format(20)):
        finetune(tiny_model(), renamed, config(), tmp_path, tokenize=words_to_ids)
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"last\.pt is damaged .*: delete it to begin anew, or name another folder"):
        finetune(tiny_model(), Halves(20), config(), tmp_path, tokenize=words_to_ids)


def test_tensorboard_without_a_folder_or_the_package_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="tensorboard is True and out is None: name a folder"):
        finetune(tiny_model(), Halves(20), config(), tokenize=words_to_ids, tensorboard=True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="metrics for TensorBoard need tensorboard: pip install tensorboard"):
        finetune(tiny_model(), Halves(20), config(), tmp_path, tokenize=words_to_ids, tensorboard=True)


def test_a_scored_checkpoint_is_better_than_an_unscored_one(tmp_path):
    settings = config(steps=6, save_every=2, evaluate_every=3)
    calls = itertools.count()

    def terminated_in_step_5(texts):
        if next(calls) == 5:  # one of them was the evaluation's
            signal.raise_signal(signal.SIGTERM)
        return words_to_ids(texts)

    def best() -> float:
        with safe_open(tmp_path / "best.safetensors", "pt") as file:
            return json.loads(file.metadata()["metrics"])

    with pytest.raises(SystemExit, match="after step 5"):
        finetune(tiny_model(), Halves(20), settings, tmp_path, validation=Halves(40), tokenize=terminated_in_step_5)
    assert best()["step"] == 3  # steps 2 and 5 were saved and never scored
    finetune(tiny_model(), Halves(20), settings, tmp_path, validation=Halves(40), tokenize=words_to_ids)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert best()["region_accuracy"] == max(line.get("region_accuracy", 0) for line in lines)


def test_best_without_the_text_tower_is_an_image_tower(tmp_path):
    finetune(tiny_model(), Halves(), config(alpha_lr=1e-2), tmp_path, tokenize=words_to_ids)
    for file in ("best.safetensors", "last.pt"):
        checkpoint = alpha_clip.checkpoints.read(tmp_path / file)
        assert checkpoint.is_image_tower and checkpoint.confirmed == "its metadata"


def test_what_nothing_confirmed_is_not_confirmed_by_training(tmp_path):
    model = tiny_model()
    model.confirmed = False  # as `load` says of a file without metadata
    finetune(model, Halves(), config(alpha_lr=1e-2), tmp_path, tokenize=words_to_ids)
    for file in ("best.safetensors", "last.pt"):
        assert alpha_clip.checkpoints.read(tmp_path / file).confirmed is None


# ---- presets and unlocking


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_settings(preset):
    TrainConfig(**PRESETS[preset])


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_unlocked_blocks_are_the_last_ones(blocks):
    model = tiny_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_optimizers(model, config(unlock_blocks=blocks))
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    numbers = {int(name.split(".")[3]) for name in free if ".resblocks." in name}
    assert numbers == set(range(2 - blocks, 2))
    rest = {name for name in free if ".resblocks." not in name}
    ends = {"visual.ln_post.weight", "visual.ln_post.bias", "visual.proj"} if blocks else set()
    assert rest == {"visual.conv1_alpha.weight"} | ends


def test_the_alpha_convolution_alone_brings_the_papers_warning():
    with pytest.warns(UserWarning, match=r"unlock_blocks=0 trains the alpha convolution alone.*63\.61%.*68\.27%"):
        make_optimizers(tiny_model(), config(unlock_blocks=0))


def test_more_blocks_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"TrainConfig\.unlock_blocks is 3, expected 0 to 2"):
        make_optimizers(tiny_model(), config(unlock_blocks=3))


def test_tensorboard_gets_the_metrics(tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )
    finetune(tiny_model(), Halves(20), config(), tmp_path, tokenize=words_to_ids, tensorboard=True)
    logged = events.EventAccumulator(str(tmp_path)).Reload()
    curve = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [e.step for e in logged.Scalars("loss")] == [1, 2, 3, 4]
    assert [e.value for e in logged.Scalars("loss")] == pytest.approx(curve, rel=1e-6)


def test_tensorboard_forgets_the_steps_that_are_taken_again(tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )
    log = Log(tmp_path, 0, tensorboard=True)
    for step in (1, 2, 3):
        log.write(step, {"loss": float(step)})
    Log(tmp_path, 1, tensorboard=True).write(2, {"loss": 20.0})
    logged = events.EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in logged] == [(1, 1.0), (2, 20.0)]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 1, "loss": 1.0}',
        '{"step": 2, "loss": 20.0}',
    ]


# ---- how it ends

FAILS = """
import sys, torch
from types import SimpleNamespace
from alpha_clip.training import finetune, loop
from test_training import Halves, config, tiny_model, words_to_ids

def fail(*arguments, **options):
    raise torch.OutOfMemoryError("too much")

setattr(loop, sys.argv[1], fail)
if sys.argv[1] == "evaluate":
    from alpha_clip.training import validation
    loop.evaluate = validation.evaluate
    validation.F = SimpleNamespace(normalize=fail)
finetune(tiny_model(), Halves(20), config(workers=1), validation=Halves(200), tokenize=words_to_ids)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["_step", "evaluate"])
def test_an_error_ends_the_process_that_has_workers(where):
    paths = [os.path.dirname(__file__), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", FAILS, where],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and "OutOfMemoryError: too much" in done.stderr, done.stderr
