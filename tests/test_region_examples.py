"""The examples: labels for everything in a picture, and the search for regions, measured."""

import re
import sys
from functools import partial

import label_everything
import numpy as np
import pytest
import search_regions as demo
import torch
from drawn import save_scene
from PIL import Image
from sams import sam

import alpha_clip
from alpha_clip.mask_sources import SamMasks
from alpha_clip.scenes import draw_scene
from alpha_clip.search.index import OUTLINE, Hit


def run(module, capsys, monkeypatch, *arguments):
    """What a command prints; its exit status is in SystemExit."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    module.main()
    return capsys.readouterr().out


def colours_of(file):
    """How many colours a picture has: few, and it is blank."""
    return len(np.unique(np.asarray(Image.open(file)).reshape(-1, 3), axis=0))


# --- labels ---


def test_everything_in_a_drawn_scene_is_labelled(monkeypatch, tmp_path, capsys):
    out = run(label_everything, capsys, monkeypatch, "--out", tmp_path / "figure.png")
    labels = [line[8:24].strip() for line in out.splitlines()[1:-1]]
    # Its objects from back to front; no label fits a key.
    assert labels == ["a crown", "a boat", "a balloon", "a dog", "a rocket", label_everything.NONE]
    assert colours_of(tmp_path / "figure.png") > 1000


def test_labels_come_from_a_file_and_masks_from_beside_the_picture(monkeypatch, tmp_path, capsys):
    scene = save_scene(tmp_path, "photo", nouns=["cat", "bus"], objects=(2, 2), scale=(0.4, 0.5))
    (tmp_path / "labels.txt").write_text("a cat\n\na bus\na tree\n")
    out = run(
        label_everything, capsys, monkeypatch, "--image", tmp_path / "photo.png",
        "--label-file", tmp_path / "labels.txt", "--least", 0, "--out", tmp_path / "figure.png",
    )  # fmt: skip
    assert [line[8:24].strip() for line in out.splitlines()[1:-1]] == [f"a {region.noun}" for region in scene.regions]


def test_labels_are_those_of_the_features(capsys):
    scene = draw_scene(4, 96, objects=(3, 3))
    model, _ = alpha_clip.load("tiny", "cpu")
    names = ["a cat", "a dog", "a tree"]
    found = label_everything.label(model, scene.image, scene.masks, names, -1.0, "crop")
    with torch.no_grad():
        features = alpha_clip.embed_regions(model, scene.image, scene.masks, "crop")
        text = torch.nn.functional.normalize(model.encode_text(alpha_clip.tokenize(names)), dim=-1)
        logits = model.logit_scale.exp() * features @ text.T
    assert [one.label for one in found] == [names[n] for n in logits.argmax(1)]
    np.testing.assert_allclose([one.share for one in found], logits.softmax(1).amax(1), atol=1e-5)
    np.testing.assert_allclose([one.cosine for one in found], (features @ text.T).amax(1), atol=1e-5)
    assert {one.label for one in label_everything.label(model, scene.image, scene.masks, names, 2.0, "crop")} == {
        label_everything.NONE
    }


def test_a_photo_without_masks_is_labelled_by_a_grid_that_says_so(monkeypatch, tmp_path, capsys):
    Image.fromarray(draw_scene(0, 64).image).save(tmp_path / "photo.png")
    arguments = ["--image", tmp_path / "photo.png", "--out", tmp_path / "figure.png"]
    out = run(label_everything, capsys, monkeypatch, *arguments)
    assert out.startswith("no masks beside the picture and no --sam: a grid of boxes")
    assert len(out.splitlines()) == 38


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "nowhere.png"], "nowhere.png"),
        (["--method", "telepathy"], "expected one of alpha"),
        (["--sam", "./nowhere"], "nowhere"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_label_everything_says_in_a_line_what_is_wrong(arguments, message, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        run(label_everything, capsys, monkeypatch, *arguments)
    assert message in capsys.readouterr().err


# --- labels of SAM's masks ---


@pytest.fixture
def random_sam(tmp_path):
    """A folder with a SAM of random weights, which finds nothing."""
    pytest.importorskip("transformers", reason="pip install -e '.[test]'")
    sam(tmp_path / "sam")
    return tmp_path / "sam"


def test_masks_of_sam_are_labelled(random_sam, monkeypatch, tmp_path, capsys):
    Image.fromarray(draw_scene(0, (60, 80)).image).save(tmp_path / "photo.png")
    # Random weights say the same everywhere, in specks: any mask will do.
    anything = {"pred_iou_thresh": -1e9, "stability_score_thresh": -1.0, "crops_nms_thresh": 0.99}
    monkeypatch.setattr(label_everything, "SamMasks", partial(SamMasks, **anything))
    out = run(
        label_everything, capsys, monkeypatch, "--image", tmp_path / "photo.png", "--sam", random_sam,
        "--points", 3, "--labels", "a cat", "a dog", "--least", 0, "--out", tmp_path / "figure.png",
    )  # fmt: skip
    labels = {line[8:24].strip() for line in out.splitlines()[1:-1]}
    assert labels and labels <= {"a cat", "a dog"}


def test_sam_that_finds_nothing_is_said_in_a_line(random_sam, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        run(label_everything, capsys, monkeypatch, "--sam", random_sam, "--points", 2, "--out", tmp_path / "f.png")
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("label_everything: no mask is left")


# --- the search, measured ---


def test_demo_finds_more_by_masks_than_by_whole_pictures(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "WAYS", (demo.WAYS[0], demo.WAYS[-1]))
    monkeypatch.setattr(demo, "TOP", 3)
    out = "\n".join(demo.report(tmp_path, 30, tmp_path / "hits.png"))
    masks, whole = (float(share) for share in re.findall(r"^\| (?:exact|the whole).*?\| ([\d.]+)% \|", out, re.M))
    assert masks > 70 > 50 > whole
    assert re.search(r"^\| a boat \| \d \| \d+% \| \d+% \|$", out, re.M)
    assert colours_of(tmp_path / "hits.png") > 1000


def test_precision_counts_pictures_once_and_boxes_that_overlap_by_half():
    def hit(path, box):
        return Hit(0.5, (f"/somewhere/{path}",), box, np.zeros((OUTLINE, OUTLINE), bool))

    objects = [demo.Truth("cat", "1.png", (0.0, 0.0, 0.5, 0.5)), demo.Truth("cat", "2.png", (0.5, 0.5, 1.0, 1.0))]
    hits = [
        hit("1.png", (0.0, 0.0, 0.5, 0.25)),  # half of it
        hit("1.png", (0.0, 0.0, 0.5, 0.2)),  # less
        hit("1.png", (0.5, 0.5, 1.0, 1.0)),  # where it is in another picture
        hit("2.png", (0.4, 0.5, 1.0, 1.0)),
        hit("3.png", (0.5, 0.5, 1.0, 1.0)),
        hit("2.png", (0.5, 0.5, 1.0, 1.0)),  # the sixth
    ]
    assert demo.precision(hits, objects) == (2 / 5, 2 / 5)
