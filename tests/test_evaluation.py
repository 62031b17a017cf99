"""The core of alpha_clip.evaluation: what is asked, how it is answered, and what the figures are."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import alpha_clip
from alpha_clip.evaluation import (
    Column,
    Naming,
    Referring,
    Sample,
    Task,
    UnusableSample,
    builtin,
    find,
    metrics,
    parse,
    subjects,
)
from alpha_clip.evaluation import run as run_task
from alpha_clip.evaluation.__main__ import main
from alpha_clip.evaluation.metrics import Estimate, Hits
from alpha_clip.evaluation.records import Answer, Journal, Record
from alpha_clip.evaluation.run import ranking
from alpha_clip.evaluation.subjects import Subject
from alpha_clip.evaluation.tables import Table
from alpha_clip.evaluation.ways import look
from alpha_clip.hashes import fingerprint
from alpha_clip.integrations import add_alpha, alpha_weight
from alpha_clip.scenes import BACKGROUNDS, HELD_OUT, STYLES, draw_scene

SUM_OF_THREE = "together: tiny, other, third"


@pytest.fixture(scope="module")
def tiny() -> Subject:
    return find("tiny", "cpu")


def small_task(count: int = 3, read=None) -> Task:
    keys = [f"plain {i}" for i in range(count)]
    return Task("few", keys, read or (lambda i: builtin.sample("plain", i)), [Column("all")], builtin.TEMPLATES)


def answer(right: str, rank: int, group: str = "") -> Answer:
    return Answer(right, rank, 0, group)


def record(key: str, *answers: Answer, model: str = "m", way: str = "w") -> Record:
    return Record(key, model, way, answers, 1, 1, 0.1)


# --- ways ---


def test_a_way_is_parsed():
    way = parse("crop:context=2 + 0.5*alpha:geometry=crop")
    assert [(p.method, p.options, p.weight) for p in way.parts] == [
        ("crop", {"context": 2}, 1.0),
        ("alpha", {"geometry": "crop"}, 0.5),
    ]


@pytest.mark.parametrize("text", ["", "crops", "crop:", "2crop", "alpha+", "x*crop"])
def test_what_is_no_way_is_refused(text):
    with pytest.raises(ValueError, match=r"expected a method.*the methods are alpha, whole, crop"):
        parse(text)


def test_an_option_needs_a_value():
    with pytest.raises(ValueError, match=r"has the option '2', expected name=value"):
        parse("crop:2")


def test_looking_gives_what_embed_regions_gives(tiny):
    sample = builtin.sample("plain", 0)
    for name in sorted({*alpha_clip.regions.METHODS} - {"maskinversion"}):  # which is for open_clip alone
        seen = look(tiny.model, sample.image, sample.masks, parse(name))
        assert torch.equal(seen.features[0], alpha_clip.embed_regions(tiny.model, sample.image, sample.masks, name))


@pytest.mark.parametrize(("way", "forwards"), [("alpha", 1), ("whole", 1 / 3), ("pool", 1 / 3), ("alpha+crop", 2)])
def test_forwards_are_counted(tiny, way, forwards):
    sample = builtin.sample("plain", 0)
    masks = sample.masks[:1].repeat(3, axis=0)
    assert look(tiny.model, sample.image, masks, parse(way), chunk=2).forwards == 3 * forwards


def test_scores_of_several_are_summed_by_weight(tiny):
    sample, texts = builtin.sample("plain", 0), tiny.texts(["a cat", "a dog"])
    alone = [look(tiny.model, sample.image, sample.masks, parse(name)).scores(texts) for name in ("alpha", "crop")]
    both = look(tiny.model, sample.image, sample.masks, parse("alpha + 0.25*crop")).scores(texts)
    torch.testing.assert_close(both, alone[0] + 0.25 * alone[1])


def test_the_squashed_mask_lies_right_on_a_square_and_wrong_beside_one(tiny):
    square = builtin.sample("plain", 1)
    aligned, squashed = (parse(name) for name in ("alpha:geometry=crop", "squashed_mask"))
    one, other = (look(tiny.model, square.image, square.masks, way).features[0] for way in (aligned, squashed))
    torch.testing.assert_close(one, other)
    wide = draw_scene(0, (96, 192), objects=(1, 1), scale=(0.5, 0.6))
    picture = Image.fromarray(wide.image)
    centre = np.zeros((1, 96, 192), np.float32)
    centre[:, 20:70, 60:130] = 1
    one, other = (look(tiny.model, picture, centre, way).features[0] for way in (aligned, squashed))
    assert not torch.allclose(one, other, atol=1e-3)


def test_the_blurred_view_is_alpha_on_a_picture_out_of_focus(tiny):
    sample = builtin.sample("plain", 2)
    sharp, soft = (
        look(tiny.model, sample.image, sample.masks, parse(f"alpha_blurred:sigma={sigma}")).features[0]
        for sigma in (0.01, 100)
    )
    torch.testing.assert_close(sharp, look(tiny.model, sample.image, sample.masks, parse("alpha")).features[0])
    assert not torch.allclose(sharp, soft, atol=1e-3)


# --- subjects ---


def test_a_subject_encodes_each_text_once(tiny):
    calls = []
    subject = Subject("s", tiny.model, lambda texts: calls.append(texts) or tiny.encode(texts))
    found = subject.texts(["a cat", "a dog", "a cat"])
    assert torch.equal(found[0], found[2]) and torch.equal(subject.texts(["a dog"])[0], found[1])
    assert calls == [["a cat", "a dog"]]


def test_names_are_those_of_zero_shot_classifier(tiny):
    templates = ("a photo of a {}.", "a drawing of a {}")
    expected = alpha_clip.zero_shot_classifier(tiny.model, ["cat", "dog"], templates)
    torch.testing.assert_close(tiny.names(["cat", "dog"], templates), expected)


def test_the_base_of_a_name_is_the_same_without_alpha(tiny):
    with pytest.warns(UserWarning, match="is plain CLIP"):
        plain, _ = alpha_clip.load("tiny", "cpu", alpha_vision_ckpt_pth=None)
    assert tiny.takes_masks and not tiny.base.takes_masks
    assert tiny.base.name == "plain tiny"
    assert tiny.base.identity["weights"] == fingerprint(plain) != tiny.identity["weights"]


def test_a_tuned_file_has_no_base_but_one_that_is_named(tiny, tmp_path):
    alpha_clip.save(tiny.model, tmp_path / "tuned")
    assert find(str(tmp_path / "tuned"), "cpu").base is None
    assert find(str(tmp_path / "tuned"), "cpu", base="tiny+scenes").base.identity == {
        "name": "tiny+scenes",
        "weights": tiny.identity["weights"],
    }


def test_a_tag_stands_behind_a_plus(tiny):
    assert find("tiny+scenes", "cpu").identity["weights"] == tiny.identity["weights"]


def test_a_way_that_needs_masks_does_not_fit_a_plain_model(tiny):
    assert parse("alpha").fits(tiny) and not parse("crop+alpha").fits(tiny.base) and parse("crop").fits(tiny.base)


def test_models_of_open_clip_read_and_see_as_open_clip_does():
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    subject = find("open_clip:ViT-B-32-quickgelu", "cpu")
    words = open_clip.get_tokenizer("ViT-B-32-quickgelu")
    with torch.no_grad():
        expected = F.normalize(subject.model.encode_text(words(["a cat", "two dogs"])), dim=-1)
    torch.testing.assert_close(subject.texts(["a cat", "two dogs"]), expected)
    assert not subject.takes_masks


@pytest.mark.parametrize("with_alpha", [False, True])
def test_models_of_transformers_are_read_from_their_folder(tmp_path, with_alpha):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "cat</w>": 3}
    config = transformers.CLIPConfig(
        text_config=sizes | {"vocab_size": 4, "eos_token_id": 1, "bos_token_id": 0, "max_position_embeddings": 8},
        vision_config=sizes | {"image_size": 32, "patch_size": 16},
        projection_dim=32,
    )
    model = transformers.CLIPModel(config)
    if with_alpha:
        torch.nn.init.normal_(alpha_weight(add_alpha(model)), std=0.05)
    model.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(tmp_path)
    subject = find(f"hf:{tmp_path}", "cpu")
    assert subject.texts(["a", "a a"]).shape == (2, 32)
    sample = builtin.sample("plain", 0)
    assert look(subject.model, sample.image, sample.masks, parse("crop")).features[0].shape == (len(sample.masks), 32)
    assert parse("alpha").fits(subject) == with_alpha
    if with_alpha:
        seen = look(subject.model, sample.image, sample.masks, parse("alpha")).features[0]
        assert not torch.allclose(seen[0], seen[1], atol=1e-3)
        torch.testing.assert_close(subject.texts(["a"]), find_plain_texts(model, tmp_path, "a"))
    with pytest.raises(ValueError, match="another library's model, which is compared with no plain CLIP: leave --base"):
        find(f"hf:{tmp_path}", "cpu", base="tiny")


def find_plain_texts(model, folder, text: str) -> torch.Tensor:
    """As the documentation of transformers has it."""
    transformers = pytest.importorskip("transformers")
    ids = transformers.AutoTokenizer.from_pretrained(folder)([text], return_tensors="pt")
    with torch.no_grad():
        found = model.eval().get_text_features(**ids)
    return F.normalize(getattr(found, "pooler_output", found), dim=-1)


# --- answers ---


def test_ranking_is_from_high_to_low():
    assert ranking(torch.tensor([0.1, 0.3, -0.2]), "any") == [1, 0, 2]


def test_equals_are_ranked_by_lot_and_always_alike():
    firsts = [ranking(torch.zeros(4), str(i))[0] for i in range(400)]
    assert firsts == [ranking(torch.zeros(4), str(i))[0] for i in range(400)]
    assert min(np.bincount(firsts)) > 70


def test_scores_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="not finite: load it with dtype"):
        ranking(torch.tensor([0.0, float("nan")]), "any")


def test_a_region_is_named_and_a_phrase_finds_its_region(tmp_path):
    """Regions are told by their colour, and the model's features are the mean colour."""
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    image.paste((0, 0, 255), (32, 0, 64, 64))
    masks = np.zeros((2, 64, 64), np.float32)
    masks[0, :, :32] = masks[1, :, 32:] = 1
    names = ("blue", "red")
    questions = (
        Naming(0, names, 1, "name"),
        Naming(1, names, 1, "name"),
        Referring("blue", frozenset([1]), "refer"),
        Referring("blue", frozenset([0]), "refer", (0,)),
        Referring("green", frozenset(), "refer"),
    )
    columns = [Column("name", ("name",)), Column("top 2", ("name",), 2), Column("refer", ("refer",))]
    task = Task("colours", ["one"], lambda _: Sample("one", image, masks, questions), columns, ("{}",))
    found = run_task(task, [colour_subject()], [parse("crop:context=1")], tmp_path)
    (one,) = found.records
    assert [(a.right, a.rank, a.region) for a in one.answers] == [
        ("red", 0, 0),
        ("red", 1, 1),
        ("blue", 0, 1),
        ("blue", 0, 0),
        ("green", 2, one.answers[4].region),
    ]
    assert one.answers[1].top[0] == "blue"
    assert [cell.value for cell in found.table().rows[0][1:4]] == [0.5, 1.0, pytest.approx(2 / 3)]


class Colour(alpha_clip.model.CLIP):
    """Its image features are the mean of each channel, red as high as blue and green."""

    def __init__(self) -> None:
        super().__init__(3, 32, 1, 64, 16, 77, 49408, 64, 1, 1)

    def encode_image(self, image, alpha=None, *, batch=None):
        return image.mean((2, 3)) - image.mean((1, 2, 3))[:, None]


def colour_subject() -> Subject:
    shown = {"red": [1.0, 0, 0], "green": [0, 1.0, 0], "blue": [0, 0, 1.0]}
    return Subject("colour", Colour(), lambda texts: torch.tensor([shown[text] for text in texts]) - 1 / 3)


# --- runs ---


def test_a_run_is_continued_and_reads_only_what_is_missing(tiny, tmp_path):
    first = run_task(small_task(2), [tiny], [parse("alpha")], tmp_path)
    read = []

    def reading(i: int) -> Sample:
        read.append(i)
        return builtin.sample("plain", i)

    again = run_task(small_task(3, reading), [tiny], [parse("alpha")], tmp_path)
    assert read == [2]
    assert again.records[:2] == first.records
    more = run_task(small_task(3), [tiny], [parse("alpha"), parse("crop")], tmp_path)
    assert len(more.records) == 6 and len({r.id for r in more.records}) == 6
    only = run_task(small_task(3, reading), [tiny], [parse("crop")], tmp_path)
    assert read == [2] and {r.way for r in only.records} == {"crop"}


def test_half_a_line_of_a_killed_run_is_dropped(tiny, tmp_path):
    whole = run_task(small_task(), [tiny], [parse("alpha")], tmp_path / "whole")
    cut = tmp_path / "cut"
    run_task(small_task(), [tiny], [parse("alpha")], cut)
    path = cut / "records.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert len(list(Journal(cut, {}).read())) == 2
    again = run_task(small_task(), [tiny], [parse("alpha")], cut)
    assert [r.answers for r in again.records] == [r.answers for r in whole.records]


def test_a_journal_of_nothing_but_half_a_line_is_empty(tmp_path):
    (tmp_path / "records.jsonl").write_text('{"key"')
    assert list(Journal(tmp_path, {}).read()) == []
    assert (tmp_path / "records.jsonl").read_bytes() == b""


def test_a_folder_of_another_run_is_refused(tiny, tmp_path):
    run_task(small_task(), [tiny], [parse("alpha")], tmp_path)
    other = Task("other", ["plain 0"], lambda i: builtin.sample("plain", i), [Column("all")])
    with pytest.raises(ValueError, match="holds a run with another task: choose another folder"):
        run_task(other, [tiny], [parse("alpha")], tmp_path)
    impostor = Subject("tiny", tiny.base.model, tiny.encode, identity={"weights": "other"})
    with pytest.raises(ValueError, match="another model tiny"):
        run_task(small_task(), [impostor], [parse("crop")], tmp_path)


def test_a_second_model_joins_a_folder(tiny, tmp_path):
    run_task(small_task(), [tiny], [parse("crop")], tmp_path)
    found = run_task(small_task(), [tiny, tiny.base], [parse("crop")], tmp_path)
    assert found.ways() == [("tiny", "crop"), ("plain tiny", "crop")]


def test_what_comes_twice_is_refused(tiny, tmp_path):
    double = Task("double", ["a", "b", "a"], lambda i: builtin.sample("plain", i), [Column("all")])
    with pytest.raises(ValueError, match="1 of the keys of the task double come more than once, such as 'a': give"):
        run_task(double, [tiny], [parse("alpha")], tmp_path)
    with pytest.raises(ValueError, match="1 of the names of models come more than once, such as 'tiny'"):
        run_task(small_task(), [tiny, tiny], [parse("alpha")], tmp_path)
    assert not list(tmp_path.iterdir())


def test_samples_that_cannot_be_used_are_told(tiny, tmp_path):
    def reading(i: int) -> Sample:
        if i == 1:
            raise UnusableSample("its picture is broken")
        return builtin.sample("plain", i)

    found = run_task(small_task(3, reading), [tiny], [parse("crop")], tmp_path)
    assert found.unusable == {"plain 1": "its picture is broken"}
    assert {r.key for r in found.records} == {"plain 0", "plain 2"}


def test_a_run_of_unusable_samples_alone_is_an_error(tiny, tmp_path):
    def reading(i: int) -> Sample:
        raise UnusableSample("no picture")

    with pytest.raises(ValueError, match="none of 3 samples can be used; the first: no picture"):
        run_task(small_task(3, reading), [tiny], [parse("crop")], tmp_path)


def test_models_without_masks_alone_cannot_be_asked_by_mask(tiny, tmp_path):
    with pytest.raises(ValueError, match="none of the models can look in alpha: add a way such as 'crop'"):
        run_task(small_task(), [tiny.base], [parse("alpha")], tmp_path)


@pytest.fixture
def others(tiny) -> list[Subject]:
    """Two more models, with other image towers."""
    found = []
    for name in ("other", "third"):
        model = copy.deepcopy(tiny.model)
        with torch.no_grad():
            model.visual.proj.add_(0.3 * torch.randn_like(model.visual.proj))
        found.append(subjects.of(name, model))
    return found


def test_together_is_the_sum_of_the_models_scores(tiny, others, tmp_path):
    sample = builtin.sample("plain", 3)
    task = small_task(1, lambda _: sample)
    found = run_task(task, [tiny, others[0], tiny.base], [parse("crop")], tmp_path, together=True)
    (both,) = found.of("together: tiny, other", "crop")
    scores = [
        look(s.model, sample.image, sample.masks, parse("crop")).scores(s.names(builtin.NAMES, builtin.TEMPLATES))
        for s in (tiny, others[0])
    ]
    best = (scores[0] + scores[1]).argmax(dim=1).tolist()
    named = [a.top[0] for a in both.answers if a.top]
    assert named == [builtin.NAMES[i] for i in best]
    assert both.forwards == 2 * len(sample.masks)  # the plain CLIP is for comparison


def test_a_sum_is_of_the_models_that_are_named_now(tiny, others, tmp_path):
    ways = [parse("crop")]
    run_task(small_task(), [tiny, others[0]], ways, tmp_path / "grown", together=True)
    grown = run_task(small_task(), [tiny, *others], ways, tmp_path / "grown", together=True)
    fresh = run_task(small_task(), [tiny, *others], ways, tmp_path / "fresh", together=True)
    assert grown.ways() == [("tiny", "crop"), ("other", "crop"), ("third", "crop"), (SUM_OF_THREE, "crop")]
    assert {r.id: r.answers for r in grown.records} == {r.id: r.answers for r in fresh.records}
    assert all(r.forwards == 3 * r.regions for r in grown.of(SUM_OF_THREE, "crop"))


def test_a_sum_can_come_later(tiny, others, tmp_path):
    both, ways = [tiny, others[0], tiny.base], [parse("alpha"), parse("crop")]
    run_task(small_task(), both, ways, tmp_path)
    found = run_task(small_task(), both, ways, tmp_path, together=True)
    assert [way for model, way in found.ways() if model == "together: tiny, other"] == ["alpha", "crop"]
    again = Task("few", [f"plain {i}" for i in range(3)], refuse_to_read, [Column("all")], builtin.TEMPLATES)
    assert run_task(again, both, ways, tmp_path, together=True).ways() == found.ways()


def refuse_to_read(number: int) -> Sample:
    raise AssertionError(f"sample {number} was read again")


def test_sums_are_of_ways_that_all_can_look_in(tiny, others, tmp_path):
    plain = replace(tiny.base, name="plain")
    found = run_task(small_task(), [tiny, plain], [parse("alpha"), parse("crop")], tmp_path, together=True)
    assert found.ways() == [("tiny", "alpha"), ("tiny", "crop"), ("plain", "crop"), ("together: tiny, plain", "crop")]
    with pytest.raises(ValueError, match="no way is for all of tiny, plain, whose scores are to be summed: add a way"):
        run_task(small_task(), [tiny, plain], [parse("alpha")], tmp_path, together=True)
    with pytest.raises(ValueError, match="one model to sum the scores of, tiny: name another, or leave --together out"):
        run_task(small_task(), [tiny, tiny.base], [parse("crop")], tmp_path, together=True)


# --- figures ---


def test_shares_by_question_and_by_class():
    records = [record("a", answer("cat", 0), answer("cat", 0), answer("dog", 3)), record("b", answer("cat", 1))]
    keys = {"a": 0, "b": 1}
    assert metrics.estimate(metrics.hits(records, Column("", k=1), keys)).value == 0.5
    assert metrics.estimate(metrics.hits(records, Column("", k=2), keys)).value == 0.75
    by_class = metrics.estimate(metrics.hits(records, Column("", per_class=True), keys))
    assert by_class.value == pytest.approx((2 / 3 + 0) / 2)


def test_columns_count_their_groups():
    records = [record("a", answer("cat", 0, "x"), answer("dog", 1, "y"))]
    assert metrics.estimate(metrics.hits(records, Column("", ("x",)), {"a": 0})).value == 1
    assert metrics.estimate(metrics.hits(records, Column("", ("z",)), {"a": 0})) is None


def test_the_interval_is_that_of_a_mean_over_pictures():
    rng = np.random.default_rng(0)
    answered = rng.random(400) < 0.7
    found = metrics.estimate(Hits(np.arange(400), np.zeros(400, np.int64), answered))
    half = 1.96 * np.sqrt(answered.mean() * (1 - answered.mean()) / 400)
    assert (found.low, found.high) == pytest.approx((answered.mean() - half, answered.mean() + half), abs=0.006)


def test_questions_of_one_picture_are_drawn_together():
    """Ten questions of a picture that are all alike are worth one."""
    answered = np.random.default_rng(0).random(40) < 0.5
    one = metrics.estimate(Hits(np.arange(40), np.zeros(40, np.int64), answered))
    ten = metrics.estimate(Hits(np.arange(40).repeat(10), np.zeros(400, np.int64), answered.repeat(10)))
    assert (one.value, one.low, one.high) == pytest.approx((ten.value, ten.low, ten.high))


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    hard = rng.random(300)
    one, other = hard < 0.6, hard < 0.55  # right on the same pictures, but for a few
    classes = np.zeros(300, np.int64)
    paired = metrics.difference(Hits(np.arange(300), classes, one), Hits(np.arange(300), classes, other))
    assert paired.value == pytest.approx(one.mean() - other.mean())
    assert paired.low > 0  # though the intervals of the shares overlap
    assert metrics.estimate(Hits(np.arange(300), classes, one)).low < other.mean()


def test_differences_of_different_questions_are_refused():
    classes, right = np.zeros(3, np.int64), np.ones(3, bool)
    with pytest.raises(ValueError, match="different questions: compare ways on the same samples"):
        metrics.difference(Hits(np.arange(3), classes, right), Hits(np.arange(1, 4), classes, right))


def test_a_table_has_the_best_in_bold():
    low, high = Estimate(0.25, 0.2, 0.3), Estimate(0.5, 0.4, 0.6)
    table = Table("T", ["way", "share", "cost"], [["a", low, "1x"], ["b", high, "2x"], ["c", None, "1x"]], "A note.")
    assert table.markdown() == (
        "### T\n\n| way | share | cost |\n|---|---|---|\n| a | 25.0% [20.0%, 30.0%] | 1x |\n"
        "| b | **50.0% [40.0%, 60.0%]** | 2x |\n| c |  | 1x |\n\nA note."
    )


# --- the built-in benchmark ---


def test_the_benchmark_is_of_a_thousand_scenes_and_a_tenth_is_quick():
    assert len(builtin.task().keys) == 1000 == len(set(builtin.task().keys))
    assert len(builtin.task(quick=True).keys) == 100
    assert set(builtin.task(quick=True).keys) < set(builtin.task().keys)


@pytest.mark.parametrize("name", builtin.SETS)
def test_scenes_of_a_set_are_the_same_at_all_times_and_others_for_validation(name):
    one, again, other = (
        builtin.sample(name, 7, seed) for seed in (builtin.FIRST_SEED,) * 2 + (builtin.VALIDATION_SEED,)
    )
    assert one.image.tobytes() == again.image.tobytes() and one.questions == again.questions
    assert one.image.tobytes() != other.image.tobytes()
    kinds = {column.groups[0] for column in builtin.task(sets=[name]).columns}
    assert all((q.group or one.group) in kinds for q in one.questions)


def test_two_objects_share_a_box_in_the_set_overlap():
    for i in range(20):
        masks = builtin.sample("overlap", i).masks > 0.5
        boxes = [alpha_clip.transforms.mask_box(mask) for mask in masks]
        (ax, ay, bx, by), (cx, cy, dx, dy) = boxes
        shared = max(0, min(bx, dx) - max(ax, cx)) * max(0, min(by, dy) - max(ay, cy))
        assert shared >= 0.6 * min((bx - ax) * (by - ay), (dx - cx) * (dy - cy))


def test_phrases_of_twins_are_true_of_one_alone():
    kinds = set()
    for i in range(60):
        sample = builtin.sample("twins", i)
        for question in sample.questions:
            (right,) = question.answers
            (wrong,) = set(question.regions) - {right}
            kinds.add(question.group)
            centres = [np.argwhere(sample.masks[k] > 0.5).mean(0)[1] for k in (right, wrong)]
            if "on the left" in question.phrase:
                assert centres[0] < centres[1]
            if "on the right" in question.phrase:
                assert centres[0] > centres[1]
            if " large " in question.phrase:
                assert sample.masks[right].sum() > sample.masks[wrong].sum() * 0.8
    assert kinds == {"by colour", "by size", "by side"}


@pytest.mark.parametrize("style", STYLES[1:])
def test_styles_are_those_of_the_sets(style):
    assert builtin.SETS[style].drawn["style"] == style


def test_held_out_nouns_small_objects_and_single_ones_are_in_their_sets():
    for i in range(20):
        held_out = builtin.sample("held-out", i)
        assert {q.names[q.answer] for q in held_out.questions} <= {builtin.with_article(noun) for noun in HELD_OUT}
        for mask in builtin.sample("small", i).masks:
            x0, y0, x1, y1 = alpha_clip.transforms.mask_box(mask)
            assert max(x1 - x0, y1 - y0) <= 0.18 * builtin.SIZE
        assert len(builtin.sample("single", i).masks) == 1


def test_backgrounds_are_named_right():
    sample = builtin.sample("background", 0)
    question = sample.questions[0]
    assert len(question.names) == len(BACKGROUNDS)
    assert question.names[question.answer].endswith(tuple(BACKGROUNDS.values()))


def test_twins_share_a_noun():
    scene = draw_scene(5, objects=(3, 3), twins=True)
    nouns = [region.noun for region in scene.regions]
    assert len(nouns) == 3 and nouns[0] == nouns[1] != nouns[2]
    with pytest.raises(ValueError, match="may be one alone: twins need 2 or more"):
        draw_scene(5, objects=(1, 3), twins=True)


# --- the command ---


def rows_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


def test_the_command_prints_a_table_and_writes_what_it_found(tmp_path, capsys):
    arguments = ["scenes", "--quick", "--methods", "alpha", "crop", "--device", "cpu", "--out", str(tmp_path)]
    main(arguments)
    rows = rows_of(capsys.readouterr().out)
    assert [row.split(" | ")[0] for row in rows] == ["| way", "| tiny, alpha", "| tiny, crop", "| plain tiny, crop"]
    assert {"run.json", "records.jsonl", "results.json", "results.md"} <= {path.name for path in tmp_path.iterdir()}
    assert rows[1] in (tmp_path / "results.md").read_text()
    main(arguments)  # reads what it wrote
    assert rows_of(capsys.readouterr().out) == rows


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scenes", "--methods", "crops"], "the methods are alpha"),
        (["scenes", "--model", "ViT-X"], "ViT-X"),
        (["scenes", "--model", "open_clip:ViT-X"], "ViT-X"),
        (["landscapes"], "invalid choice"),
    ],
)
def test_the_command_says_what_is_wrong(capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_errors_can_be_traced(tmp_path):
    with pytest.raises(RuntimeError, match="ViT-X"):
        main(["scenes", "--model", "ViT-X", "--debug"])


@pytest.mark.slow
def test_the_package_is_a_command(tmp_path):
    code = [sys.executable, "-m", "alpha_clip.evaluation", "scenes", "--model", "ViT-X"]
    done = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
