"""The paper's protocols on small files in the published layouts, whole and broken; their figures against other code."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shlex
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn
from torchvision.ops import box_iou

import alpha_clip
from alpha_clip import rle
from alpha_clip.evaluation import (
    Column,
    Matching,
    Sample,
    Task,
    UnusableSample,
    builtin,
    coco,
    find,
    imagenet_s,
    parse,
    refcoco,
    retrieval,
    tune,
)
from alpha_clip.evaluation import run as run_task
from alpha_clip.evaluation.__main__ import _parser, main
from alpha_clip.evaluation.annotations import Instances
from alpha_clip.evaluation.records import Answer, Record, packed, unpacked
from alpha_clip.evaluation.refer import Refer, read_refs
from alpha_clip.evaluation.retrieval import TO_PHRASE, TO_REGION
from alpha_clip.evaluation.samples import unique_keys
from alpha_clip.evaluation.subjects import Subject, _split
from alpha_clip.evaluation.ways import look
from alpha_clip.scenes import Scene, draw_scene
from alpha_clip.training import Picture, Region
from alpha_clip.training.writing import write_shards
from alpha_clip.transforms import box_mask, mask_box

pytest.importorskip("pycocotools", reason='pip install "alpha-clip[eval]"')

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools' own
    pytest.mark.filterwarnings("ignore:this model has never read"),  # `tiny`, the words of the protocols' sentences
]

SIZE = 72, 96  # (H, W) of all pictures
SPLITS = "val", "val", "testA", "testA", "testA"  # of the pictures in REFER's layout
NOUNS = "apple", "bird", "car", "cat", "tree"
NAMES = *NOUNS, "chair", "frog"
CATEGORIES = [{"id": 10 * i + 3, "name": name} for i, name in enumerate(NAMES)]  # with gaps, as COCO's
WORDNET = """\
  1 This software and database is being provided to you, the LICENSEE, by
07739125 13 n 01 apple 0 002 @ 13134947 n 0000 | fruit with red or yellow or green skin
01503061 05 n 01 bird 0 003 @ 01471682 n 0000 | warm-blooded
02958343 06 n 05 car 0 auto 0 automobile 0 machine 6 motorcar 0 003 @ 03791235 n 0000 | a motor vehicle
02121620 05 n 02 true_cat 0 cat 0 002 @ 02120997 n 0000 | feline mammal
13104059 20 n 01 tree 0 002 @ 13109733 n 0000 | a tall perennial
"""
SYNSETS = dict(zip(NOUNS, ("n07739125", "n01503061", "n02958343", "n02121620", "n13104059"), strict=True))


@pytest.fixture(scope="module")
def tiny() -> Subject:
    return find("tiny", "cpu")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(seed, SIZE, objects=(2, 3), nouns=NOUNS, overlap=0.0) for seed in range(len(SPLITS))]


def write(path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def instances(scenes: list[Scene]) -> dict:
    """COCO's layout."""
    images = [{"id": 500 + i, "file_name": f"COCO_{i}.png", "height": 72, "width": 96} for i in range(len(scenes))]
    annotations = []
    for i, scene in enumerate(scenes):
        for region in scene.regions:
            x0, y0, x1, y1 = region.box
            annotations.append(
                {
                    "id": 1000 + len(annotations),
                    "image_id": 500 + i,
                    "category_id": 10 * NOUNS.index(region.noun) + 3,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float((region.mask > 0.5).sum()),
                    "segmentation": rle.encode(region.mask > 0.5),
                    "iscrowd": 0,
                }
            )
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": CATEGORIES}


def save_pictures(scenes: list[Scene], folder, name: str = "COCO_{}.png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(folder / name.format(i))


@pytest.fixture
def coco_folder(scenes, tmp_path):
    save_pictures(scenes, tmp_path / "coco" / "val2017")
    write(tmp_path / "coco" / "annotations" / "instances_val2017.json", instances(scenes))
    return tmp_path / "coco"


def references(scenes: list[Scene], annotations: list[dict]) -> list[dict]:
    """REFER's layout: each region was referred to twice."""
    found = []
    for k, annotation in enumerate(annotations):
        i = annotation["image_id"] - 500
        region = scenes[i].regions[k - sum(len(scene.regions) for scene in scenes[:i])]
        raw = [f"The {region.phrase}", f"{region.color} {region.noun}"]
        sentences = [
            {"tokens": text.lower().split(), "raw": text, "sent_id": 2 * k + j, "sent": text.lower()}
            for j, text in enumerate(raw)
        ]
        found.append(
            {
                "ref_id": k,
                "ann_id": annotation["id"],
                "image_id": annotation["image_id"],
                "file_name": f"COCO_{i}_{k}.png",
                "category_id": annotation["category_id"],
                "split": SPLITS[i],
                "sent_ids": [2 * k, 2 * k + 1],
                "sentences": sentences,
            }
        )
    return found


@pytest.fixture
def refer_folder(scenes, tmp_path):
    listed = instances(scenes)
    folder = tmp_path / "refer"
    save_pictures(scenes, folder / "images" / "mscoco" / "images" / "train2014")
    write(folder / "refcoco" / "instances.json", listed)
    (folder / "refcoco" / "refs(unc).p").write_bytes(
        pickle.dumps(references(scenes, listed["annotations"]), protocol=2)
    )
    return folder


@pytest.fixture
def imagenet_folder(scenes, tmp_path):
    folder = tmp_path / "imagenet-s"
    entries = []
    for i, scene in enumerate(scenes):
        region = scene.regions[0]
        word = SYNSETS[region.noun]
        name = f"ImageNetS919/validation/{word}/ILSVRC2012_val_{i}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(folder / name)
        mask = rle.encode(region.mask > 0.5)
        entries.append({"category_word": word, "image_pth": name, "mask": mask})
    write(folder / "imagenet_919.json", entries)
    write(folder / "data.noun", WORDNET)
    return folder


def change(path, edit) -> None:
    """Let `edit` change what a JSON file holds."""
    found = json.loads(path.read_text())
    write(path, edit(found) or found)


def samples(task: Task) -> list[Sample]:
    return [task.read(i) for i in range(len(task.keys))]


def coco_task(folder, **options) -> Task:
    return coco.task(folder / "annotations" / "instances_val2017.json", folder / "val2017", **options)


def refer_split(folder, split: str = "testA", dataset: str = "refcoco") -> Refer:
    return Refer(folder, dataset, "unc", split, folder / "images" / "mscoco" / "images" / "train2014")


def refuse_to_read(number: int) -> Sample:
    raise AssertionError("the test set was looked at")


# --- ways that the protocols need ---


def test_alpha_box_is_alpha_with_the_boxes(tiny, scenes):
    image, masks = Image.fromarray(scenes[0].image), scenes[0].masks
    boxes = [box_mask(mask_box(mask), SIZE) for mask in masks]
    expected = alpha_clip.embed_regions(tiny.model, image, boxes, geometry="squash")
    torch.testing.assert_close(look(tiny.model, image, masks, parse("alpha_box:geometry=squash")).features[0], expected)


def test_alpha_crop_is_alpha_in_each_crop(tiny, scenes):
    image, masks = Image.fromarray(scenes[1].image), scenes[1].masks
    expected = []
    for mask in masks:
        x0, y0, x1, y1 = mask_box(mask)
        left, right = max(0, round(x0 - (x1 - x0) / 2)), min(96, round(x1 + (x1 - x0) / 2))
        top, bottom = max(0, round(y0 - (y1 - y0) / 2)), min(72, round(y1 + (y1 - y0) / 2))
        shown = image.crop((left, top, right, bottom))
        expected.append(alpha_clip.embed_regions(tiny.model, shown, mask[top:bottom, left:right]))
    found = look(tiny.model, image, masks, parse("alpha_crop:context=2"), chunk=1).features[0]
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)


def test_the_blurred_view_can_be_squashed_as_the_authors_do(tiny, scenes):
    image, masks = Image.fromarray(scenes[0].image), scenes[0].masks[:1]
    found = look(tiny.model, image, masks, parse("alpha_blurred:sigma=3,geometry=squash")).features[0]
    sharp = Image.fromarray((255 * masks[0]).round().astype(np.uint8))
    shown = Image.composite(image, image.filter(ImageFilter.GaussianBlur(3)), sharp)
    torch.testing.assert_close(found, alpha_clip.embed_regions(tiny.model, shown, masks, geometry="squash"))


def test_the_readmes_squash_differs_from_the_aligned_mask(tiny, scenes):
    image, masks = Image.fromarray(scenes[0].image), scenes[0].masks
    squashed = look(tiny.model, image, masks, parse("squashed_mask")).features[0]
    preprocess = alpha_clip.load("tiny", device="cpu")[1]
    shorter = torch.stack([preprocess(image, mask, geometry="squash")[1] for mask in masks])
    expected = torch.nn.functional.normalize(tiny.model.encode_image(preprocess(image)[None], shorter), dim=-1)
    torch.testing.assert_close(squashed, expected)
    aligned = look(tiny.model, image, masks, parse("alpha")).features[0]
    assert (squashed * aligned).sum(1).max() < 0.999


def test_a_region_that_a_crop_loses_is_counted_and_does_not_end_the_run(tiny, tmp_path):
    masks = np.zeros((2, 1, 48, 96), np.float32)
    masks[0, 0, :, 40:50] = masks[1, 0, :, :10] = 1  # the second lies outside of the centre
    pictures = [Sample(str(i), Image.new("RGB", (96, 48)), mask, (Matching(0, "x"),)) for i, mask in enumerate(masks)]
    task = Task("two", ["0", "1"], pictures.__getitem__, [Column("all")])
    found = run_task(task, [tiny], [parse("alpha:geometry=crop")], tmp_path)
    assert [record.key for record in found.records] == ["0"]
    assert "the centre crop leaves nothing of mask 0" in found.unusable["1"]


def test_a_tag_may_hold_a_plus():
    assert _split("ViT-B/16+grit1m+mim") == ("ViT-B/16", "grit1m+mim")


# --- masks ---


def test_polygons_are_drawn_as_pycocotools_draws_them():
    from pycocotools import mask as theirs

    polygons = [[3.2, 1, 20.5, 4, 12, 25.7], [30, 30, 40, 30, 40, 45, 30, 45]]
    found = rle.of_polygons(polygons, (50, 60))
    expected = theirs.decode(theirs.merge(theirs.frPyObjects(polygons, 50, 60)))
    assert np.array_equal(rle.decode(found, (50, 60)), expected.astype(bool))
    assert rle.area(found) == expected.sum() > 200


@pytest.mark.parametrize("polygon", [[1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, float("nan")], "abc", [[1]]])
def test_what_is_no_polygon_is_refused(polygon):
    with pytest.raises(ValueError, match="expected x, y of three corners or more"):
        rle.of_polygons([polygon], (50, 60))


def test_a_polygon_far_outside_costs_no_more_than_one_inside():
    with pytest.raises(ValueError, match=r"expected x, y of three corners"):
        rle.of_polygons([[0, 0, 10**400, 0, 0, 5]], (50, 60))
    assert rle.area(rle.of_polygons([[0, 0, 1e12, 0, 1e12, 1e12, 0, 1e12]], (50, 60))) == 3000


def test_a_picture_of_too_many_pixels_is_refused():
    with pytest.raises(ValueError, match=r"has 100000 x 100000 pixels, expected 1 to 178956970"):
        rle.of_polygons([[0, 0, 9, 0, 9, 9]], (100_000, 100_000))


# --- COCO's layout ---


def test_coco_asks_about_each_object_with_the_mask_that_pycocotools_reads(coco_folder, scenes, capsys):
    from pycocotools.coco import COCO

    path = coco_folder / "annotations" / "instances_val2017.json"

    def as_published(found):
        found["annotations"][0]["segmentation"] = [[5, 5, 40, 8.5, 30, 60], [50, 50, 60, 50, 60, 70]]
        found["annotations"][0]["bbox"] = [5, 5, 55, 65]
        runs = [100, 50, 72 * 96 - 150]
        found["annotations"][1]["segmentation"] = {"size": [72, 96], "counts": runs}

    change(path, as_published)
    task = coco_task(coco_folder)
    theirs = COCO(str(path))
    assert task.keys == [f"COCO_{i}.png" for i in range(5)]
    for i, sample in enumerate(samples(task)):
        annotations = theirs.loadAnns(theirs.getAnnIds([500 + i]))
        assert np.array_equal(sample.masks, np.stack([theirs.annToMask(a) for a in annotations]))
        assert np.array_equal(sample.image, scenes[i].image)
        named = [question.names[question.answer] for question in sample.questions]
        assert named == [theirs.loadCats([a["category_id"]])[0]["name"] for a in annotations]
        assert [question.region for question in sample.questions] == list(range(len(annotations)))


def test_coco_has_small_medium_and_large_objects_by_its_own_limits(coco_folder):
    path = coco_folder / "annotations" / "instances_val2017.json"
    areas = [32**2 - 1, 32**2, 96**2 - 1, 96**2]

    def measure(found):
        for annotation, area in zip(found["annotations"], areas, strict=False):
            annotation["area"] = area

    change(path, measure)
    found = [question.group for sample in samples(coco_task(coco_folder)) for question in sample.questions]
    assert found[:4] == ["small", "medium", "medium", "large"]
    change(path, lambda found: [a.pop("area") for a in found["annotations"]] and None)
    assert {q.group for sample in samples(coco_task(coco_folder)) for q in sample.questions} == {"small"}


def damaged(found) -> None:
    a = found["annotations"]
    a[0]["iscrowd"] = 1
    a[1]["segmentation"] = {"size": [400_000, 400_000], "counts": "0" * 20}  # would be 150 GB
    a[2]["segmentation"] = []
    a[3]["segmentation"] = [[1, 1, 1, 1, 1, 1]]
    a[4]["category_id"] = 1
    a[5]["category_id"] = [3]


def test_crowds_and_damaged_annotations_are_left_out_and_counted(coco_folder, scenes, tiny, tmp_path):
    change(coco_folder / "annotations" / "instances_val2017.json", damaged)
    tracemalloc.start()
    task = coco_task(coco_folder)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    asked = sum(len(sample.questions) for sample in samples(task))
    assert asked == sum(len(scene.regions) for scene in scenes) - 6
    (note,) = task.notes
    assert note.startswith(
        "Left out: crowds: 1, of unknown category: 2, with a damaged mask: 1, with an empty mask: 1, "
        "without a mask: 1. The first that is damaged: 1001 of COCO_0.png: its segmentation: the RLE is of size"
    )
    assert "expected [72, 96]" in note


def test_pictures_that_cannot_be_used_are_counted_and_the_others_asked_about(coco_folder, tiny, tmp_path):
    (coco_folder / "val2017" / "COCO_0.png").unlink()
    (coco_folder / "val2017" / "COCO_1.png").write_bytes(b"not a picture")
    Image.new("RGB", (95, 72)).save(coco_folder / "val2017" / "COCO_2.png")
    found = run_task(coco_task(coco_folder), [tiny], [parse("whole")], tmp_path / "out")
    assert {record.key for record in found.records} == {"COCO_3.png", "COCO_4.png"}
    assert "No such file" in found.unusable["COCO_0.png"]
    assert "its file is of no format that Pillow knows" in found.unusable["COCO_1.png"]
    assert "expected [72, 95], the picture's height and width" in found.unusable["COCO_2.png"]


def test_figures_of_coco_are_those_of_scikit_learn(coco_folder, tiny, tmp_path):
    metrics_of = pytest.importorskip("sklearn.metrics", reason="pip install scikit-learn")

    task = coco_task(coco_folder)
    task = replace(task, columns=[*task.columns[:3], Column("top-2", k=2)])
    found = run_task(task, [tiny], [parse("whole")], tmp_path / "out")
    texts = alpha_clip.zero_shot_classifier(tiny.model, NAMES)
    scores, right = [], []
    for sample in samples(task):
        features = look(tiny.model, sample.image, sample.masks, parse("whole")).features[0]
        scores.append((features @ texts.T).numpy())
        right += [question.answer for question in sample.questions]
    all_scores = np.concatenate(scores)
    chosen = all_scores.argmax(1)
    top_1, top_5, by_class, top_2 = (cell.value for cell in found.table().rows[0][1:5])
    assert top_1 == pytest.approx(metrics_of.accuracy_score(right, chosen))
    assert top_5 == pytest.approx(metrics_of.top_k_accuracy_score(right, all_scores, k=5, labels=range(7)))
    assert by_class == pytest.approx(metrics_of.balanced_accuracy_score(right, chosen))
    assert top_2 == pytest.approx(metrics_of.top_k_accuracy_score(right, all_scores, k=2, labels=range(7)))
    assert 1 > top_2 > top_1 != by_class > 0


def test_a_picture_that_is_listed_twice_has_two_keys(coco_folder):
    path = coco_folder / "annotations" / "instances_val2017.json"
    found = json.loads(path.read_text())
    first, second = found["images"][:2]
    second |= {"file_name": first["file_name"], "height": first["height"], "width": first["width"]}
    path.write_text(json.dumps(found))
    task = coco_task(coco_folder)
    name = first["file_name"]
    assert task.keys[:2] == [name, f"{name}, 2"] and task.pictures[0] == task.pictures[1]
    assert task.read(1).key == f"{name}, 2"


def test_numbers_make_keys_that_are_not_there_yet():
    assert unique_keys(["a", "a, 2", "a", "b", "a"]) == ["a", "a, 2", "a, 3", "b", "a, 4"]


def test_the_identity_of_coco_is_its_annotations(coco_folder):
    path = coco_folder / "annotations" / "instances_val2017.json"
    before = coco_task(coco_folder).identity
    assert before["instances_val2017.json"] == alpha_clip.hashes.sha256(path)
    change(path, lambda found: found["annotations"].pop() and None)
    assert coco_task(coco_folder).identity != before


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda found: found.pop("categories") and None, r"holds \['annotations', 'images', .*expected COCO's layout"),
        (lambda found: [1, 2], "holds list, expected COCO's layout with the lists images, annotations, categories"),
        (lambda found: found["images"][0].pop("height") and None, r"is damaged: KeyError\('height'\)"),
        (
            lambda found: found["images"][0].update(height="72"),
            r"is damaged: TypeError.*'height': '72'.*, expected integer",
        ),
        (lambda found: found["annotations"].append(7), "is damaged: TypeError"),
        (
            lambda found: [a.pop("segmentation") for a in found["annotations"]] and None,
            "no object to ask about.*without",
        ),
    ],
)
def test_a_file_of_another_layout_is_refused(coco_folder, edit, match):
    change(coco_folder / "annotations" / "instances_val2017.json", edit)
    with pytest.raises(ValueError, match=match):
        coco_task(coco_folder)


def test_a_file_that_was_cut_off_is_refused(coco_folder):
    path = coco_folder / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text()[:500])
    with pytest.raises(ValueError, match=r"instances_val2017.json is not JSON, or was cut off: .*; fetch it again"):
        Instances(path)


def test_what_is_not_there_is_named(coco_folder):
    with pytest.raises(FileNotFoundError, match=r"instances_test.json is not there: expected annotations in COCO's"):
        coco.task(coco_folder / "annotations" / "instances_test.json", coco_folder / "val2017")
    with pytest.raises(FileNotFoundError, match=r"train2017 is not a folder: expected the pictures"):
        coco.task(coco_folder / "annotations" / "instances_val2017.json", coco_folder / "train2017")


# --- ImageNet-S ---


def test_imagenet_s_is_asked_as_the_authors_do(imagenet_folder, scenes):
    task = imagenet_s.task(imagenet_folder, imagenet_folder / "data.noun")
    assert list(task.templates) == ["a photo of a {}."]
    assert [(column.k, column.per_class) for column in task.columns] == [(1, True), (5, True)]
    for sample, scene in zip(samples(task), scenes, strict=True):
        assert np.array_equal(sample.image, scene.image[:, 12:84])
        assert np.array_equal(sample.masks, scene.regions[0].mask[None, :, 12:84] > 0.5)
        (question,) = sample.questions
        assert question.names[question.answer] == scene.regions[0].noun.replace("cat", "true_cat")


def test_a_region_outside_of_the_centre_is_counted(imagenet_folder):
    mask = np.zeros(SIZE, bool)
    mask[10:30, :12] = True
    change(imagenet_folder / "imagenet_919.json", lambda found: found[0].update(mask=rle.encode(mask)))
    with pytest.raises(
        UnusableSample, match=r"ILSVRC2012_val_0.png: nothing of the region is in the centre.*--corrected"
    ):
        imagenet_s.task(imagenet_folder, imagenet_folder / "data.noun").read(0)
    sample = imagenet_s.task(imagenet_folder, imagenet_folder / "data.noun", corrected=True).read(0)
    assert np.array_equal(sample.masks[0], mask)


def test_the_corrected_protocol_keeps_the_picture_and_reads_names(imagenet_folder, scenes):
    task = imagenet_s.task(imagenet_folder, imagenet_folder / "data.noun", corrected=True)
    for sample, scene in zip(samples(task), scenes, strict=True):
        assert np.array_equal(sample.image, scene.image)
        (question,) = sample.questions
        assert question.names[question.answer] == scene.regions[0].noun.replace("cat", "true cat")


def test_the_centre_is_the_authors():
    for width, height in ((9, 4), (8, 5), (5, 8), (6, 6)):
        pixels = np.arange(width * height, dtype=np.uint8).reshape(height, width)
        side = min(width, height)
        top, left = height // 2 - side // 2, width // 2 - side // 2
        image, mask = imagenet_s.centre(Image.fromarray(pixels), pixels.astype(np.float32))
        assert np.array_equal(image, pixels[top : top + side, left : left + side])
        assert np.array_equal(mask, np.asarray(image))


def test_names_are_read_from_wordnet_imagenet_and_json(tmp_path):
    write(tmp_path / "data.noun", WORDNET)
    found = imagenet_s.read_names(tmp_path / "data.noun")
    assert found["n02958343"] == ("car", "auto", "automobile", "machine", "motorcar")
    assert found["n02121620"] == ("true_cat", "cat")
    assert len(found) == 5
    write(tmp_path / "LOC_synset_mapping.txt", "n02121620 true cat, cat\nn01503061\tbird\n\n")
    expected = {"n02121620": ("true cat", "cat"), "n01503061": ("bird",)}
    assert imagenet_s.read_names(tmp_path / "LOC_synset_mapping.txt") == expected
    write(tmp_path / "names.json", {"n1": "cat", "n2": ["bird", "fowl"]})
    assert imagenet_s.read_names(tmp_path / "names.json") == {"n1": ("cat",), "n2": ("bird", "fowl")}


def test_what_holds_no_names_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.noun is not there: expected names of classes"):
        imagenet_s.read_names(tmp_path / "data.noun")
    write(tmp_path / "names.txt", "\nword\n")
    with pytest.raises(ValueError, match=r"names nothing, expected lines such as 'n01440764 tench"):
        imagenet_s.read_names(tmp_path / "names.txt")
    write(tmp_path / "names.json", {"n1": 3})
    with pytest.raises(ValueError, match=r"names.json holds no names, expected \{\"n01440764\": \"tench\""):
        imagenet_s.read_names(tmp_path / "names.json")
    write(tmp_path / "few.json", {"n02121620": "cat"})


def test_a_class_without_a_name_is_refused(imagenet_folder):
    write(imagenet_folder / "few.json", {"n02121620": "cat"})
    with pytest.raises(ValueError, match=r"few.json does not name \d of \d classes, such as n\d+: take WordNet 3.0's"):
        imagenet_s.task(imagenet_folder, imagenet_folder / "few.json")


def test_classes_of_one_name_are_one_and_are_told(imagenet_folder, scenes):
    names = dict.fromkeys(SYNSETS.values(), "crane") | {SYNSETS[scenes[0].regions[0].noun]: "thing"}
    write(imagenet_folder / "names.json", names)
    task = imagenet_s.task(imagenet_folder, imagenet_folder / "names.json", corrected=True)
    assert {question.names for sample in samples(task) for question in sample.questions} == {("thing", "crane")}
    assert "some have one name between them (crane)" in task.notes[0]


def test_figures_of_imagenet_s_are_those_of_scikit_learn(imagenet_folder, tiny, tmp_path):
    metrics_of = pytest.importorskip("sklearn.metrics", reason="pip install scikit-learn")

    task = imagenet_s.task(imagenet_folder, imagenet_folder / "data.noun", corrected=True)
    found = run_task(task, [tiny], [parse("alpha")], tmp_path / "out")
    right = [sample.questions[0].names[sample.questions[0].answer] for sample in samples(task)]
    chosen = [record.answers[0].top[0] for record in found.records]
    assert found.table().rows[0][1].value == pytest.approx(metrics_of.balanced_accuracy_score(right, chosen))


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda found: {"a": 1}, "holds dict, expected a list of category_word, image_pth, mask"),
        (lambda found: found[1].pop("mask") and None, "has in entry 1 no mask"),
        (lambda found: found[0].update(image_pth=3), "has in entry 0 no image_pth"),
        (lambda found: [7], "has in entry 0 no category_word"),
    ],
)
def test_entries_of_another_layout_are_refused(imagenet_folder, edit, match):
    change(imagenet_folder / "imagenet_919.json", edit)
    with pytest.raises(ValueError, match=match):
        imagenet_s.task(imagenet_folder, imagenet_folder / "data.noun")


def test_a_mask_that_lies_about_its_size_makes_the_sample_unusable(imagenet_folder):
    change(
        imagenet_folder / "imagenet_919.json",
        lambda found: found[0].update(mask={"size": [300_000, 300_000], "counts": "0000"}),
    )
    with pytest.raises(UnusableSample, match=r"of size \[300000, 300000\], expected \[72, 96\]"):
        imagenet_s.task(imagenet_folder, imagenet_folder / "data.noun").read(0)


def test_a_picture_may_be_asked_about_twice(imagenet_folder, scenes):
    change(imagenet_folder / "imagenet_919.json", lambda found: [*found, found[0]])
    task = imagenet_s.task(imagenet_folder, imagenet_folder / "data.noun")
    assert len(set(task.keys)) == len(task.keys) == 6
    assert task.keys[5] == f"{task.keys[0]}, 2: {SYNSETS[scenes[0].regions[0].noun]}"
    assert task.pictures[5] == task.pictures[0]


# --- REFER's layout and referring expressions ---


def test_refer_splits_are_read_with_their_phrases(refer_folder, scenes):
    for split in ("val", "testA"):
        found = refer_split(refer_folder, split)
        wanted = [i for i, name in enumerate(SPLITS) if name == split]
        assert {reference.picture - 500 for reference in found.references} == set(wanted)
        said = [phrase for reference in found.references for phrase in reference.phrases]
        regions = [region for i in wanted for region in scenes[i].regions]
        assert said == [text for r in regions for text in (f"the {r.phrase}", f"{r.color} {r.noun}")]
        assert said == [text.lower() for text in said]


def test_a_pickle_of_python_2_is_read(tmp_path):
    text = (
        b"(lp0\n(dp1\nS'split'\np2\nS'val'\np3\nsS'ref_id'\np4\nI7\nsS'image_id'\np5\nI500\nsS'ann_id'\np6\nL12L\n"
        b"sS'sentences'\np7\n(lp8\n(dp9\nS'raw'\np10\nS'caf\\xc3\\xa9'\np11\nsS'sent'\np12\nVcaf\\u00e9\np13\nsasa."
    )
    (tmp_path / "refs(unc).p").write_bytes(text)
    sentences = [{"raw": "café", "sent": "café"}]
    expected = {"split": "val", "ref_id": 7, "image_id": 500, "ann_id": 12, "sentences": sentences}
    assert read_refs(tmp_path / "refs(unc).p") == [expected]


class Evil:
    def __init__(self, run, *arguments) -> None:
        self.call = run, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, protocol):
    path, mark = tmp_path / "refs(unc).p", tmp_path / "mark"
    path.write_bytes(
        pickle.dumps([{"split": "val", "sentences": Evil(exec, f"import os; os.mkdir({str(mark)!r})")}], protocol)
    )
    with pytest.raises(
        ValueError, match=r"the pickle asks for (builtins|__builtin__)\.exec, which REFER's own files do"
    ):
        read_refs(path)
    assert not mark.exists()
    assert pickle.loads(path.read_bytes()) and mark.exists()  # it would have


def test_a_pickle_that_asks_for_objects_from_elsewhere_is_refused(tmp_path):
    (tmp_path / "refs(unc).p").write_bytes(b"(lPelsewhere\na.")
    with pytest.raises(ValueError, match=r"the pickle asks for objects from elsewhere"):
        read_refs(tmp_path / "refs(unc).p")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (pickle.dumps([{"split": "val"}])[:-3], r"cannot be read, or was cut off: .*; fetch it again"),
        (b"", r"cannot be read, or was cut off: EOFError"),
        (pickle.dumps({"split": "val"}), r"holds dict .*, expected a list of references"),
        (pickle.dumps([]), r"holds list \[\], expected a list of references"),
        (pickle.dumps([1]), r"holds list \[1\], expected a list of references"),
    ],
)
def test_damaged_references_are_refused(tmp_path, content, match):
    (tmp_path / "refs(unc).p").write_bytes(content)
    with pytest.raises(ValueError, match=match):
        read_refs(tmp_path / "refs(unc).p")


def test_a_reference_without_what_it_needs_is_refused(refer_folder):
    (refer_folder / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([{"split": "testA", "sentences": []}]))
    with pytest.raises(ValueError, match=r"has a reference without 'image_id'"):
        refer_split(refer_folder)


def test_what_refer_does_not_hold_is_named(refer_folder):
    with pytest.raises(ValueError, match=r"has no split 'testB', expected one of testA \(\d+\), val \(\d+\)"):
        refer_split(refer_folder, "testB")
    with pytest.raises(FileNotFoundError, match=r"refcoco\+ is not a folder: expected the folder of the data set"):
        refer_split(refer_folder, dataset="refcoco+")
    images = refer_folder / "images" / "mscoco" / "images" / "train2014"
    with pytest.raises(FileNotFoundError, match=r"refs\(google\).p is not there: .*there is refs\(unc\).p; see --by"):
        Refer(refer_folder, "refcoco", "google", "testA", images)
    change(refer_folder / "refcoco" / "instances.json", lambda found: found["images"].pop() and None)
    with pytest.raises(ValueError, match=r"refers to \d pictures that .*instances.json does not list, such as 504"):
        refer_split(refer_folder)


def test_iou_is_torchvisions():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.integers(0, 20, (2, 30, 2, 2)), axis=2).reshape(2, 30, 4)
    boxes[..., 2:] += 1
    expected = box_iou(*torch.from_numpy(boxes).double())
    found = [[refcoco.iou(one, other) for other in boxes[1].tolist()] for one in boxes[0].tolist()]
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected)


def test_each_phrase_is_asked_of_all_objects_of_its_picture(refer_folder, scenes):
    task = refcoco.task(refer_split(refer_folder))
    assert task.keys == ["COCO_2.png", "COCO_3.png", "COCO_4.png"]
    for sample, scene in zip(samples(task), scenes[2:], strict=True):
        assert np.array_equal(sample.masks, scene.masks > 0.5)
        assert [question.answers for question in sample.questions] == [
            frozenset([k]) for k in range(len(scene.regions)) for _ in range(2)
        ]
        assert sample.questions[0].phrase == f"a photo of the {scene.regions[0].phrase}"


def detected(scenes: list[Scene]) -> list[dict]:
    """Each object's box cut to just more, and to just half, of itself; of the last picture, nothing."""
    found = []
    for i, scene in enumerate(scenes[:-1]):
        for region in scene.regions:
            x0, y0, x1, y1 = region.box
            for share in (0.51, 0.5):
                found.append({"image_id": 500 + i, "box": [x0, y0, share * (x1 - x0), y1 - y0], "score": 0.9})
    return found


def test_a_box_is_right_if_it_overlaps_by_more_than_half(refer_folder, scenes):
    write(refer_folder / "dets.json", detected(scenes))
    task = refcoco.task(refer_split(refer_folder), refer_folder / "dets.json", "box")
    for sample, scene in zip(samples(task)[:-1], scenes[2:-1], strict=True):
        assert len(sample.masks) == 2 * len(scene.regions)
        rights = [next(iter(question.answers)) for question in sample.questions if len(question.answers) == 1]
        assert rights == [2 * k for k in range(len(scene.regions)) for _ in range(2)]
        x0, y0, x1, y1 = scene.regions[0].box
        whole = x0, y0, np.ceil(x0 + 0.51 * (x1 - x0)), y1
        assert np.array_equal(sample.masks[0], box_mask(whole, SIZE))
    assert samples(task)[-1].masks.all(), "where nothing was detected, the whole picture is the only candidate"
    asked = sum(2 * len(scene.regions) for scene in scenes[2:])
    possible = sum(2 * len(scene.regions) for scene in scenes[2:-1]) / asked
    assert task.notes[0].startswith(f"Of {asked} phrases, {possible:.1%} have a right candidate; a choice by lot")


def test_detections_of_reclip_mattnet_and_coco_say_the_same(refer_folder, scenes):
    boxes = detected(scenes)
    mask = rle.encode(np.ones(SIZE, bool))
    reclip: dict[str, list] = {}
    for one in boxes:
        reclip.setdefault(str(one["image_id"]), []).append(one["box"])
    write(refer_folder / "reclip.json", reclip)
    mattnet = [{**one, "det_id": i, "h5_id": i, "rle": mask, "size": [72, 96]} for i, one in enumerate(boxes)]
    write(refer_folder / "mattnet.json", mattnet)
    results = [{"image_id": one["image_id"], "bbox": one["box"], "segmentation": mask, "score": 1} for one in boxes]
    write(refer_folder / "results.json", results)
    found = [
        refcoco.task(refer_split(refer_folder), refer_folder / f"{name}.json", "box") for name in ("reclip", "mattnet")
    ]
    found += [refcoco.task(refer_split(refer_folder), refer_folder / "results.json", "box")]
    first, second, third = (samples(task)[0] for task in found)
    assert first.questions == second.questions == third.questions
    assert np.array_equal(first.masks, second.masks) and np.array_equal(first.masks, third.masks)
    with_masks = refcoco.task(refer_split(refer_folder), refer_folder / "mattnet.json")
    assert samples(with_masks)[0].masks.all()


def test_detections_without_masks_are_refused_unless_boxes_will_do(refer_folder, scenes):
    write(refer_folder / "dets.json", detected(scenes))
    with pytest.raises(ValueError, match=r"a candidate has no segmentation: choose --masks box"):
        refcoco.task(refer_split(refer_folder), refer_folder / "dets.json")


@pytest.mark.parametrize("content", [[{"image_id": 1}], {"a": [[1, 2, 3, 4]]}, 3, ["box"], [{"box": [1, 2, 3, 4]}]])
def test_what_is_no_file_of_detections_is_refused(tmp_path, content):
    write(tmp_path / "dets.json", content)
    with pytest.raises(
        ValueError, match=r"dets.json is not a file of detections .*expected \{picture: \[\[x, y, width"
    ):
        refcoco.detections(tmp_path / "dets.json")


def test_damaged_candidates_are_left_out_and_counted(refer_folder, scenes):
    first = sum(len(scene.regions) for scene in scenes[:2])

    def damage(found):
        found["annotations"][first]["bbox"] = [1, 2, 0, 5]  # the one that is referred to
        found["annotations"].append({"id": 9999, "image_id": 502, "bbox": [200, 0, 5, 5], "iscrowd": 0})
        found["annotations"].append({"id": 9998, "image_id": 502, "bbox": [0, 0, 5, 5], "iscrowd": 1})
        found["annotations"].append({"id": 9997, "image_id": 502, "bbox": "none", "iscrowd": 0})

    change(refer_folder / "refcoco" / "instances.json", damage)
    task = refcoco.task(refer_split(refer_folder), masks="box")
    assert len(samples(task)[0].masks) == len(scenes[2].regions) - 1
    assert task.notes[1] == (
        "Left out: crowds: 1, outside the picture: 1, phrases about an annotation without a box: 2, without a box: 2."
    )


def test_a_split_that_nothing_can_be_asked_of_is_refused(refer_folder):
    change(refer_folder / "refcoco" / "instances.json", lambda found: found.update(annotations=[]))
    with pytest.raises(ValueError, match=r"nothing can be asked about in .*'split': 'testA'.*Left out: phrases about"):
        refcoco.task(refer_split(refer_folder))
    with pytest.raises(ValueError, match=r"no object of .*'split': 'testA'.* can be asked about.*without a mask"):
        retrieval.of_refer(refer_split(refer_folder))


def test_pictures_without_candidates_are_counted(refer_folder, scenes):
    write(refer_folder / "dets.json", {"502": [[300, 300, 5, 5]]})
    task = refcoco.task(refer_split(refer_folder), refer_folder / "dets.json", "box")
    assert task.keys == ["COCO_3.png", "COCO_4.png"]
    missed = 2 * len(scenes[2].regions)
    assert f"phrases about a picture without candidates: {missed}" in task.notes[1]


def test_the_choice_is_by_the_sum_of_sharp_and_blurred(refer_folder, tiny, tmp_path):
    task = refcoco.task(refer_split(refer_folder), prompt="{}")
    found = run_task(task, [tiny], [parse("alpha + alpha_blurred:sigma=5")], tmp_path / "out")
    right = []
    for record, sample in zip(found.records, samples(task), strict=True):
        views = [
            look(tiny.model, sample.image, sample.masks, parse(way)).features[0]
            for way in ("alpha", "alpha_blurred:sigma=5")
        ]
        for answer, question in zip(record.answers, sample.questions, strict=True):
            text = tiny.texts([question.phrase])[0]
            chosen = int(((views[0] + views[1]) @ text).argmax())
            assert answer.region == chosen
            right.append(chosen in question.answers)
    assert found.table().rows[0][1].value == pytest.approx(np.mean(right))


# --- retrieval ---


def reader(table: dict[str, list[float]], name: str = "m") -> Subject:
    """A model that knows these texts."""
    return Subject(name, nn.Identity(), lambda texts: torch.tensor([table[text] for text in texts]))


def seen(key: str, features, answers: list[tuple[int, str]], model: str = "m", way: str = "whole") -> Record:
    found = tuple(Answer(phrase, -1, region) for region, phrase in answers)
    return Record(key, model, way, found, len(features), 1, 0.1, (packed(torch.tensor(features)),))


def ranks(records: list[Record], group: str) -> dict[tuple[str, int, str], int]:
    return {(r.key, a.region, a.right): a.rank for r in records for a in r.answers if a.group == group}


def test_features_are_packed_as_float16():
    features = torch.nn.functional.normalize(torch.randn(3, 7, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert torch.equal(unpacked(packed(features), 3), features.half().float())
    assert (unpacked(packed(features), 3) @ features.T - features @ features.T).abs().max() < 1e-3


def test_ranks_of_both_directions_by_hand():
    texts = {"right": [1.0, 0.0], "up": [0.0, 1.0], "diagonal": [0.6, 0.8]}
    records = [
        seen("a", [[1.0, 0.0], [0.8, 0.6]], [(0, "right"), (1, "diagonal"), (1, "right")]),
        seen("b", [[0.0, 1.0]], [(0, "diagonal")]),
    ]
    found = retrieval.finish(records, [reader(texts)], [parse("whole")])
    # Cosines of a0 to right, diagonal, up: 1, .6, 0; of a1: .8, .96, .6; of b0: 0, .8, 1. "up" was never said.
    assert ranks(found, TO_PHRASE) == {("a", 0, "right"): 0, ("a", 1, "right"): 0, ("b", 0, "diagonal"): 0}
    assert ranks(found, TO_REGION) == {
        ("a", 0, "right"): 0,
        ("a", 1, "right"): 0,  # a0 was said to be so too, and is nearest
        ("a", 1, "diagonal"): 0,
        ("b", 0, "diagonal"): 0,
    }
    worse = [replace(records[0], answers=(Answer("up", -1, 0), Answer("right", -1, 1))), records[1]]
    found = retrieval.finish(worse, [reader(texts)], [parse("whole")])
    # a0 to up is last of three phrases, and third of three regions for it; b0's diagonal comes behind up.
    assert ranks(found, TO_PHRASE) == {("a", 0, "up"): 2, ("a", 1, "right"): 1, ("b", 0, "diagonal"): 1}
    assert ranks(found, TO_REGION) == {("a", 0, "up"): 2, ("a", 1, "right"): 1, ("b", 0, "diagonal"): 1}
    assert all(record.features == () for record in found)


def test_recall_is_scikit_learns_top_k_accuracy(monkeypatch, tmp_path):
    metrics_of = pytest.importorskip("sklearn.metrics", reason="pip install scikit-learn")

    monkeypatch.setattr(retrieval, "_AT_A_TIME", 7)  # in several parts
    rng = np.random.default_rng(0)
    features = rng.standard_normal((60, 4)).astype(np.float16).astype(np.float32)
    words = (features + rng.standard_normal((60, 4))).astype(np.float32)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    table = {f"phrase {i}": words[i].tolist() for i in range(60)}
    records = [
        seen(f"{i:02}", features[3 * i : 3 * i + 3].tolist(), [(k, f"phrase {3 * i + k}") for k in range(3)])
        for i in range(20)
    ]
    found = retrieval.finish(records, [reader(table)], [parse("whole")])
    scores = features @ words.T
    for group, by_query in ((TO_PHRASE, scores), (TO_REGION, scores.T)):
        for k in (1, 5, 10):
            recall = np.mean([rank < k for rank in ranks(found, group).values()])
            assert recall == pytest.approx(metrics_of.top_k_accuracy_score(np.arange(60), by_query, k=k))


def test_models_and_parts_are_summed_with_their_weights():
    one = reader({"x": [1.0, 0.0], "y": [0.0, 1.0]}, "one")
    other = reader({"x": [0.0, 1.0], "y": [1.0, 0.0]}, "other")
    way = parse("whole + 0.5*crop")
    parts = {"one": ([[0.9, 0.1]], [[0.0, 1.0]]), "other": ([[0.3, 0.2]], [[0.4, 0.1]])}
    records = []
    for name, (first, second) in parts.items():
        record = seen("a", first, [(0, "x"), (0, "y")], name, way.name)
        records.append(replace(record, features=(record.features[0], packed(torch.tensor(second)))))
    records.append(replace(records[0], model="together: one, other", features=()))
    found = retrieval.finish(records, [one, other], [way])
    # x: .9 + .5 * 0 by one, .2 + .5 * .1 by other; y: .1 + .5 * 1, .3 + .5 * .4. Together 1.15 and 1.1.
    best = {record.model: record.answers[-1].top for record in found}
    assert best == {"one": ("x", "y"), "other": ("y", "x"), "together: one, other": ("x", "y")}


def test_the_plain_clip_is_not_summed():
    table = {"x": [1.0, 0.0], "y": [0.0, 1.0]}
    plain = reader(table, "plain")
    one, other = replace(reader(table, "one"), base=plain), reader(table, "other")
    features = {"one": [[0.6, 0.4]], "other": [[0.5, 0.3]], "plain": [[0.0, 1.0]]}
    records = [seen("a", found, [(0, "x"), (0, "y")], name) for name, found in features.items()]
    records.append(replace(records[0], model="together: one, other", features=()))
    found = retrieval.finish(records, [one, other, plain], [parse("whole")])
    best = {record.model: record.answers[-1].top for record in found}
    assert best == dict.fromkeys(("one", "other", "together: one, other"), ("x", "y")) | {"plain": ("y", "x")}


def test_retrieval_asks_once_about_what_was_said_twice(refer_folder):
    path = refer_folder / "refcoco" / "refs(unc).p"
    found = read_refs(path)
    for reference in found:
        reference["sentences"] = reference["sentences"][:1] * 2
    path.write_bytes(pickle.dumps(found))
    for sample in samples(retrieval.of_refer(refer_split(refer_folder))):
        assert [question.region for question in sample.questions] == list(range(len(sample.masks)))


def test_retrieval_reads_all_that_was_said_of_refers_objects(refer_folder, scenes):
    task = retrieval.of_refer(refer_split(refer_folder), "a {}")
    for sample, scene in zip(samples(task), scenes[2:], strict=True):
        assert np.array_equal(sample.masks, scene.masks > 0.5)
        expected = [
            (k, f"a {text}")
            for k, region in enumerate(scene.regions)
            for text in dict.fromkeys([f"the {region.phrase}", f"{region.color} {region.noun}"])
        ]
        assert [(question.region, question.phrase) for question in sample.questions] == expected


@pytest.fixture
def regions_folder(scenes, tmp_path):
    folder = tmp_path / "regions"
    save_pictures(scenes, folder, "{}.png")
    lines = [
        {"image": f"{i}.png", "text": region.phrase, "mask": rle.encode(region.mask > 0.5)}
        for i, scene in enumerate(scenes)
        for region in scene.regions
    ]
    write(folder / "regions.jsonl", "\n".join(map(json.dumps, lines)) + "\n")
    return folder


def test_retrieval_reads_the_layout_of_training(regions_folder, scenes, tiny, tmp_path):
    with (regions_folder / "regions.jsonl").open("a") as file:
        file.write(
            '{"image": "gone.png", "text": "a cat", "mask": [0, 0, 5, 5]}\n{"image": "0.png", "caption": "all"}\n'
        )
        file.write('{"image": "1.png", "caption": "x"}\n')
    Image.new("RGB", (96, 72)).save(regions_folder / "whole.png")
    with (regions_folder / "regions.jsonl").open("a") as file:
        file.write('{"image": "whole.png", "caption": "nothing else"}\n')
    found = run_task(retrieval.of_regions(regions_folder), [tiny], [parse("alpha")], tmp_path / "out")
    assert "gone.png: the picture cannot be read" in found.unusable["gone.png"]
    assert found.unusable["whole.png"] == "whole.png: it has no region"
    assert len(found.records) == 5
    phrases = sorted({region.phrase for scene in scenes for region in scene.regions})
    texts = tiny.texts(phrases)
    for record, scene in zip(found.records, scenes, strict=True):
        features = alpha_clip.embed_regions(tiny.model, scene.image, [r.mask > 0.5 for r in scene.regions])
        for k, region in enumerate(scene.regions):
            scores = features[k] @ texts.T
            (rank,) = (a.rank for a in record.answers if a.group == TO_PHRASE and a.region == k)
            assert rank == int((scores > scores[phrases.index(region.phrase)] + 1e-3).sum())


@pytest.fixture
def shards_with_equal_keys(scenes, tmp_path) -> Path:
    """Two shards of the same keys, whose pictures have different numbers of regions."""
    pytest.importorskip("webdataset", reason='pip install "alpha-clip[train]"')
    folder = tmp_path / "shards"
    for number, part in enumerate((scenes[:2], scenes[2:4])):
        pictures = [
            Picture(f"{i}", Image.fromarray(s.image), s.caption, tuple(Region(r.phrase, r.mask) for r in s.regions))
            for i, s in enumerate(part)
        ]
        (shard,) = write_shards(pictures, tmp_path / f"part {number}")
        folder.mkdir(exist_ok=True)
        shard.rename(folder / f"{number}.tar")
    return folder


def test_retrieval_tells_shards_with_equal_keys_apart(shards_with_equal_keys, scenes, tiny, tmp_path):
    task = retrieval.of_regions(shards_with_equal_keys)
    assert task.keys == ["0", "1", "0, 2", "1, 2"]
    assert len(set(task.pictures)) == 4
    assert [task.read(i).key for i in range(4)] == task.keys
    whole = run_task(task, [tiny], [parse("alpha")], tmp_path / "out")
    assert [r.regions for r in whole.records] == [len(s.regions) for s in sorted_by_key(scenes[:4], task.keys)]
    again = run_task(replace(task, read=refuse_to_read), [tiny], [parse("alpha")], tmp_path / "out")
    assert [(r.id, r.answers) for r in again.records] == [(r.id, r.answers) for r in whole.records]


def sorted_by_key(scenes, keys) -> list[Scene]:
    return [scene for _, scene in sorted(zip(keys, scenes, strict=True), key=lambda pair: pair[0])]


def test_retrieval_fetches_shards_from_their_url(shards_with_equal_keys, monkeypatch):
    def fetched(url: str, cache: Path) -> Path:
        assert url.startswith("https://example.com/")
        return shards_with_equal_keys / url.rpartition("/")[2]

    monkeypatch.setattr("alpha_clip.training.shards.fetched", fetched)
    args = _parser().parse_args(["retrieval", "--data", "https://example.com/{0..1}.tar"])
    task = retrieval.from_arguments(args)
    assert len(task.keys) == 4
    assert task.pictures[2] == "https://example.com/{0..1}.tar: 0, 2"


def test_retrieval_goes_on_where_it_stopped(regions_folder, tiny, tmp_path, monkeypatch):
    task = retrieval.of_regions(regions_folder)
    whole = run_task(task, [tiny], [parse("whole"), parse("crop")], tmp_path / "whole")
    first = replace(task, keys=task.keys[:2])
    run_task(first, [tiny], [parse("whole"), parse("crop")], tmp_path / "parts")
    again = run_task(task, [tiny], [parse("whole"), parse("crop")], tmp_path / "parts")
    assert [(r.id, r.answers) for r in again.records] == [(r.id, r.answers) for r in whole.records]
    third = run_task(replace(task, read=refuse_to_read), [tiny], [parse("whole"), parse("crop")], tmp_path / "parts")
    assert [(r.id, r.answers) for r in third.records] == [(r.id, r.answers) for r in whole.records]


# --- choosing options ---


def test_alternatives_are_all_combinations():
    found = [way.name for way in tune.alternatives("0.5|1*crop:context=1|1.5 + alpha:geometry=pad|squash")]
    assert len(found) == len(set(found)) == 8
    assert found[0] == "0.5*crop:context=1 + alpha:geometry=pad"
    assert found[-1] == "1*crop:context=1.5 + alpha:geometry=squash"
    assert [way.name for way in tune.alternatives("alpha|crop")] == ["alpha", "crop"]


def test_a_way_without_alternatives_is_refused():
    with pytest.raises(ValueError, match=r"'crop:context=2' leaves nothing to choose, expected alternatives"):
        tune.alternatives("crop:context=2")
    with pytest.raises(ValueError, match="expected a method"):
        tune.alternatives("crops:context=1|2")


def test_the_best_on_the_validation_set_is_chosen_and_the_test_set_not_looked_at(refer_folder, tiny, tmp_path):
    validation = refcoco.task(refer_split(refer_folder, "val"), prompt="{}")
    test = replace(refcoco.task(refer_split(refer_folder)), read=refuse_to_read)
    texts = ["crop:context=0.2|1|1.5", "0|1*alpha + whole"]
    chosen, finding = tune.choose(texts, validation, test, [tiny], tmp_path / "tuning")
    ways = [way for text in texts for way in tune.alternatives(text)]
    found = run_task(validation, [tiny], ways, tmp_path / "again")
    for text, way in zip(texts, chosen, strict=True):
        shares = {
            w.name: np.mean([a.rank == 0 for r in found.of("tiny", w.name) for a in r.answers])
            for w in tune.alternatives(text)
        }
        assert shares[way.name] == max(shares.values()) > min(shares.values())
    (table,) = finding.tables
    assert [row[1] for row in table.rows if row[-1] == "chosen"] == [way.name for way in chosen]
    assert table.rows[1][2].value == pytest.approx(
        np.mean([a.rank == 0 for r in found.of(*table.rows[1][:2]) for a in r.answers])
    )
    assert "on 2 samples that no other figure here is of" in finding.verdict


def test_sets_that_share_a_picture_are_refused(refer_folder, tiny, tmp_path):
    task = replace(refcoco.task(refer_split(refer_folder)), read=refuse_to_read)
    with pytest.raises(
        ValueError, match=r"3 pictures are in the validation set and in the test set, such as .*COCO_2.png"
    ):
        tune.choose(["crop:context=1|2"], task, task, [tiny], tmp_path)


def test_the_built_in_scenes_have_others_to_choose_on():
    validation, test = builtin.task(True, builtin.VALIDATION_SEED), builtin.task(True)
    assert validation.keys == test.keys  # the pictures are others
    tune.check_apart(validation, test)


def test_what_no_model_can_look_in_cannot_be_chosen(refer_folder, tiny, tmp_path):
    validation = refcoco.task(refer_split(refer_folder, "val"))
    test = refcoco.task(refer_split(refer_folder))
    blind = replace(tiny, takes_masks=False)
    with pytest.raises(ValueError, match=r"no model can look in 'alpha:geometry=pad'"):
        tune.choose(["crop:context=1|2", "alpha:geometry=pad|squash"], validation, test, [blind], tmp_path)


def test_pictures_are_held_back_by_name():
    names = [f"{i}.jpg" for i in range(2000)]
    held = {name for name in names if tune.is_held_back(name, 0.2)}
    assert 0.17 < len(held) / len(names) < 0.23
    assert held < {name for name in names if tune.is_held_back(name, 0.3)}
    assert not any(tune.is_held_back(name, 0) for name in names)


@pytest.mark.parametrize("share", [-0.1, 1, 20])
def test_a_share_is_below_one(share):
    with pytest.raises(
        ValueError, match=r"--hold-back is -?\d.*, expected a share of the pictures from 0 to less than 1"
    ):
        tune.is_held_back("a", share)


@pytest.mark.parametrize("name", ["coco", "imagenet-s", "regions"])
def test_what_is_held_back_is_the_rest_of_what_is_asked(name, coco_folder, imagenet_folder, regions_folder):
    def task(**options) -> Task:
        if name == "coco":
            return coco_task(coco_folder, **options)
        if name == "regions":
            return retrieval.of_regions(regions_folder, **options)
        return imagenet_s.task(imagenet_folder, imagenet_folder / "data.noun", **options)

    held, rest = task(hold_back=0.5, validation=True), task(hold_back=0.5)
    tune.check_apart(held, rest)
    assert held.keys and rest.keys
    assert list(held.keys) == [key for key in task().keys if tune.is_held_back(key, 0.5)]
    assert sorted([*held.keys, *rest.keys]) == sorted(task().keys)
    assert held.identity != rest.identity


# --- the commands ---


def command(*arguments) -> None:
    main([str(argument) for argument in arguments])


def test_coco_from_the_command_line(coco_folder, tmp_path, capsys):
    out = tmp_path / "out"
    line = ["coco", "--data", coco_folder, "--methods", "alpha", "crop", "--device", "cpu", "--out", out]
    command(*line)
    shown = capsys.readouterr().out
    assert "| way | top-1 | top-5 | mean per class | small | medium | large | forwards | time |" in shown
    before = (out / "records.jsonl").read_bytes()
    command(*line)
    assert (out / "records.jsonl").read_bytes() == before


def test_options_are_chosen_on_pictures_held_back(coco_folder, tmp_path, capsys):
    out = tmp_path / "out"
    line = ["coco", "--data", coco_folder, "--methods", "whole", "--tune", "crop:context=1|2", "--device", "cpu"]
    command(*line, "--hold-back", "0.5", "--out", out)
    assert "crop:context=" in capsys.readouterr().out
    found = json.loads((out / "results.json").read_text())
    (finding,) = found["findings"]
    assert "Chosen by top-1 on" in finding["verdict"]
    validated = {json.loads(row)["key"] for row in (out / "tuning" / "records.jsonl").read_text().splitlines()}
    tested = set(found["samples"])
    assert validated and tested and not validated & tested
    assert "## What was chosen on other pictures" in (out / "results.md").read_text()
    with pytest.raises(SystemExit) as left:
        command(*line, "--out", tmp_path / "other")
    assert left.value.code == 2
    assert "are in the validation set and in the test set" in capsys.readouterr().err


def test_options_are_chosen_on_other_annotations(coco_folder, scenes, tmp_path, capsys):
    found = instances(scenes[:2])
    for image in found["images"]:
        image["file_name"] = f"other_{image['id'] - 500}.png"
    write(coco_folder / "other.json", found)
    save_pictures(scenes[:2], coco_folder / "others", "other_{}.png")
    line = ["coco", "--data", coco_folder, "--methods", "whole", "--tune", "crop:context=1|2", "--device", "cpu"]
    command(*line, "--out", tmp_path / "out", "--validation", "other.json", "--validation-images", "others")
    assert len((tmp_path / "out" / "tuning" / "records.jsonl").read_text().splitlines()) == 2 * 2 * 2


def test_imagenet_s_from_the_command_line(imagenet_folder, tmp_path, capsys):
    command(
        "imagenet-s", "--data", imagenet_folder, "--methods", "alpha", "whole", "--device", "cpu", "--out", tmp_path
    )
    assert "| way | top-1 | top-5 | forwards | time |" in capsys.readouterr().out
    line = ["imagenet-s", "--data", imagenet_folder, "--corrected", "--methods", "alpha", "--device", "cpu"]
    with pytest.raises(SystemExit):
        command(*line, "--out", tmp_path)
    assert "holds a run with another task: choose another folder" in capsys.readouterr().err


def test_refcoco_from_the_command_line(refer_folder, tmp_path, capsys):
    tuned = ["--tune", "crop:context=1|1.5", "alpha + 0.5|1*alpha_blurred"]
    line = ["refcoco", "--data", refer_folder, "--methods", "alpha", "squashed_mask", "--device", "cpu"]
    command(*line, "--out", tmp_path, *tuned)
    shown = capsys.readouterr().out
    assert "| way | IoU > 0.5 | forwards | time |" in shown
    assert "tiny, squashed_mask" in shown and "alpha_blurred" in shown
    notes = (tmp_path / "results.md").read_text()
    assert "phrases, 100.0% have a right candidate; a choice by lot is right for" in notes
    with pytest.raises(SystemExit):
        command(*line, "--split", "val", "--out", tmp_path / "val", *tuned)
    assert "2 pictures are in the validation set and in the test set" in capsys.readouterr().err


def test_refcoco_by_two_models_together(refer_folder, tmp_path, capsys):
    weights = alpha_clip.weights.ASSETS / "tiny_alpha.safetensors"
    line = ["refcoco", "--data", refer_folder, "--methods", "alpha + alpha_blurred", "--device", "cpu", "--no-base"]
    command(*line, "--model", "tiny", f"tiny+{weights}", "--together", "--out", tmp_path)
    assert f"together: tiny, tiny+{weights}, alpha + alpha_blurred" in capsys.readouterr().out


def test_retrieval_from_the_command_line(refer_folder, regions_folder, tmp_path, capsys):
    for name, folder in (("refer", refer_folder), ("regions", regions_folder)):
        line = ["retrieval", "--data", folder, "--methods", "alpha", "--device", "cpu", "--no-base"]
        command(*line, *(["--dataset", "refcoco"] if name == "refer" else []), "--out", tmp_path / name)
        assert "| region to phrase R@1 | region to phrase R@5 |" in capsys.readouterr().out
        (way,) = json.loads((tmp_path / name / "results.json").read_text())["ways"]
        assert way["ranks"] and all(rank >= 0 for ranks in way["ranks"] for rank in ranks)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["coco"], "nowhere is not a folder: expected the data, with annotations/"),
        (["imagenet-s"], "nowhere is not a folder: expected the folder with imagenet_919.json and ImageNetS919/"),
        (["refcoco"], r"nowhere.refcoco is not a folder: expected the folder of the data set, with refs\(...\).p"),
        (["retrieval"], "nowhere does not exist: expected a folder of one"),
        (["retrieval", "--dataset", "refcoco"], "nowhere.refcoco is not a folder: expected the folder of the data set"),
        (["retrieval", "--dataset", "refcoco", "--hold-back", "0.1"], "--hold-back is for data without splits"),
    ],
)
def test_a_wrong_folder_is_named(line, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        command(*line, "--data", tmp_path / "nowhere", "--device", "cpu", "--out", tmp_path)
    assert left.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_the_commands_in_the_documentation_can_be_read():
    text = (Path(__file__).parents[1] / "docs" / "protocols.md").read_text().replace("\\\n", "")
    lines = re.findall(r"^python -m alpha_clip.evaluation (.+)", text, re.MULTILINE)
    assert {shlex.split(line)[0] for line in lines} == {"coco", "imagenet-s", "refcoco", "retrieval"}
    for line in lines:
        args = _parser().parse_args(shlex.split(line))
        assert all(parse(method) for method in args.methods)
        assert all(tune.alternatives(method) for method in args.tune)


def test_each_protocol_has_ways_of_its_own_that_can_be_parsed():
    for module in (coco, imagenet_s, refcoco, retrieval):
        assert all(parse(method) for method in module.METHODS)
        module.add_arguments(argparse.ArgumentParser())
