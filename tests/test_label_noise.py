"""The study of label noise: the labels are as wrong as they are said to be, and the figures are those of the runs."""

from __future__ import annotations

import importlib
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import alpha_clip
from alpha_clip import masks
from alpha_clip.pipeline import AnnotateGrounding, Ledger, grit, run
from alpha_clip.scenes import HELD_OUT, NOUNS, draw_scene
from alpha_clip.training.check import check
from alpha_clip.training.pictures import Picture, Region, RegionShards
from alpha_clip.training.writing import write_shards
from alpha_clip.transforms import mask_box

EXTRA = 'pip install "alpha-clip[pipeline,eval]"'
for needed in ("filelock", "matplotlib", "pyarrow", "pycocotools", "webdataset"):
    pytest.importorskip(needed, reason=EXTRA)

EXAMPLE = Path(__file__).parent.parent / "examples" / "tiny"
PICTURES = 24
PLAIN = pytest.mark.filterwarnings("ignore:.*alpha weights of zero", "ignore:.*every mask is ignored")


@pytest.fixture(scope="module")
def labels():
    sys.path.insert(0, str(EXAMPLE))
    yield importlib.import_module("labels")
    sys.path.remove(str(EXAMPLE))


@pytest.fixture(scope="module")
def study(labels):
    return importlib.import_module("label_noise")


@pytest.fixture(scope="module")
def pictures(labels) -> list[Picture]:
    return list(labels.drawn(PICTURES))


@pytest.fixture(scope="module")
def shards(labels, pictures, tmp_path_factory) -> Path:
    """A folder with the shards "grit" and "exact"."""
    folder = tmp_path_factory.mktemp("shards")
    labels.once(folder / "grit", lambda part: labels.write_grit(pictures, part))
    labels.once(folder / "exact", lambda part: write_shards(pictures, part))
    return folder


def phrases_of(pictures) -> list[list[str]]:
    return [[region.phrase for region in picture.regions] for picture in pictures]


def pairs(before, after):
    """Regions with what became of them."""
    for old, new in zip(before, after, strict=True):
        assert (old.key, old.caption, old.image) == (new.key, new.caption, new.image)
        yield from ((old, a, b) for a, b in zip(old.regions, new.regions, strict=True))


# --- the scenes ---


def test_scenes_are_drawn_as_their_keys_say_and_held_out_nouns_are_never_a_region(labels, pictures):
    assert len({picture.key for picture in pictures}) == PICTURES and all(picture.regions for picture in pictures)
    captions = " ".join(str(picture.caption) for picture in labels.drawn(150))
    assert any(noun in captions for noun in HELD_OUT)
    for picture in pictures:
        scene = draw_scene(int(picture.key), 48, objects=(1, 5), scale=(0.28, 0.6), overlap=0.3, attributes=0.0)
        np.testing.assert_array_equal(np.asarray(picture.image), scene.image)
        exact = {f"{'an' if r.noun[0] in 'aeiou' else 'a'} {r.noun}": r.mask for r in scene.regions}
        assert not {region.phrase.split(" ", 1)[1] for region in picture.regions} & set(HELD_OUT)
        for region in picture.regions:
            np.testing.assert_array_equal(region.mask, exact[region.phrase])


def test_the_pipeline_is_given_the_same_pictures_phrases_and_boxes_and_no_masks(pictures, shards):
    files = {}
    for kind in ("grit", "exact"):
        (shard,) = (shards / kind).glob("*.tar")
        with tarfile.open(shard) as tar:
            files[kind] = {member.name: tar.extractfile(member).read() for member in tar}
    assert files["grit"].keys() == files["exact"].keys()
    assert all(files["grit"][name] == files["exact"][name] for name in files["grit"] if name.endswith(".jpg"))
    assert b"mask" not in b"".join(data for name, data in files["grit"].items() if name.endswith(".json"))
    samples = grit.read(next((shards / "grit").glob("*.tar")), Ledger())
    for picture, sample in zip(pictures, samples, strict=True):
        for region, target in zip(picture.regions, sample.targets, strict=True):
            assert region.phrase == target.phrase
            assert target.box == pytest.approx(mask_box(region.mask))


def test_a_folder_is_filled_once_and_whole(labels, tmp_path):
    def write(part: Path) -> None:
        (part / "1").touch()
        if stopped:
            raise KeyboardInterrupt

    stopped = True
    with pytest.raises(KeyboardInterrupt):
        labels.once(tmp_path / "made", write)
    assert not (tmp_path / "made").exists()
    stopped = False
    labels.once(tmp_path / "made", write)
    labels.once(tmp_path / "made", lambda part: pytest.fail("written twice"))
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


# --- labels that are wrong ---


@pytest.mark.parametrize(("of_masks", "of_phrases"), [(0.0, 0.0), (0.1, 0.0), (0.3, 0.0), (0.0, 0.3), (0.3, 0.3)])
def test_exactly_the_said_shares_are_wrong_and_nothing_else_changes(of_masks, of_phrases, labels, pictures):
    made = list(labels.Wrong(phrases_of(pictures), of_masks, of_phrases)(pictures))
    changed = list(pairs(pictures, made))
    other_mask = [not np.array_equal(old.mask, new.mask) for _, old, new in changed]
    other_phrase = [old.phrase != new.phrase for _, old, new in changed]
    count = len(changed)
    assert sum(other_mask) == round(of_masks * count)
    assert sum(other_phrase) == round(of_phrases * count)
    if of_masks and of_phrases:  # drawn apart: neither the same regions nor only others
        both = sum(a and b for a, b in zip(other_mask, other_phrase, strict=True))
        assert 0 < both < sum(other_mask)


def test_a_wrong_mask_is_a_neighbour_s_or_lies_aside_and_a_wrong_phrase_is_true_of_nothing_there(labels, pictures):
    alone = 0
    vocabulary = {phrase for some in phrases_of(pictures) for phrase in some}
    for picture in labels.Wrong(phrases_of(pictures), 1.0, 1.0)(pictures):
        before = next(old for old in pictures if old.key == picture.key)
        own = {region.phrase for region in before.regions}
        for old, new in zip(before.regions, picture.regions, strict=True):
            assert new.phrase in vocabulary - own
            assert masks.iou(old.mask, new.mask) < 0.5
            neighbours = [other.mask for other in before.regions if other is not old]
            assert not neighbours or any(new.mask is mask for mask in neighbours)
            alone += not neighbours
        assert len({region.phrase for region in picture.regions}) == len(picture.regions)
    assert alone > 0


def test_wrong_labels_are_the_same_each_time_and_those_of_a_low_share_are_among_those_of_a_high_one(labels, pictures):
    def changes(share: float, seed: int = 0) -> dict[tuple[str, str], tuple[str, bytes]]:
        made = labels.Wrong(phrases_of(pictures), share, share, seed)(iter(pictures))
        found = {}
        for picture, old, new in pairs(pictures, made):
            if old.phrase != new.phrase or old.mask is not new.mask:
                found[picture.key, old.phrase] = (new.phrase, new.mask.tobytes())
        return found

    def phrases(share: float) -> set[tuple[str, str, str]]:
        return {(key, old, new) for (key, old), (new, _) in changes(share).items() if old != new}

    assert changes(0.3) == changes(0.3) != changes(0.3, seed=1)
    assert phrases(0.1) < phrases(0.3)


def test_what_two_regions_of_one_picture_got_wrong_is_no_region_twice(labels, pictures, tmp_path):
    write_shards(labels.Wrong(phrases_of(pictures), 0.5, 0.5)(pictures), tmp_path)
    found = check(RegionShards(tmp_path))
    assert found.problems == {} and found.read == PICTURES


def test_the_quality_of_labels_by_hand(labels):
    def picture(*regions: tuple[str, slice]) -> Picture:
        made = []
        for phrase, columns in regions:
            mask = np.zeros((4, 4), np.float32)
            mask[:, columns] = 1
            made.append(Region(phrase, mask))
        return Picture("1", Image.new("RGB", (4, 4)), "a cat, a dog, a bus", tuple(made))

    exact = picture(("a cat", slice(0, 2)), ("a dog", slice(2, 4)), ("a bus", slice(0, 1)))
    named = picture(("a cat", slice(0, 2)), ("a dog", slice(2, 4)))  # the bus was left out
    found = labels.quality([picture(("a cat", slice(0, 3)), ("a car", slice(0, 2)))], [named], {"1": exact}.get)
    assert found == labels.Quality(regions=2, overlap=pytest.approx((2 / 3 + 0) / 2), misplaced=0.5, misnamed=0.5)


# --- labels of the pipeline ---


def test_a_captioner_that_sees_crops_alone_renames_the_regions_of_the_colour_masks(labels, pictures, shards, tmp_path):
    sources = sorted((shards / "grit").glob("*.tar"))
    work = labels.AnnotateAndCaption("colour", background="kept")
    run(AnnotateGrounding("colour"), sources, tmp_path / "colour")
    run(work, sources, tmp_path / "captioned")
    with pytest.raises(ValueError, match=r"another background \(background: kept there, white now\): choose another"):
        run(labels.AnnotateAndCaption("colour", background="white"), sources, tmp_path / "captioned")
    coloured, captioned = RegionShards(tmp_path / "colour"), RegionShards(tmp_path / "captioned")
    exact = {picture.key: picture for picture in pictures}
    first = labels.quality(coloured, coloured, exact.__getitem__)
    second = labels.quality(captioned, coloured, exact.__getitem__)
    assert (first.regions, first.overlap, first.misplaced) == (second.regions, second.overlap, second.misplaced)
    assert 0.7 < first.overlap < 1 and first.misnamed == 0 < second.misnamed < 0.4
    assert {phrase for some in phrases_of(captioned) for phrase in some} <= set(work.texts)
    assert len(work.texts) == len(NOUNS)
    report = json.loads((tmp_path / "captioned" / "report.json").read_text())
    assert any("captioner: plain tiny" in model for model in report["models"])


# --- the runs ---


def test_regions_are_named_as_the_evaluation_of_tiny_does(study):
    evaluate = importlib.import_module("evaluate")
    base, _ = alpha_clip.load("tiny", "cpu")
    regions = evaluate.scene_regions([draw_scene(evaluate.FIRST_SEED + i, 48, objects=(2, 4)) for i in range(5)])
    for view in ("mask", "crop", "whole"):
        named = (evaluate.features(base, regions.views[view]) @ evaluate.noun_features(base).T).argmax(dim=1).numpy()
        seen = study.seen_regions(base, view, "plain", 5)
        assert seen["right"] == (named == regions.noun).astype(int).tolist()
        assert seen["scene"] == regions.scene
        assert np.flatnonzero(seen["held out"]).tolist() == [
            i for i, noun in enumerate(regions.noun) if NOUNS[noun] in HELD_OUT
        ]
    assert study.kept(base, base, 5) == pytest.approx(1)


@PLAIN
def test_an_arm_from_its_shards_to_its_row(study, tmp_path, monkeypatch):
    wrong = "30% wrong masks and phrases"
    monkeypatch.setattr(study, "ARMS", {name: study.ARMS[name] for name in (study.EXACT, wrong, study.COLOUR)})
    monkeypatch.setattr(study, "UNTRAINED", {"crop": "crop"})
    small = study.Study(tmp_path, pictures=40, steps=2, scenes=3)
    small.draw()
    for name in study.ARMS:
        small.make(name)
    for name in study.ARMS:
        small.describe(name)
        said = json.loads(small.labels(name).read_text())
        assert said["check"].endswith("0 problems")
        assert (small.shards(name) / "inspect.html").exists() == (study.ARMS[name].work is not None)
    for name in (*study.ARMS, "crop"):
        small.train(name, 0)
    results = study.Results(small, 1)
    rows = dict(line.strip("| ").split(" | ", 1) for line in study.table(small, results).splitlines()[2:])
    assert list(rows) == [*study.ARMS, "crop"]
    count = json.loads(small.labels(wrong).read_text())["regions"]
    assert rows[wrong].split(" | ")[3] == f"{round(0.3 * count) / count:.1%}"
    right = results.of(wrong, "plain")
    assert set(right) <= {0, 1} and f"{right.mean():.1%} [" in rows[wrong]
    before = {path: path.stat().st_mtime_ns for path in small.shards(wrong).iterdir()}
    small.make(wrong)
    assert before == {path: path.stat().st_mtime_ns for path in small.shards(wrong).iterdir()}


@PLAIN
def test_a_run_begins_with_plain_tiny_and_reads_the_shards_of_its_arm(study, labels, tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(study, "finetune", lambda model, data, config: trained.append((model, data, config)))
    small = study.Study(tmp_path, pictures=40, steps=2, scenes=2)
    small.draw()
    small.train(study.EXACT, 3)
    ((model, data, config),) = trained
    assert not model.visual.conv1_alpha.weight.any() and data.keys == [picture.key for picture in labels.drawn(40)]
    assert (config.steps, config.batch_size, config.seed) == (2, 20, 3)
    assert json.loads(small.result(study.EXACT, 3).read_text())["cosine"] == pytest.approx(1)


@pytest.mark.slow
def test_the_command_goes_on_with_what_is_missing(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["label_noise.py", "--out", str(tmp_path), "--quick"])
    study.main()
    first = capsys.readouterr().out
    for row in (*study.ARMS, *study.UNTRAINED):
        assert f"\n| {row} | " in first
    assert first.count("0 problems") == len(study.ARMS) and first.count("inspect.html") == 3
    with Image.open(tmp_path / "label_noise.png") as figure:
        assert figure.width > 1000
    made = [path for path in tmp_path.rglob("*") if path.suffix in (".tar", ".json") and path.name != "settings.json"]
    written = {path: path.stat().st_mtime_ns for path in made}
    lost = tmp_path / "result-10_wrong_masks-0.json"
    lost.unlink()
    study.main()
    assert capsys.readouterr().out == first
    assert {path for path, time in written.items() if path.stat().st_mtime_ns != time} == {lost}
    monkeypatch.setattr(sys, "argv", ["label_noise.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        study.main()
    assert "name another --out" in capsys.readouterr().err
