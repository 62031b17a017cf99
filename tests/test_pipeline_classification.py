"""Class folders in, shards out: the masks are of the class, and the words say more than its name."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sams import ANYTHING, SAMS
from test_pipeline import ROOT, assert_all_are_counted, blip2, contents, png, rejects, report, wait_for

import alpha_clip
from alpha_clip import rle, zero_shot_classifier
from alpha_clip.evaluation import subjects
from alpha_clip.hashes import fingerprint
from alpha_clip.pipeline import (
    AnnotateClassification,
    Apart,
    ClipCaptioner,
    ColourMaskGenerator,
    Ledger,
    SamMaskGenerator,
    Sample,
    Target,
    captioners,
    fingerprints,
    folders,
    inspect,
    mask_generators,
    run,
)
from alpha_clip.pipeline.__main__ import main
from alpha_clip.pipeline.caption import joined
from alpha_clip.pipeline.cutting import SIDE, cut_out
from alpha_clip.pipeline.filters import shares
from alpha_clip.pipeline.samples import Mask
from alpha_clip.pipeline.scoring import Best
from alpha_clip.regions import embed_regions
from alpha_clip.scenes import draw_scene
from alpha_clip.training import TrainConfig, finetune, open_data
from alpha_clip.training.check import check
from alpha_clip.training.records import BadSample
from alpha_clip.transforms import box_mask, mask_box

EXTRA = 'pip install "alpha-clip[pipeline]"'
for needed in ("filelock", "pycocotools", "scipy", "webdataset"):
    pytest.importorskip(needed, reason=EXTRA)

NOUNS = ("apple", "boat", "car", "house", "star", "tree")
SIZE = (96, 128)


# --- the captioner of given texts ---


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> Path:
    """A file with what can be said of the drawings."""
    file = tmp_path_factory.mktemp("words") / "words.txt"
    file.write_text("".join(f" {noun} \n\n" for noun in NOUNS))
    return file


def crops(count: int) -> tuple[list[str], list[Image.Image]]:
    """Nouns, and pictures of them that differ in size."""
    nouns, images = [], []
    for seed in range(count):
        scene = draw_scene(seed, 96, objects=(1, 1), nouns=NOUNS)
        nouns.append(scene.regions[0].noun)
        images.append(Image.fromarray(scene.image).crop(scene.regions[0].box))
    return nouns, images


def test_a_clip_says_the_text_that_is_nearest_to_the_picture(words):
    captioner = captioners.find(f"words:{words}")
    nouns, images = crops(40)
    said = captioner(images)
    model = subjects.find("tiny", "cpu").model
    features = [embed_regions(model, image, np.ones(image.size[::-1], bool), "whole")[0] for image in images]
    weights = zero_shot_classifier(model, NOUNS, ["{}"])
    assert said == [NOUNS[int((weights @ feature).argmax())] for feature in features]
    assert np.mean([a == b for a, b in zip(said, nouns, strict=True)]) > 0.8
    assert captioner([]) == []


def test_its_identity_tells_models_and_texts_apart(words, tmp_path):
    first = captioners.find(f"words:{words}")
    assert first.identity.startswith(f"tiny {fingerprint(subjects.find('tiny').model)}, 6 texts ")
    assert captioners.find(f"words:{words}@tiny").identity == first.identity
    subject = subjects.find("tiny")
    assert ClipCaptioner(subject, NOUNS).identity == first.identity != ClipCaptioner(subject, NOUNS[::-1]).identity
    assert ClipCaptioner(subject.base, NOUNS).identity != first.identity


def test_the_model_behind_the_at_sign_may_have_one_too(words, monkeypatch):
    asked = []
    find = subjects.find
    monkeypatch.setattr(subjects, "find", lambda name, device, **_: asked.append((name, device)) or find("tiny"))
    captioners.find(f"words:{words}@ViT-L/14@336px", "cpu")
    assert asked == [("ViT-L/14@336px", "cpu")]


@pytest.mark.parametrize("name", ["hf:", "words:", "words:@tiny", "words:file@", "blip2"])
def test_other_names_are_no_captioners(name):
    with pytest.raises(ValueError, match=f"the captioner is '{name}', expected 'hf:FOLDER', 'hf:USER/REPOSITORY'"):
        captioners.find(name)


def test_something_must_be_there_to_say(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        captioners.find(f"words:{tmp_path / 'none.txt'}")
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path / 'empty.txt'} holds no text, expected one on each line")
    ):
        captioners.find(f"words:{tmp_path / 'empty.txt'}")
    with pytest.raises(ValueError, match="texts is empty, expected what can be said"):
        ClipCaptioner(subjects.find("tiny"), [])


# --- drawn classes ---


def scene(noun: str, seed: int, objects: int = 1):
    """A drawing of one noun, or of it and others."""
    if objects == 1:
        return draw_scene(seed, SIZE, objects=(1, 1), nouns=(noun,), scale=(0.4, 0.6))
    others = tuple(other for other in NOUNS if other != noun)[: objects - 1]
    return draw_scene(seed, SIZE, objects=(objects, objects), nouns=(noun, *others), overlap=0)


def draw(root: Path, nouns: Iterable[str], seeds: Iterable[int], objects: int = 1) -> list[Path]:
    """Class folders of drawings, named by their seeds."""
    for noun in nouns:
        (root / noun).mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            Image.fromarray(scene(noun, seed, objects).image).save(root / noun / f"{seed:03d}.png")
    return folders.class_folders([root])


@pytest.fixture(scope="session")
def classes(tmp_path_factory) -> list[Path]:
    """3 classes of 10 drawings with one object."""
    return draw(tmp_path_factory.mktemp("classes"), ("car", "house", "tree"), range(10))


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> AnnotateClassification:
    """Its captioner does not know houses."""
    file = tmp_path_factory.mktemp("work") / "words.txt"
    file.write_text("\n".join(noun for noun in NOUNS if noun != "house"))
    return AnnotateClassification("colour", f"words:{file}", keep=8)


@pytest.fixture(scope="session")
def finished(work, classes, tmp_path_factory) -> Path:
    """What an uninterrupted run makes of them."""
    folder = tmp_path_factory.mktemp("finished")
    run(work, classes, folder)
    return folder


def written(folder: Path) -> list[tuple[str, Image.Image, bytes, dict]]:
    """Key, picture, its file and the record of all samples."""
    found = []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for name in sorted(name for name in files if not name.endswith(".json")):
            key = name.rpartition(".")[0]
            image = Image.open(io.BytesIO(files[name])).convert("RGB")
            found.append((key, image, files[name], json.loads(files[f"{key}.json"])))
    return found


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def object_masks(record: dict) -> dict[str, np.ndarray]:
    """The exact masks of the drawing behind a record with its background, by noun."""
    noun, seed = record["source"].removesuffix(".png").split("/")
    drawn = scene(noun, int(seed), 1 if int(seed) < 100 else 3)
    return {region.noun: region.mask > 0.5 for region in drawn.regions}


# --- what comes out is right ---


def test_masks_of_single_objects_are_nearly_the_exact_ones(classes, words, tmp_path):
    run(AnnotateClassification("colour", f"words:{words}", background="kept"), classes, tmp_path)
    best, boxes = [], []
    for *_, record in written(tmp_path):
        exact = object_masks(record)[record["class"]]
        best.append(max(iou(rle.decode(region["mask"], SIZE), exact) for region in record["regions"]))
        boxes.append(iou(box_mask(mask_box(exact), SIZE) > 0.5, exact))
    assert len(best) == report(tmp_path)["pictures"]["written"] == 30
    assert np.mean(best) > 0.8 > 0.65 > np.mean(boxes)  # 0.86: some objects have colours of the background
    assert_all_are_counted(tmp_path)


def test_the_masks_with_the_highest_scores_are_of_the_class(words, tmp_path):
    found = draw(tmp_path / "in", ("car", "tree"), range(100, 110), objects=3)
    right = {}
    for keep in (10, 1000):
        run(
            AnnotateClassification("colour", f"words:{words}", keep=keep, background="kept"),
            found,
            tmp_path / f"{keep}",
        )
        right[keep] = [
            iou(rle.decode(region["mask"], SIZE), object_masks(record)[record["class"]]) > 0.5
            for *_, record in written(tmp_path / f"{keep}")
            for region in record["regions"]
        ]
    assert len(right[10]) == 20 and len(right[1000]) > 40
    assert np.mean(right[10]) > 0.75 > 0.5 > np.mean(right[1000])
    assert report(tmp_path / "10")["regions"]["not among the best 10 of the class"] == len(right[1000]) - 20


def test_objects_stand_alone_in_the_middle_of_a_white_square(classes, finished):
    for key, image, _, record in written(finished):
        (region,) = record["regions"]
        mask = rle.decode(region["mask"], image.size[::-1])
        pixels = np.asarray(image)
        assert (pixels[~mask] == 255).all() and image.width == image.height
        x0, y0, x1, y1 = region["box"]
        assert abs(x0 + x1 - image.width) <= 1 and abs(y0 + y1 - image.height) <= 1
        assert image.width == round(1.5 * max(x1 - x0, y1 - y0))
        whole = np.asarray(Image.open(classes[0].parent / record["source"]))
        colours = {tuple(colour) for colour in whole.reshape(-1, 3).tolist()}
        assert {tuple(colour) for colour in pixels[mask].tolist()} <= colours
        noun, seed = record["source"].removesuffix(".png").split("/")
        assert re.fullmatch(rf"{noun}/00000{int(seed)}-\d", key) and record["class"] == noun


def test_with_the_background_kept_pictures_are_those_that_came(classes, work, finished, tmp_path):
    kept = AnnotateClassification("colour", work.captioner, keep=8, background="kept")
    run(kept, classes, tmp_path)
    said: dict[str, list] = {}
    for *_, record in written(finished):
        said.setdefault(record["source"], []).extend((r["phrase"], r["score"]) for r in record["regions"])
    found = written(tmp_path)
    for _, _, data, record in found:
        assert data == (classes[0].parent / record["source"]).read_bytes()
        assert record["caption"] == record["class"]
        assert [(r["phrase"], r["score"]) for r in record["regions"]] == said[record["source"]]
    assert len(found) == len(said) == report(tmp_path)["pictures"]["written"]
    assert report(tmp_path)["regions"] == report(finished)["regions"]


def test_scores_are_cosines_of_the_object_alone_and_the_name(finished):
    subject = subjects.find("tiny", "cpu")
    for _, image, _, record in written(finished)[:6]:
        whole = embed_regions(subject.model, image, np.ones(image.size[::-1], bool), "whole")[0]
        name = zero_shot_classifier(subject.model, [record["class"]])[0]
        assert record["regions"][0]["score"] == pytest.approx(float(whole @ name), abs=1e-4)


def test_texts_are_what_the_captioner_says_joined_with_the_name(finished, work):
    found = written(finished)
    captioner = captioners.find(work.captioner)
    said = captioner([image for _, image, *_ in found])
    texts = [record["regions"][0]["phrase"] for *_, record in found]
    assert texts == [joined(text, record["class"]) for text, (*_, record) in zip(said, found, strict=True)]
    assert [record["caption"] for *_, record in found] == texts
    assert all(text.endswith(", probably house") for text in texts[8:16]) and texts[-1] == "tree"


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("a fish with an open mouth.", "a fish with an open mouth, probably tench"),
        ("A Tench on grass", "A Tench on grass"),
        ("two tenches", "two tenches, probably tench"),
        ("a fish on a white background", "a fish, probably tench"),
        ("a fish is cut out of a white background.", "a fish, probably tench"),
        ("a fish in front of a plain white background, seen from above", "a fish, seen from above, probably tench"),
        ("a white background with a fish", "a fish, probably tench"),
        ("a white background", "tench"),
        ("a white fish", "a white fish, probably tench"),
    ],
)
def test_captions_and_names(caption, text):
    assert joined(caption, "tench") == text


@pytest.mark.filterwarnings("ignore:this model has never read")
@pytest.mark.filterwarnings("ignore:the share of graded masks is not reached")
def test_checker_trainer_and_page_read_the_shards_as_they_are(finished, tmp_path):
    found = check(open_data(finished))
    assert found.problems == {} and found.read == found.regions == report(finished)["regions"]["written"] == 24
    model, _ = alpha_clip.load("tiny", device="cpu")
    finetune(model, open_data(finished), TrainConfig(steps=2, batch_size=8, workers=0), tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all() and len(losses) >= 2
    page = inspect(finished, samples=5)
    assert page.read_text().count("<img src='data:image/jpeg;base64,") == 5
    page.unlink()


# --- masks ---


def test_the_colour_generator_finds_parts_exactly_and_nothing_in_one_colour():
    pixels = np.full((60, 80, 3), 200, np.uint8)
    pixels[10:30, 20:45] = (200, 30, 30)
    pixels[40:55, 50:60] = (200, 30, 30)
    pixels[50, 10] = (30, 30, 200)  # too small
    first, second = ColourMaskGenerator()(Image.fromarray(pixels))
    expected = np.zeros((2, 60, 80), bool)
    expected[0, 10:30, 20:45] = expected[1, 40:55, 50:60] = True
    assert (first == expected[0]).all() and (second == expected[1]).all()
    assert list(ColourMaskGenerator()(Image.new("RGB", (60, 80), "white"))) == []


def test_masks_of_a_large_picture_are_as_large_as_it():
    pixels = np.full((300, 2000, 3), 200, np.uint8)
    pixels[100:200, 600:1000] = (200, 30, 30)
    (mask,) = ColourMaskGenerator()(Image.fromarray(pixels))
    assert mask.shape == (300, 2000) and iou(mask, (pixels == (200, 30, 30)).all(-1)) > 0.9


@pytest.mark.parametrize("kind", SAMS)
def test_sam_is_asked_at_a_grid_of_points(kind, tmp_path):
    SAMS[kind](tmp_path)
    nothing = mask_generators.find(f"hf:{tmp_path}", "cpu", points=2)  # of random weights, at SAM's own thresholds
    assert nothing.identity == f"{kind} {fingerprint(nothing._generate.model)}, 2 points a side"
    image = Image.fromarray(draw_scene(0, (60, 1200)).image)
    assert list(nothing(image)) == []
    generator = SamMaskGenerator(str(tmp_path), "cpu", 2, **ANYTHING)
    assert generator.identity.endswith("2 points a side, crops_nms_thresh 0.99, pred_iou_thresh -1000000000.0, "
                                       "stability_score_thresh -1.0")  # fmt: skip
    found = list(generator(image))
    assert found and {(mask.shape, mask.dtype) for mask in found} == {((60, 1200), np.dtype(bool))}


def test_sam_and_blip2_in_the_whole_pipeline(classes, tmp_path, monkeypatch):
    SAMS["SamModel"](tmp_path / "sam")
    blip2(tmp_path / "blip2")
    arguments = {"segmenter": f"hf:{tmp_path / 'sam'}", "captioner": f"hf:{tmp_path / 'blip2'}", "score": -1.0}
    run(AnnotateClassification(**arguments, points=2), classes[:1], tmp_path / "nothing")
    assert report(tmp_path / "nothing")["pictures"] == {"no region left": 10, "read": 10, "written": 0}
    monkeypatch.setattr(mask_generators, "find", lambda name, *rest: SamMaskGenerator(name[3:], *rest, **ANYTHING))
    run(AnnotateClassification(**arguments, points=2, keep=5, area=(0, 1)), classes[:1], tmp_path / "out")
    assert check(open_data(tmp_path / "out")).problems == {}
    found = written(tmp_path / "out")
    assert len(found) == 5 and all(record["caption"].endswith(", probably car") for *_, record in found)
    captioner, _, segmenter = report(tmp_path / "out")["models"]
    assert captioner.startswith("captioner: Blip2ForConditionalGeneration ")
    assert segmenter.startswith("segmenter: SamModel ")
    assert_all_are_counted(tmp_path / "out")


def test_other_names_are_no_segmenters():
    for name in ("color", "hf:", "sam"):
        with pytest.raises(ValueError, match=f"the segmenter is '{name}', expected 'colour', 'hf:FOLDER'"):
            mask_generators.find(name)


def test_without_scipy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    with pytest.raises(ImportError, match=r'connected parts need scipy: pip install "alpha-clip\[pipeline\]"'):
        mask_generators.find("colour")


# --- objects alone ---


def test_a_large_object_is_made_smaller_and_a_thin_one_is_not_lost():
    mask = np.zeros((2000, 3000), bool)
    mask[500:1500, 100:2900] = True
    square, shape = cut_out(Image.new("RGB", (3000, 2000), "red"), Mask.of(mask))
    assert square.size == shape.size == (SIDE, SIDE)
    assert np.asarray(shape).mean() / 255 == pytest.approx(1000 * 2800 / (1.5 * 2800) ** 2, rel=0.01)
    line = np.zeros((2000, 3000), bool)
    line[np.arange(2000), np.arange(2000)] = True
    _, shape = cut_out(Image.new("RGB", (3000, 2000), "red"), Mask.of(line))
    assert shape.size == (SIDE, SIDE) and 600 < (np.asarray(shape) > 0).sum() < 3 * 683
    with pytest.raises(ValueError, match=r"context is 0.9, expected at least 1: the box itself"):
        cut_out(square, Mask.of(np.ones((SIDE, SIDE), bool)), 0.9)


# --- masks in masks ---


def rectangle(score: float | None, number: int, x0: int, y0: int, x1: int, y1: int) -> Target:
    pixels = np.zeros((20, 20), bool)
    pixels[y0:y1, x0:x1] = True
    return Target(f"{number}", (x0, y0, x1, y1), score, Mask.of(pixels), number)


@pytest.mark.parametrize(
    ("scores", "overlap", "kept"),
    [
        ((0.9, 0.5, 0.5, 0.5), 0.8, "03"),  # the whole is better than its parts
        ((0.5, 0.9, 0.6, 0.5), 0.8, "123"),  # both parts are better than the whole
        ((0.5, 0.5, 0.9, 0.5), 0.8, "123"),  # which pushes nothing out after it is left out
        ((0.5, 0.5, 0.5, 0.5), 0.8, "03"),
        ((None, None, None, None), 0.8, "03"),
        ((0.5, 0.9, 0.6, 0.5), 1.0, "0123"),
        ((0.5, 0.9, 0.6, 0.5), 0.0, "123"),
        ((0.9, 0.5, 0.5, 0.5), 0.0, "0"),
    ],
)
def test_of_masks_in_each_other_the_best_is_left(scores, overlap, kept):
    boxes = [(0, 0, 12, 10), (1, 1, 4, 5), (6, 1, 9, 5), (10, 0, 20, 10)]  # a fifth of the last is in the first
    targets = tuple(rectangle(score, i, *box) for i, (score, box) in enumerate(zip(scores, boxes, strict=True)))
    ledger = Ledger()
    (after,) = Apart(overlap)([Sample("a", b"", "png", Image.new("RGB", (20, 20)), None, targets)], ledger)
    assert "".join(target.phrase for target in after.targets) == kept
    left_out = {f"shares more than {overlap:g} with a better mask": 4 - len(kept)} if len(kept) < 4 else {}
    assert ledger.regions == left_out


def test_what_masks_share_by_hand():
    masks = [rectangle(0, 0, *box).mask for box in ((0, 0, 10, 10), (0, 0, 10, 8), (5, 0, 15, 10), (15, 15, 20, 20))]
    found = shares(masks)
    np.testing.assert_allclose(found, [[1, 1, 0.5, 0], [1, 1, 0.5, 0], [0.5, 0.5, 1, 0], [0, 0, 0, 1]])
    assert shares([]).shape == (0, 0)


def test_nested_masks_are_left_out_by_the_run_and_counted(classes, work, tmp_path, monkeypatch):
    class Nested(ColourMaskGenerator):
        def __call__(self, image):
            for mask in super().__call__(image):
                yield mask
                part = mask.copy()
                part[: mask_box(mask)[1] + (mask_box(mask)[3] - mask_box(mask)[1]) // 2] = False
                yield part

    monkeypatch.setattr(mask_generators, "find", lambda *_: Nested())
    for overlap in (0.8, 1.0):
        nested = AnnotateClassification("colour", work.captioner, overlap=overlap, background="kept")
        run(nested, classes[:1], tmp_path / f"{overlap}")
        masks = [[Mask.of(rle.decode(region["mask"], SIZE)) for region in record["regions"]] for *_, record in
                 written(tmp_path / f"{overlap}")]  # fmt: skip
        most = max(np.triu(shares(found), 1).max() for found in masks)
        assert (most > 0.8) == (overlap == 1.0)
        assert_all_are_counted(tmp_path / f"{overlap}")
    counts = report(tmp_path / "0.8")["regions"]
    assert counts["shares more than 0.8 with a better mask"] > 10
    assert counts["written"] < report(tmp_path / "1.0")["regions"]["written"]


# --- the best ---


def test_ties_are_for_the_earlier_picture_and_region_and_no_more_than_the_best_are_held():
    mask = Mask.of(np.ones((2, 2), bool))
    shown = [(picture, [(number, score) for number, score in enumerate(scores)]) for picture, scores in
             enumerate([(0.5, 0.7), (0.7, 0.7), (0.2,), (0.9, 0.5)])]  # fmt: skip
    expected = {0: (1,), 1: (0,), 3: (0,)}
    for order in (shown, shown[::-1]):
        best, ledger = Best(3), Ledger()
        for picture, regions in order:
            best.add(picture, [Target("", (0, 0, 2, 2), score, mask, number) for number, score in regions], ledger)
            assert len(best._heap) <= 3
        assert {picture: tuple(t.number for t in found) for picture, found in best.pictures().items()} == expected
        assert ledger.regions == {"not among the best 3 of the class": 4}


def test_memory_does_not_grow_with_the_number_of_pictures(work, tmp_path, monkeypatch):
    alive, peak = [0], [0]
    original = folders.read

    def counted(*arguments) -> Sample:
        made = original(*arguments)
        alive[0] += 1
        peak[0] = max(alive[0], peak[0])
        weakref.finalize(made.image, lambda: alive.__setitem__(0, alive[0] - 1))
        return made

    monkeypatch.setattr(folders, "read", counted)
    peaks = []
    for count in (9, 24):
        peak[0] = 0
        small = AnnotateClassification("colour", work.captioner, keep=9, batch=3)
        run(small, draw(tmp_path / f"{count}", ["car"], range(count)), tmp_path / f"out-{count}")
        peaks.append(peak[0])
        assert len(written(tmp_path / f"out-{count}")) == 9
    assert peaks[0] == peaks[1] <= 2 * 3


# --- bad input ---


def test_bad_pictures_are_rejected_and_the_run_goes_on(words, tmp_path):
    (car,) = draw(tmp_path / "in", ["car"], range(3))
    good = (car / "000.png").read_bytes()
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "GIF")
    bad = {"a.JPEG": good[:300], "deep/b.jpg": file.getvalue(), "deep/c.webp": png(10_000), "d.png": b""}
    for name, data in bad.items():
        (car / name).parent.mkdir(exist_ok=True)
        (car / name).write_bytes(data)
    (car / "list.txt").write_text("ignored")
    (car / "e.jpg").symlink_to("nowhere.jpg")
    (car / "again.jpg").write_bytes(good)
    (car / "plain.png").write_bytes(png(50))
    (tmp_path / "in" / "empty").mkdir()
    run(AnnotateClassification("colour", f"words:{words}"), folders.class_folders([tmp_path / "in"]), tmp_path / "out")
    assert {reject["key"]: reject["problem"] for reject in rejects(tmp_path / "out")} == {
        "car/a.JPEG": "unreadable picture",
        "car/d.png": "unreadable picture",
        "car/deep/b.jpg": "unreadable picture",
        "car/deep/c.webp": "picture too large",
        "car/e.jpg": "unreadable picture",
        "empty": "empty class",
    }
    assert {record["source"] for *_, record in written(tmp_path / "out")} <= {f"car/00{i}.png" for i in range(3)}
    counts = report(tmp_path / "out")["pictures"]
    assert (counts["read"], counts["duplicate"], counts["no picture by its name"]) == (12, 1, 1)
    assert_all_are_counted(tmp_path / "out")


def test_what_is_not_read_of_a_class_is_rejected_with_the_same_reason_wherever_it_lies(words, tmp_path, monkeypatch):
    (car,) = draw(tmp_path / "in", ["car"], range(2))
    for suffix in ("bmp", "TIFF", "gif"):
        Image.new("RGB", (8, 8)).save(car / f"a.{suffix}")
    (car / "b.jpg").write_bytes((car / "a.gif").read_bytes())
    (car / "c.jpg").symlink_to("nowhere")
    (car / "more").symlink_to("nowhere")
    (car / "deep").mkdir()
    (car / "deep" / "up").symlink_to("../../car")
    os.mkfifo(car / "pipe.jpg")
    work, found = AnnotateClassification("colour", f"words:{words}"), []
    monkeypatch.chdir(tmp_path)
    for folder in (car, Path("in", "car")):
        run(work, [folder], tmp_path / "out" / f"{len(found)}")
        found.append((tmp_path / "out" / f"{len(found)}" / "rejects.jsonl").read_bytes())
    assert found[0] == found[1]
    format = "files called .{} are not read, expected one of jpg, jpeg, png, webp: convert it"
    up = "it is a folder that cannot be listed, or a link back to one that it lies in: mend or delete it"
    assert {reject["key"]: reject["reason"] for reject in rejects(tmp_path / "out" / "0")} == {
        **{f"car/a.{suffix}": format.format(suffix.lower()) for suffix in ("bmp", "TIFF", "gif")},
        "car/b.jpg": "the picture cannot be read: its file begins as none of JPEG, PNG, WEBP",
        "car/c.jpg": "it is a link to nowhere",
        "car/more": "it is a link to nowhere",
        "car/deep/up": up,
        "car/pipe.jpg": "it is no file",
    }
    assert_all_are_counted(tmp_path / "out" / "0")


def test_a_picture_that_cannot_be_opened_is_rejected_without_its_place(tmp_path, monkeypatch):
    (tmp_path / "car").mkdir()
    (tmp_path / "car" / "a.jpg").touch()

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(BadSample, match=r"^car/a\.jpg: the picture cannot be read: Permission denied$"):
        folders.read(tmp_path / "car", tmp_path / "car" / "a.jpg")


def test_a_folder_that_cannot_be_listed_is_one_of_its_files(tmp_path, monkeypatch):
    for name in ("a/1.jpg", "b/2.jpg", "b/c/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    original = os.listdir

    def listed(path):
        if Path(path).name == "c":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(os, "listdir", listed)
    found = folders.files_in(tmp_path)
    assert found == [tmp_path / "a" / "1.jpg", tmp_path / "b" / "2.jpg", tmp_path / "b" / "c"]
    assert all(map(folders.is_picture, found))
    with pytest.raises(BadSample, match="c: it is a folder that cannot be listed"):
        folders.read(tmp_path, found[-1])


def test_linked_folders_are_followed_and_a_link_to_nowhere_is_refused(tmp_path):
    (car,) = draw(tmp_path / "elsewhere", ["car"], range(2))
    (tmp_path / "in" / "truck").mkdir(parents=True)
    (tmp_path / "in" / "car").symlink_to(car)
    (tmp_path / "in" / "truck" / "some").symlink_to(car)
    (tmp_path / "in" / "truck" / "other").symlink_to("some")
    classes = folders.class_folders([tmp_path / "in"])
    assert [folder.name for folder in classes] == ["car", "truck"]
    found = [folders.source(folder, path) for folder in classes for path in folders.files_in(folder)]
    names = ("000.png", "001.png")
    assert found == [f"{place}/{name}" for place in ("car", "truck/other", "truck/some") for name in names]
    (tmp_path / "in" / "bus").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="in/bus is a link to nowhere, expected the folder of a class: mend"):
        folders.class_folders([tmp_path / "in"])


def test_names_that_are_not_in_utf_8_are_rejected_by_them(tmp_path):
    car = tmp_path / "in" / "car"
    car.mkdir(parents=True)
    path = Path(os.fsdecode(os.fsencode(car / "caf") + b"\xe9.png"))
    try:
        path.write_bytes(png(8))
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    (found,) = folders.files_in(car)
    with pytest.raises(BadSample, match=r"^car/caf\\xe9\.png: its name is not in UTF-8: rename it$"):
        folders.read(car, found)
    Path(os.fsdecode(os.fsencode(car) + b"\xe9")).mkdir()
    with pytest.raises(ValueError, match=r"^the folder car\\xe9 in .* has a name that is not in UTF-8: rename it$"):
        folders.class_folders([tmp_path / "in"])


@pytest.mark.parametrize("place", ["in", "in/out", "in/car/out", "in/linked/out", "elsewhere/out"])
def test_an_output_folder_among_the_pictures_is_refused(place, tmp_path, capsys):
    draw(tmp_path / "in", ["car"], range(1))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    command = ["annotate-classification", "--input", str(tmp_path / "in"), "--segmenter", "colour", "--captioner"]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "words:none", "--output", str(tmp_path / place)])
    said = capsys.readouterr().err
    assert said.startswith(f"error: the output folder {tmp_path / place} lies in {tmp_path / 'in'}")
    assert "choose one elsewhere, to which what is done can be moved" in said
    assert not (tmp_path / place / "settings.json").exists()


def test_a_picture_that_changes_between_the_two_readings_is_rejected(words, tmp_path, monkeypatch):
    (car,) = draw(tmp_path / "in", ["car"], range(3))
    original = Best.pictures

    def meanwhile(best):
        Image.new("RGB", (5, 5)).save(car / "000.png")
        (car / "001.png").write_bytes(b"")
        return original(best)

    monkeypatch.setattr(Best, "pictures", meanwhile)
    work, out = AnnotateClassification("colour", f"words:{words}"), tmp_path / "out"
    with pytest.raises(RuntimeError, match=r"1 shards \(car\) changed while they were read: leave them alone, and run"):
        run(work, [car], out)
    first, second = map(json.loads, (out / "rejects" / "car.jsonl").read_text().splitlines())
    assert (first["key"], first["problem"]) == ("car/000.png", "picture changed")
    assert first["reason"] == "it has another size than a while ago: leave the pictures alone, and run again"
    assert (second["key"], second["problem"]) == ("car/001.png", "unreadable picture")
    assert {record["source"] for *_, record in written(tmp_path / "out")} == {"car/002.png"}
    monkeypatch.setattr(Best, "pictures", original)
    run(work, [car], out)  # again
    assert [reject["key"] for reject in rejects(out)] == ["car/001.png"]
    assert_all_are_counted(tmp_path / "out")


def test_objects_of_which_the_captioner_says_nothing_are_rejected(work, classes, tmp_path, monkeypatch):
    class Silent:
        identity = "silent"

        def __call__(self, images):
            return ["", *(f"{image.width} pixels" for image in images[1:])]

    monkeypatch.setattr(captioners, "find", lambda *_: Silent())
    run(work, classes[:1], tmp_path)  # 8 at a time, which is all
    (found,) = rejects(tmp_path)
    assert found["problem"] == "empty text" and found["key"].startswith("car/0")
    assert len(written(tmp_path)) == 7
    assert_all_are_counted(tmp_path)


def test_masks_are_filtered_by_area_and_score(classes, work, tmp_path):
    run(AnnotateClassification("colour", work.captioner, area=(0.05, 0.2), score=0.5), classes[:1], tmp_path)
    counts = report(tmp_path)["regions"]
    assert counts["mask area not 0.05 to 0.2 of the picture"] > 0 and counts["CLIP score below 0.5"] > 0
    assert all(record["regions"][0]["score"] >= 0.5 for *_, record in written(tmp_path))
    assert_all_are_counted(tmp_path)


def test_other_words_in_the_same_file_are_other_settings(tmp_path):
    (tmp_path / "words.txt").write_text("a cat\n")
    work = AnnotateClassification("colour", f"words:{tmp_path / 'words.txt'}@tiny")
    before = work.settings()
    assert work.settings() == before
    (tmp_path / "words.txt").write_text("a dog\n")
    assert work.settings() != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"area": (0.5, 0.1)}, "area is (0.5, 0.1), expected the least and the most, neither below 0"),
        ({"overlap": 1.5}, "overlap is 1.5, expected 0 to 1"),
        ({"keep": 0}, "keep is 0, expected at least 1"),
        ({"points": 0}, "points is 0, expected at least 1"),
        ({"batch": 0}, "batch is 0, expected at least 1"),
        ({"context": 0.9}, "context is 0.9, expected at least 1"),
        ({"context": float("nan")}, "context is nan, expected at least 1"),
        ({"background": "black"}, "background is 'black', expected one of white, kept"),
        ({"duplicates": "caption"}, "duplicates is 'caption', expected one of picture, keep"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AnnotateClassification("colour", "words:file", **settings)


# --- folders and names ---


def test_classes_are_the_folders_in_the_order_of_their_names(tmp_path):
    for name in ("b", "a.2", "a.1", ".hidden", "a.1/deep"):
        (tmp_path / name).mkdir()
    (tmp_path / "file.jpg").touch()
    assert [folder.name for folder in folders.class_folders([tmp_path])] == ["a.1", "a.2", "b"]
    with pytest.raises(NotADirectoryError, match=r"file\.jpg is no folder: expected one with a folder of pictures for"):
        folders.class_folders([tmp_path / "file.jpg"])
    with pytest.raises(FileNotFoundError, match=r"b holds no folders, expected one with pictures for each class"):
        folders.class_folders([tmp_path, tmp_path / "b"])


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.json", '{"n01": "tench, Tinca tinca", "my class": "great_white  shark"}'),
        ("names.txt", "n01 tench, Tinca tinca\n\nmy class\tgreat_white  shark\n"),
    ],
)
def test_names_come_from_json_or_from_lines(file, text, tmp_path):
    (tmp_path / file).write_text(text)
    assert folders.read_names(tmp_path / file) == {"n01": "tench", "my class": "great white shark"}


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.json", "[1]", "a.json: b'[1]' is list, expected a record"),
        ("a.json", '{"n01": ["tench"]}', "gives 'n01' the name ['tench'], expected words"),
        ("a.txt", "n01 tench\nn02\n", "gives 'n02' the name '', expected words"),
        ("a.txt", "n01 , tench\n", "gives 'n01' the name ', tench', expected words"),
        ("a.txt", "\n", "a.txt holds no names, expected lines such as 'n01440764 tench', or JSON"),
    ],
)
def test_other_names_are_refused(file, text, message, tmp_path):
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        folders.read_names(tmp_path / file)


def test_a_class_is_called_as_its_folder_or_by_the_names():
    assert folders.class_name(Path("in/traffic_light"), None) == "traffic light"
    assert folders.class_name(Path("in/n01"), {"n01": "tench"}) == "tench"
    with pytest.raises(ValueError, match="the class in the folder 'n02' has no name: add one, or give no names"):
        folders.class_name(Path("in/n02"), {"n01": "tench"})
    with pytest.raises(ValueError, match="the class in the folder '_' has no name: rename it"):
        folders.class_name(Path("in/_"), None)


def test_names_are_in_the_texts_and_their_hash_in_the_settings(classes, work, tmp_path):
    names = {"car": "bus", "house": "tree"}
    named = AnnotateClassification("colour", work.captioner, names=names, keep=2)
    run(named, classes[:1], tmp_path)
    assert {record["class"] for *_, record in written(tmp_path)} == {"bus"}
    assert all(record["caption"].endswith(", probably bus") for *_, record in written(tmp_path))
    other = AnnotateClassification("colour", work.captioner, names=names | {"car": "truck"}, keep=2)
    with pytest.raises(ValueError, match=r"holds a run with another names .*: choose another folder, or delete"):
        run(other, classes[:1], tmp_path)


def test_folders_with_dots_in_their_names_are_different_classes(classes, work, tmp_path):
    for name in ("001.car", "001.house"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for path in sorted(classes[0].glob("00[0-2].png")):
            (tmp_path / "in" / name / f"a.b.{path.name}").write_bytes(path.read_bytes())
    named = AnnotateClassification("colour", work.captioner, names={"001.car": "car", "001.house": "house"}, keep=8)
    run(named, folders.class_folders([tmp_path / "in"]), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["001.car.tar", "001.house.tar"]
    found = check(open_data(tmp_path / "out"))
    assert set(found.problems) <= {"same picture"} and found.read == len(written(tmp_path / "out")) > 4


# --- class by class ---


def test_the_manifest_tells_what_a_class_is_made_of(classes, finished):
    manifest = json.loads((finished / "manifests" / "car.json").read_text())
    sizes = [path.stat().st_size for path in classes[0].iterdir()]
    digest = manifest["input"].pop("sha256")
    assert digest == fingerprints.of_files(classes[0].iterdir(), classes[0])
    assert manifest["input"] == {"name": "car", "files": 10, "bytes": sum(sizes)}
    assert manifest["models"].keys() == {"segmenter", "model", "captioner"}
    assert manifest["models"]["model"] == f"tiny {fingerprint(subjects.find('tiny').model)}"
    assert json.loads((finished / "settings.json").read_text())["command"] == "annotate-classification"


@pytest.mark.slow  # two processes start
def test_two_workers_and_another_batch_leave_the_same_bytes(classes, work, finished, tmp_path):
    other = AnnotateClassification("colour", work.captioner, keep=8, batch=3)
    run(other, classes, tmp_path, workers=2)
    assert contents(tmp_path) == contents(finished)


def test_a_class_with_more_pictures_is_done_again_and_the_others_are_not(work, tmp_path):
    found = draw(tmp_path / "in", ("car", "tree"), range(3))
    run(work, found, tmp_path / "out")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    draw(tmp_path / "in", ["tree"], [7])
    run(work, found, tmp_path / "out")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert after["car.tar"] == before["car.tar"] and after["tree.tar"] > before["tree.tar"]
    assert report(tmp_path / "out")["pictures"]["read"] == 7


KILLED = """
import sys, time
from pathlib import Path
from alpha_clip.pipeline import AnnotateClassification, captioners, run

words, out, *folders = sys.argv[1:]
find, calls = captioners.find, 0

def stops(name, device):
    captioner = find(name, device)

    def call(images):
        global calls
        calls += 1
        if calls == 7:  # in the middle of the second class
            Path(out, "waiting").touch()
            time.sleep(600)
        return captioner(images)

    call.identity = captioner.identity
    return call

captioners.find = stops
run(AnnotateClassification("colour", words, keep=8, batch=2), [Path(folder) for folder in folders], Path(out))
"""


@pytest.mark.slow
def test_after_kill_9_the_rerun_leaves_the_files_of_an_uninterrupted_run(classes, work, finished, tmp_path):
    arguments = [sys.executable, "-c", KILLED, work.captioner, str(tmp_path), *map(str, classes)]
    process = subprocess.Popen(arguments, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_for(lambda: (tmp_path / "waiting").exists(), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (tmp_path / "waiting").unlink()
    assert [path.name for path in (tmp_path / "manifests").iterdir()] == ["car.json"]
    assert len(list(tmp_path.glob(".house.tar.*.part"))) == 1
    run(work, classes, tmp_path)
    assert contents(tmp_path) == contents(finished)


# --- the command ---


def test_the_command_does_the_same(classes, work, finished, tmp_path, capsys):
    command = ["annotate-classification", "--input", str(classes[0].parent), "--segmenter", "colour"]
    command += ["--captioner", work.captioner, "--output", str(tmp_path / "out"), "--model", "tiny", "--keep", "8"]
    main(command)
    assert contents(tmp_path / "out") == contents(finished)
    assert re.search(r"^regions  written +24$", capsys.readouterr().out, re.M)
    (tmp_path / "names.txt").write_text("car automobile\n")
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--names", str(tmp_path / "names.txt")])
    assert capsys.readouterr().err.startswith("error: the class in the folder 'house' has no name")
    with pytest.raises(SystemExit, match="2"):
        main([command[0], "--input", str(classes[0]), *command[3:]])
    assert "car holds no folders, expected one with pictures for each class" in capsys.readouterr().err
