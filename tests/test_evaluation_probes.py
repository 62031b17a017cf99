"""The probes, against what can be worked out by hand, and the doctor, on models that were broken on purpose."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from alpha_clip import Preprocess, masks
from alpha_clip.evaluation import Column, Naming, Sample, Subject, Task, UnusableSample, builtin, find, parse, run
from alpha_clip.evaluation import __main__ as command
from alpha_clip.evaluation import doctor as doctor_module
from alpha_clip.evaluation.__main__ import main
from alpha_clip.evaluation.doctor import Thresholds, examine
from alpha_clip.evaluation.probes import (
    PROBES,
    attention,
    graded,
    identity,
    noise,
    probe,
    seeing,
    sensitivity,
    size,
    some_of,
    unions,
)
from alpha_clip.evaluation.subjects import of
from alpha_clip.evaluation.ways import look
from alpha_clip.integrations import add_alpha, alpha_weight
from alpha_clip.model import CLIP, FOREGROUND
from alpha_clip.towers import tower_of

EXAMPLES = Path(__file__).parent.parent / "examples" / "tiny"


@pytest.fixture(scope="module")
def tiny() -> Subject:
    return find("tiny", "cpu")


@pytest.fixture(scope="module")
def scenes() -> list[Sample]:
    return [builtin.sample("plain", i) for i in range(10)]


@pytest.fixture(scope="module")
def doctor_scenes() -> list[Sample]:
    return [builtin.sample("plain", i) for i in range(doctor_module.SCENES)]


def own_base(subject: Subject) -> Subject:
    """A subject that is its own base."""
    return replace(subject, base=replace(subject, takes_masks=False, base=None))


def square(x0: int, y0: int, side: int, n: int = 60) -> np.ndarray:
    mask = np.zeros((n, n), np.float32)
    mask[y0 : y0 + side, x0 : x0 + side] = 1
    return mask


# --- changes of masks ---


def test_growing_shrinking_and_shifting_a_square_is_arithmetic():
    mask = square(20, 20, 20)
    assert masks.iou(masks.dilate(mask, 2), mask) == pytest.approx(20**2 / 24**2)
    assert masks.iou(masks.erode(mask, 2), mask) == pytest.approx(16**2 / 20**2)
    assert masks.iou(masks.shift(mask, 0, 5), mask) == pytest.approx(15 / 25)
    assert masks.iou(mask, mask) == 1


def test_a_mask_at_the_edge_does_not_shrink_from_the_edge():
    assert np.array_equal(masks.erode(square(0, 0, 20), 2), square(0, 0, 18))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_less_takes_its_share_and_keeps_to_the_mask(share):
    mask = square(10, 10, 30)
    less = masks.less(mask, share, np.random.default_rng(1))
    assert less.sum() / mask.sum() == pytest.approx(1 - share, abs=1 / 900)
    assert np.all(less <= mask)
    assert ((np.diff(less[10:40, 10:40], axis=1) != 0).sum(axis=1) <= 1).all()  # by one line: a row is cut once


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_more_adds_its_share_elsewhere(share):
    mask = square(22, 22, 16)
    more = masks.more(mask, share, np.random.default_rng(2))
    assert (more - mask).sum() / mask.sum() == pytest.approx(share, abs=0.05)
    assert np.all(more >= mask)
    assert masks.iou(more, mask) == pytest.approx(1 / (1 + share), abs=0.03)


def test_more_ends_where_there_is_no_room():
    assert masks.more(np.ones((9, 9), np.float32), 1.0, np.random.default_rng(0)).all()


def test_aside_finds_the_free_corner():
    taken = 1 - square(40, 40, 20)
    moved, touching = masks.aside(square(0, 0, 20), taken)
    assert np.array_equal(moved, square(40, 40, 20))
    assert touching == 0
    _, touching = masks.aside(square(0, 0, 20), np.full((60, 60), 0.5, np.float32))
    assert touching == pytest.approx(0.5)


def test_a_large_mask_is_changed_at_a_smaller_size():
    seen = []
    out = masks.at_most(np.ones((512, 1024), np.float32), lambda small: seen.append(small.shape) or small)
    assert seen == [(256, 512)]
    assert out.shape == (512, 1024)


# --- noise ---


@pytest.mark.parametrize("kind", noise.BY_DEGREES)
@pytest.mark.parametrize("wanted", noise.WANTED)
def test_spoiled_masks_have_the_iou_they_claim(kind, wanted):
    mask = square(50, 50, 40, n=140)
    assert masks.iou(noise.spoil(mask, kind, wanted, seed=3), mask) == pytest.approx(wanted, abs=0.05)


def test_a_spoiled_mask_is_a_function_of_its_seed_and_a_box_is_the_box(scenes):
    mask = scenes[0].masks[0]
    assert np.array_equal(noise.spoil(mask, "blobs added", 0.6, 1), noise.spoil(mask, "blobs added", 0.6, 1))
    assert not np.array_equal(noise.spoil(mask, "blobs added", 0.6, 1), noise.spoil(mask, "blobs added", 0.6, 2))
    assert np.array_equal(noise.spoil(mask, "box", 0.4), masks.box(mask))


def test_a_mask_of_one_pixel_is_never_spoiled_to_nothing():
    for kind in noise.KINDS:
        assert noise.spoil(square(5, 5, 1, n=32), kind, 0.4).max() > 0.5


def test_unknown_noise_is_refused():
    with pytest.raises(ValueError, match=r"kind is 'torn', expected one of eroded, .*box"):
        noise.spoil(square(0, 0, 9), "torn", 0.5)
    with pytest.raises(ValueError, match=r"wanted is 1.0, expected an IoU above 0 and below 1"):
        noise.spoil(square(0, 0, 9), "eroded", 1.0)


def test_noise_of_exact_masks_is_what_the_benchmark_counts(tiny, scenes):
    ways = [parse("alpha"), parse("whole")]
    finding = noise.probe(tiny, scenes[:4], builtin.TEMPLATES, ways)
    right = []
    for sample in scenes[:4]:
        seen = look(tiny.model, sample.image, sample.masks, ways[0])
        scores = seen.scores(tiny.names(builtin.NAMES, builtin.TEMPLATES))
        right += [scores[k].argmax().item() == q.answer for k, q in seeing.namings(sample).items()]
    exact = finding.tables[0].rows[0]
    assert exact[:3] == ["exact", "", "1.00"]
    all_ways, one_way = finding.curves
    _, estimate = all_ways.lines["alpha"][-1]
    assert (estimate.value, estimate.count) == (pytest.approx(np.mean(right)), len(right))
    assert exact[3] == str(estimate)
    assert list(all_ways.lines) == ["alpha", "whole"]
    assert [round(x, 1) for x, _ in all_ways.lines["alpha"]] == [*sorted(noise.WANTED), 1.0]
    assert len({y.value for _, y in all_ways.lines["whole"]}) == 1  # whatever the mask
    assert list(one_way.lines) == list(noise.KINDS)
    assert len(one_way.lines["box"]) == 2


# --- identity ---


def test_a_model_is_identical_to_itself(tiny, scenes):
    finding = identity.probe(own_base(tiny), scenes, builtin.TEMPLATES)
    found = identity.measure(tiny, tiny, scenes)
    assert [found.cosine, found.low, found.class_token, found.patches] == pytest.approx([1, 1, 1, 1], abs=1e-6)
    assert found.kept == pytest.approx(1, abs=1e-6)
    assert "has cosine 1.000 to plain CLIP's (5th percentile 1.000)" in finding.verdict
    assert finding.tables[1].rows[2] == ["difference", "0.0% [0.0%, 0.0%]"]


def test_identity_is_that_of_encode_image(tiny, scenes):
    found = identity.measure(tiny, tiny.base, scenes)
    rgb = torch.stack([Preprocess(48)(sample.image, geometry="pad") for sample in scenes])
    with torch.no_grad():
        now, then = (F.normalize(s.model.encode_image(rgb), dim=-1) for s in (tiny, tiny.base))
        tokens = [F.normalize(s.model.visual.tokens(rgb, layer=-2), dim=-1) for s in (tiny, tiny.base)]
    cosines = (now @ then.T).numpy()
    assert found.cosine == pytest.approx(np.diag(cosines).mean(), abs=1e-6)
    assert found.low == pytest.approx(np.percentile(np.diag(cosines), 5), abs=1e-6)
    assert found.crossed == pytest.approx((cosines.sum() - np.trace(cosines)) / 90, abs=1e-5)
    own = (then @ then.T).numpy()
    assert found.between == pytest.approx((own.sum() - 10) / 90, abs=1e-5)
    drift = (tokens[0] * tokens[1]).sum(-1)
    assert found.class_token == pytest.approx(drift[:, 0].mean().item(), abs=1e-5)
    assert found.patches == pytest.approx(drift[:, 1:].mean().item(), abs=1e-5)


def test_of_k_things_in_a_picture_the_k_best_names_count(tiny):
    names = ("x", "y", "z", "w")
    vectors = torch.eye(4)
    fake = Subject("fake", tiny.model, lambda texts: torch.stack([vectors[names.index(text)] for text in texts]))
    image = Image.new("RGB", (48, 48))
    asked = tuple(Naming(k, names, k) for k in (0, 1))
    sample = Sample("0", image, np.ones((2, 48, 48), np.float32), asked)
    scores = seeing.encode(fake, seeing.pixels(fake, [sample]))[0]
    vectors = F.normalize(torch.stack([0.9 * scores, 0.1 * scores + 2, 0.5 * scores + 1, -scores]), dim=-1)
    order = (vectors @ scores).argsort(descending=True).tolist()
    hits = identity.recall(fake, [sample], ["{}"])
    assert hits.hits.tolist() == [k in order[:2] for k in (0, 1)]


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("identity", {"base": None}, "there is no plain CLIP to compare tiny with: name one"),
        *((name, {"takes_masks": False}, "tiny takes no masks") for name in ("identity", "sensitivity", "unions")),
        *((name, {"takes_masks": False}, "tiny takes no masks") for name in ("graded", "attention")),
    ],
)
def test_probes_say_why_they_do_not_apply(tiny, scenes, name, change, why):
    finding = PROBES[name](replace(tiny, **change), scenes, builtin.TEMPLATES, None)
    assert finding.verdict.startswith(f"Does not apply: {why}")
    assert not finding.tables


def test_probes_say_when_there_is_too_little_to_look_at(tiny, scenes):
    assert "takes 2 pictures or more, and there are 1" in identity.probe(tiny, scenes[:1]).verdict
    assert "takes 4 pictures or more, and there are 3" in sensitivity.probe(tiny, scenes[:3]).verdict
    nameless = [replace(sample, questions=()) for sample in scenes[:2]]
    for name in ("noise", "size", "graded"):
        assert "no region has a name" in PROBES[name](tiny, nameless, ["{}"], None).verdict
    assert "no picture has two objects" in unions.probe(tiny, nameless).verdict
    alone = replace(tiny, takes_masks=False)
    assert "no way fits the model" in noise.probe(alone, scenes[:2], ["{}"], [parse("alpha")]).verdict
    assert "no way fits the model" in size.probe(alone, scenes[:2], ["{}"], [parse("alpha")]).verdict


# --- sensitivity ---


def test_causes_are_those_of_a_two_way_analysis():
    picture, mask = torch.tensor([0.0, 2.0])[:, None, None], torch.tensor([-1.0, 1.0])[None, :, None]
    zero = torch.zeros(2, 2, 1)
    assert sensitivity.causes(picture + zero) == sensitivity.Causes(1, 0, 0)
    assert sensitivity.causes(mask + zero) == sensitivity.Causes(0, 1, 0)
    assert sensitivity.causes((picture - 1) * mask) == sensitivity.Causes(0, 0, 1)
    assert sensitivity.causes(picture + 2 * mask) == sensitivity.Causes(0.2, 0.8, 0)  # variances 1 and 4


def test_sensitivity_is_that_of_single_calls(tiny, scenes):
    found = sensitivity.measure(tiny, scenes, builtin.TEMPLATES)
    sample = scenes[0]
    regions = seeing.see(tiny, sample.image, sample.masks)
    rest = seeing.see(tiny, sample.image, 1 - sample.masks)
    off = (regions @ regions.T)[~torch.eye(len(regions), dtype=torch.bool)]
    assert found.alike.regions[0] == pytest.approx(off.mean().item(), abs=1e-5)
    assert found.alike.complement[0] == pytest.approx((regions * rest).sum(1).mean().item(), abs=1e-5)
    count = sum(len(seeing.namings(sample)) for sample in scenes)
    assert [len(found.hits[name]) for name in sensitivity.CONTROLS[:5]] == [count] * 5
    accuracy = {name: np.mean([right for _, right in hits]) for name, hits in found.hits.items()}
    assert accuracy["mask"] > 0.7 > 0.3 > accuracy["no mask"]
    assert accuracy["another's outline: content named"] > 0.6
    assert accuracy["another's outline: outline named"] < 0.1


def test_a_whole_picture_has_no_complement(tiny, scenes):
    whole = [replace(s, masks=np.ones_like(s.masks[:1]), questions=s.questions[:1]) for s in scenes[:4]]
    finding = sensitivity.probe(tiny, whole, builtin.TEMPLATES)
    assert ["a region and all else", None] in finding.tables[0].rows
    assert ["two regions of a picture", None] in finding.tables[0].rows


# --- unions and graded masks ---


def test_several_regions_are_named_among_all_sets(tiny, scenes):
    sample = next(s for s in scenes if len(s.masks) == 3)
    answers = unions.ask(tiny, sample, ["{}"])
    names = unions.names_of(sample)
    asked = [question for question, *_ in answers]
    assert [asked.count(unions.named_as(k)) for k in (1, 2, 3)] == [3, 3, 1]
    assert [asked.count(unions.named_among_its_size(k)) for k in (1, 2, 3)] == [3, 3, 0]
    texts = [f"{names[0]} and {names[1]}", f"{names[0]} and {names[2]}", f"{names[1]} and {names[2]}"]
    pairs = [(0, 1), (0, 2), (1, 2)]
    union = seeing.see(tiny, sample.image, [sample.masks[list(p)].max(0) for p in pairs])
    expected = (union @ tiny.texts(texts).T).argmax(1).tolist()
    found = [right for question, right, _ in answers if question == unions.named_among_its_size(2)]
    assert found == [best == i for i, best in enumerate(expected)]


def test_one_region_is_its_own_mean_and_names_that_occur_twice_are_left_out(tiny, scenes):
    for question, one, other in unions.ask(tiny, scenes[0], ["{}"]):
        if question == unions.named_as(1):
            assert one == other
    first, *_ = scenes[0].questions
    assert unions.names_of(replace(scenes[0], questions=(first, replace(first, region=1)))) == {}


def test_relations_are_told_with_the_right_articles():
    assert unions._relation_texts("a cat", "left of", "an owl") == ["a cat left of the owl", "an owl left of the cat"]
    assert unions._relation_texts("tench", "above", "a b") == ["tench above the b", "a b above tench"]


def test_graded_masks_end_at_the_region_and_at_the_whole(tiny, scenes):
    sample = scenes[0]
    (steps, *_) = graded.region_and_all(tiny, sample, "a red cat", ["{}"])
    names = unions.names_of(sample)
    ends = seeing.see(tiny, sample.image, [sample.masks[0], np.ones_like(sample.masks[0])])
    scale = tiny.model.logit_scale.exp().item()
    shares = (scale * ends @ tiny.texts([names[0], "a red cat"]).T).softmax(-1)[:, 1]
    for seen in (steps.seen, steps.between):
        assert torch.allclose(seen[[0, -1]], shares, atol=1e-4)
    assert steps.position[[0, -1]].tolist() == pytest.approx([0, 1], abs=1e-5)


def test_the_distance_of_a_constant_half_is_0_3():
    wanted = torch.tensor(graded.BACKGROUNDS)
    steps = graded.Steps(wanted, torch.full((5,), 0.5), wanted, wanted)
    assert steps.distances == pytest.approx((0.3, 0))


def test_two_regions_are_weighted_from_one_to_the_other(tiny, scenes):
    steps = graded.two_regions(tiny, scenes[0], ["{}"])[0]
    assert steps.wanted.tolist() == pytest.approx([0, 1 / 3, 1 / 2, 2 / 3, 1])
    assert "interpolated" in graded.probe(tiny, scenes[:2], ["{}"]).verdict


# --- size ---


def test_an_enlarged_tower_sees_more_pixels(tiny, scenes):
    tower = size.enlarged(tower_of(tiny.model), 1.5)
    assert (tower.preprocess.n, tower.grid) == (72, 9)
    sample = scenes[0]
    found = look(tiny.model, sample.image, sample.masks, parse("alpha"), 64, lambda t: size.enlarged(t, 1.5))
    rgb, alpha = Preprocess(72)(sample.image, sample.masks, geometry="pad")
    with torch.no_grad():
        expected = F.normalize(tiny.model.encode_image(rgb, alpha), dim=-1)
    assert torch.allclose(found.features[0], expected, atol=1e-5)


def test_regions_are_counted_by_their_share_of_the_picture(tiny):
    image, names = Image.new("RGB", (100, 100)), ("a cat", "a dog")
    sides = (5, 11, 20, 40, 60)  # 0.25%, 1.2%, 4%, 16%, 36%
    shown = np.stack([square(0, 0, side, n=100) for side in sides])
    asked = tuple(Naming(k, names, k % 2) for k in range(len(sides)))
    found = size.regions(tiny, [Sample("0", image, shown, asked)], ["{}"], [parse("whole")], [1.0])
    assert [seen.bin for seen in found] == [0, 1, 2, 3, 4]
    finding = size.probe(tiny, [Sample("0", image, shown, asked)], ["{}"], [parse("whole"), parse("crop")])
    table = finding.tables[0]
    assert table.columns[2:-1] == ["below 1%", "1 to 3%", "3 to 10%", "10 to 30%", "30% and more"]
    assert [row[1] for row in table.rows] == ["1x", "1.5x", "2x"] * 2
    assert table.rows[0][-1].count == 5


def test_models_of_other_packages_keep_to_their_size_and_to_their_ways(scenes):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    model = open_clip.CLIP(
        32, open_clip.CLIPVisionCfg(layers=1, width=64, image_size=48, patch_size=8), open_clip.CLIPTextCfg(layers=1)
    ).eval()
    words = open_clip.SimpleTokenizer()
    subject = Subject("theirs", model, lambda texts: model.encode_text(words(texts)))
    task = Task("few", ["0", "1"], lambda i: scenes[i], [Column("all")], builtin.TEMPLATES)
    findings = {f.name: f for f in probe(["all"], [subject], task, [parse("alpha"), parse("crop")])}
    assert {name for name, f in findings.items() if f.tables} == {"noise", "size"}
    assert [row[:2] for row in findings["size"].tables[0].rows] == [["crop", "1x"]]
    assert "Only our own image towers take other sizes" in findings["size"].tables[0].note


def test_models_of_other_packages_with_alpha_are_asked_what_they_can_answer(scenes):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    model = open_clip.CLIP(
        32, open_clip.CLIPVisionCfg(layers=1, width=64, image_size=48, patch_size=8), open_clip.CLIPTextCfg(layers=1)
    ).eval()
    torch.nn.init.normal_(alpha_weight(add_alpha(model)), std=0.05)
    words = open_clip.SimpleTokenizer()
    subject = Subject("theirs", model, lambda texts: model.encode_text(words(texts)), takes_masks=True)
    task = Task("few", [str(i) for i in range(4)], lambda i: scenes[i], [Column("all")], builtin.TEMPLATES)
    findings = {f.name: f for f in probe(["all"], [subject], task, [parse("alpha"), parse("crop")])}
    assert {name for name, f in findings.items() if f.tables} == {"sensitivity", "noise", "unions", "size"}
    why = "Does not apply: theirs is another library's model; this needs one of alpha_clip.load."
    assert {findings[name].verdict for name in ("identity", "graded", "attention")} == {why}
    with pytest.raises(ValueError, match=r"theirs is another library's model; this needs one of alpha_clip\.load"):
        examine(subject, scenes)


@pytest.fixture
def wide() -> Task:
    """Of 4 wide pictures; in one the region is at the very left, which a centre crop loses."""

    def read(number: int) -> Sample:
        pixels = np.random.default_rng(number).integers(0, 255, (60, 180, 3), dtype=np.uint8)
        mask = np.zeros((1, 60, 180), np.float32)
        left = 0 if number == 1 else 42  # the centre is from 60 to 120
        mask[0, 10:40, left : left + 20] = 1
        return Sample(str(number), Image.fromarray(pixels), mask, (Naming(0, ("a cat", "a dog"), 0),))

    return Task("wide", [str(i) for i in range(4)], read, [Column("all")])


@pytest.mark.filterwarnings("ignore:the centre crop cuts off")
def test_probes_leave_out_what_the_run_could_not_use(tiny, wide, tmp_path):
    ways = [parse("alpha:geometry=crop"), parse("whole")]
    found = run(wide, [tiny], ways, tmp_path)
    assert list(found.unusable) == ["1"]
    assert [sample.key for sample in some_of(wide, leave_out=found.unusable)] == ["0", "2", "3"]
    sizes, wrong = probe(["size", "noise"], [tiny], wide, ways, found.unusable)
    assert sizes.tables[0].rows[0][-1].count == 3
    rows = {(row[0], row[1]): row[3:] for row in wrong.tables[0].rows}
    assert rows["exact", ""][0] is not None
    lost = re.search(
        r"3 regions.*Left out for all ways: (\d+) masks of which some way shows nothing", wrong.tables[0].note
    )
    trials = list(noise.trials(tiny, some_of(wide, leave_out=found.unusable), wide.templates, ways))
    assert lost and int(lost[1]) == 3 * 17 - len(trials) > 0
    assert all(set(trial.right) == {"alpha:geometry=crop", "whole"} for trial in trials)


@pytest.mark.filterwarnings("ignore:the centre crop cuts off")
def test_a_region_whose_exact_mask_a_way_loses_is_left_out(tiny, wide):
    trials = list(noise.trials(tiny, [wide.read(1), wide.read(2)], wide.templates, [parse("alpha:geometry=crop")]))
    assert {trial.picture for trial in trials} == {1}


def test_results_are_there_whatever_becomes_of_the_probes(wide, tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("a probe failed")

    monkeypatch.setitem(PROBES, "size", fails)
    monkeypatch.setattr(builtin, "from_arguments", lambda *_, **__: wide)
    with pytest.raises(SystemExit):
        main(["scenes", "--methods", "whole", "--probes", "size", "--device", "cpu", "--out", str(tmp_path)])
    assert "plain tiny, whole |" in (tmp_path / "results.md").read_text()


def test_a_base_of_two_models_is_asked_once(tiny, wide, tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "from_arguments", lambda *_, **__: wide)
    monkeypatch.setattr(command, "find", lambda name, *_: of(name, tiny.model, replace(tiny.base, name="plain")))
    main(["scenes", "--model", "a", "b", "--base", "plain", "--methods", "whole", "--out", str(tmp_path)])
    ways = json.loads((tmp_path / "results.json").read_text())["ways"]
    assert [way["model"] for way in ways] == ["a", "b", "plain"]


# --- attention ---


def test_class_attention_is_that_of_the_tower(tiny, scenes):
    visual = tiny.model.visual
    rgb, alpha = Preprocess(48)(scenes[0].image, scenes[0].masks, geometry="pad")
    found = attention.class_attention(visual, rgb[None], alpha)
    for layer in range(4):
        with torch.no_grad():
            weights = visual.attention(rgb[None], alpha, layer)[:, :, 0, 1:]
        assert torch.allclose(found[layer], weights / weights.sum(-1, keepdim=True), atol=1e-6)
    assert not any(block.attn._forward_pre_hooks for block in visual.transformer.blocks)


def test_the_mass_of_uniform_attention_is_the_mask_s_share_of_the_patches(scenes):
    subject = find("tiny", "cpu")
    with torch.no_grad():
        for block in subject.model.visual.transformer.blocks:
            block.attn.in_proj_weight[:256] = 0
            block.attn.in_proj_bias[:256] = 0
    found = attention.measure(subject, scenes[:2])
    assert torch.allclose(found.mask, found.area[None, :, None].expand_as(found.mask), atol=1e-6)
    assert all((values == 0).all() for values in found.follows.values())  # a mask brings no attention anywhere


def test_cover_and_mass_by_hand():
    mask = torch.full((1, 1, 4, 4), -FOREGROUND)
    mask[..., :2, :3] = FOREGROUND  # the top left patch, and half of the top right one
    cover = attention.covered(mask, 2)
    assert torch.allclose(cover, torch.tensor([[1, 0.5, 0, 0]]), atol=1e-6)
    weights = torch.tensor([0.4, 0.2, 0.3, 0.1]).view(1, 1, 1, 4)
    assert attention.mass(weights, cover).item() == pytest.approx(0.5)
    assert attention.follow(cover * 3 + 1, cover).item() == pytest.approx(1)
    assert attention.follow(-cover, cover).item() == pytest.approx(-1)


@pytest.mark.parametrize(
    ("change", "box"),  # of a mask at rows 2 to 4 and columns 4 to 8 of 16, as x0, y0, x1, y1
    [
        ("as it is", (4, 2, 8, 4)),
        ("mirrored left to right", (8, 2, 12, 4)),
        ("mirrored top to bottom", (4, 12, 8, 14)),
        ("turned by 180 degrees", (8, 12, 12, 14)),
        ("with rows and columns exchanged", (2, 4, 4, 8)),
        ("moved right by an eighth of the side", (6, 2, 10, 4)),
        ("moved left by a quarter of the side", (0, 2, 4, 4)),
        ("moved up by a quarter of the side", None),
        ("moved down by an eighth of the side", (4, 4, 8, 6)),
    ],
)
def test_changes_of_masks_do_what_they_are_called(change, box):
    alpha = torch.full((1, 1, 16, 16), -FOREGROUND)
    alpha[..., 2:4, 4:8] = FOREGROUND
    expected = torch.full_like(alpha, -FOREGROUND)
    if box:
        expected[..., box[1] : box[3], box[0] : box[2]] = FOREGROUND
    assert torch.equal(attention.CHANGES[change](alpha), expected)


def test_a_squashed_mask_is_smaller_about_the_centre():
    squashed = attention.CHANGES["squashed to 70% of its width"](torch.full((1, 1, 40, 40), FOREGROUND))
    assert squashed.shape == (1, 1, 40, 40)
    inside = squashed[0, 0] > 0
    assert inside.all(dim=0).nonzero()[:, 0].tolist() == list(range(6, 34))


# --- all of them ---


def test_the_samples_of_probes_are_spread_over_the_task_and_can_be_used(monkeypatch):
    def read(i: int) -> Sample:
        if i == 4:
            raise UnusableSample("torn")
        return Sample(str(i), Image.new("RGB", (9, 9)), np.ones((1, 9, 9), np.float32), ())

    task = Task("many", [str(i) for i in range(10)], read, [Column("all")])
    assert len(some_of(task)) == 9
    monkeypatch.setattr("alpha_clip.evaluation.probes.PICTURES", 5)
    assert [sample.key for sample in some_of(task)] == ["0", "2", "6", "8"]


def test_an_unknown_probe_is_refused(tiny):
    with pytest.raises(ValueError, match=r"there is no probe 'smell': expected all, or some of identity, "):
        probe(["smell"], [tiny], builtin.task(quick=True))


def test_the_command_writes_findings_into_the_results(tmp_path, capsys):
    command = "scenes --quick --methods whole --no-base --device cpu --probes identity unions --out"
    main([*command.split(), str(tmp_path)])
    written, printed = (tmp_path / "results.md").read_text(), capsys.readouterr().out
    for title in (identity.TITLE, unions.TITLE):
        assert f"## {title}\n" in written
        assert f"\n{title}\n" in printed


# --- the doctor ---


@pytest.fixture(scope="module")
def breaking():
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("broken")
    sys.path.remove(str(EXAMPLES))


NAMED = {
    "healthy": ["as it is", "alpha weights of a third", "noise of 0.2"],
    "mask-blind": ["alpha weights of a twentieth", "alpha weights of 0"],
    "silhouette reader": ["colours of a tenth", "no picture"],
    "global drift": ["noise of 0.4", "noise of 0.6"],
    "incompatible tower": [
        "noise of 1",
        "blocks shuffled",
        "image features of another space",
        "4 heads for 2",
        "text features of another space",
        "text tower shuffled",
    ],
    "misaligned mask": [
        "mask mirrored left to right",
        "mask mirrored top to bottom",
        "mask turned by 180 degrees",
        "mask with rows and columns exchanged",
        "mask squashed to 70% of its width",
        "mask moved left by an eighth of the side",
        "mask moved down by a quarter of the side",
    ],
}


@pytest.mark.parametrize(("name", "broken"), [(name, broken) for name, all_ in NAMED.items() for broken in all_])
def test_the_doctor_names_what_is_wrong(tiny, doctor_scenes, breaking, name, broken):
    assert breaking.BROKEN[broken][0] == name
    scenes = doctor_scenes[:12] if name in ("misaligned mask", "silhouette reader") else doctor_scenes
    found = examine(breaking.broken(broken, tiny), scenes)
    assert found.name == name
    assert not found.unclear
    for failure in found.failures:
        assert failure.remedy in found.text()


def test_the_doctor_says_what_the_mask_became(tiny, doctor_scenes, breaking):
    for change in ("mirrored top to bottom", "squashed to 70% of its height", "moved up by an eighth of the side"):
        (failure,) = examine(breaking.broken(f"mask {change}", tiny), doctor_scenes[:12]).failures
        assert f"attention follows the mask {change} " in failure.because


def test_blindness_and_drift_are_both_named(tiny, doctor_scenes, breaking):
    noisy = breaking.broken("noise of 0.4", tiny)
    with torch.no_grad():
        noisy.model.visual.conv1_alpha.weight.zero_()
    assert [f.name for f in examine(noisy, doctor_scenes).failures] == ["global drift", "mask-blind"]


def test_a_model_that_does_not_know_drawings_is_not_called_ill(doctor_scenes):
    """A random tower stands in for it: no text names its features, which it is not to be blamed for."""
    torch.manual_seed(1)
    model = CLIP(64, 48, 2, 128, 8, 77, 49408, 128, 1, 2).eval()
    torch.nn.init.normal_(model.visual.conv1_alpha.weight, std=0.1)
    found = examine(own_base(of("other", model)), doctor_scenes)
    assert "incompatible tower" not in [f.name for f in found.failures]
    assert any("image features do not know these drawings apart" in what for what in found.unclear)
    assert "cannot tell: whether the text tower fits" in found.text()


def test_without_a_base_the_doctor_cannot_tell_of_drift(tiny, doctor_scenes):
    found = examine(replace(tiny, base=None), doctor_scenes[:12])
    assert found.name == "healthy, as far as can be told"
    assert "there is no plain CLIP to compare it with" in found.unclear[0]


def test_where_attention_follows_nothing_the_doctor_cannot_tell(tiny, doctor_scenes):
    found = examine(tiny, doctor_scenes[:12], Thresholds(follows=0.99))
    assert "attention follows them nowhere" in found.unclear[0]


def test_the_thresholds_decide(tiny, doctor_scenes):
    strict = Thresholds(kept=0.99, blind=0.9)
    assert [f.name for f in examine(tiny, doctor_scenes[:12], strict).failures] == ["global drift", "mask-blind"]


def test_the_doctor_refuses_a_model_without_alpha(tiny):
    with pytest.raises(ValueError, match=r"plain tiny takes no masks: the doctor looks at models of alpha_clip.load"):
        examine(tiny.base)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_model_whose_features_say_nothing_is_not_healthy(tiny, doctor_scenes, breaking, value):
    dead = breaking.broken("as it is", tiny)
    with torch.no_grad():
        dead.model.visual.proj.fill_(value)
    (failure,) = examine(dead, doctor_scenes[:8]).failures
    assert "features are not finite, or the same for all" in failure.because


def test_the_doctor_says_what_no_file_confirms(tiny, doctor_scenes, breaking):
    unsure = breaking.broken("as it is", tiny)
    unsure.model.confirmed = False
    found = examine(unsure, doctor_scenes[:8])
    assert found.name == "healthy, as far as can be told"
    assert "whether heads and activation are right" in found.unclear[0]


def test_the_doctor_needs_some_pictures(tiny, doctor_scenes):
    nameless = [replace(sample, questions=()) for sample in doctor_scenes]
    with pytest.raises(ValueError, match=r"there are 7 samples with named regions, expected 8 or more"):
        examine(tiny, doctor_scenes[:7] + nameless)


def run_doctor(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alpha_clip.evaluation", "doctor", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_doctor_s_exit_status(monkeypatch, capsys, breaking):
    healthy = run_doctor("tiny", "--device", "cpu")
    assert (healthy.returncode, healthy.stderr) == (0, "")
    assert re.search(r"^cosine of alpha = 1 to plain CLIP +0\.9\d\d$", healthy.stdout, re.M)
    assert healthy.stdout.endswith("\n-> healthy\n")
    real = doctor_module.find
    monkeypatch.setattr(doctor_module, "find", lambda *args: breaking.broken("no picture", real(*args)))
    with pytest.raises(SystemExit) as end:
        main(["doctor", "tiny", "--device", "cpu"])
    assert end.value.code == 1
    assert "What to do: train with boxes" in capsys.readouterr().out


@pytest.mark.parametrize("args", [["nothing-of-that-name"], [], ["tiny", "--device", "cpu", "--base", "no-such-base"]])
def test_the_doctor_s_bad_usage(args, capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor", *args])
    assert end.value.code == 2
    assert "error" in capsys.readouterr().err
