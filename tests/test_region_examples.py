"""Labels for everything, and the search for regions: masks, the index on disk, both commands."""

import json
import re
import sys
from functools import partial
from pathlib import Path

import label_everything
import numpy as np
import pytest
import search_regions as demo
import torch
from PIL import Image

import alpha_clip
from alpha_clip.hashes import fingerprint
from alpha_clip.mask_sources import SIDE, SamMasks, beside, grid, mask_file, masks_of, worth_it
from alpha_clip.rle import encode
from alpha_clip.scenes import draw_scene
from alpha_clip.search import approximate, indexing
from alpha_clip.search.index import OUTLINE, Hit, RegionIndex, Seen, Settings, records
from alpha_clip.search.sheet import thumbnail
from alpha_clip.transforms import mask_box

SETTINGS = Settings("tiny", "0" * 64, 8, "alpha", "beside the picture, else a grid")


def run(module, capsys, monkeypatch, *arguments):
    """What a command prints; its exit status is in SystemExit."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    module.main()
    return capsys.readouterr().out


def colours_of(file):
    """How many colours a picture has: few, and it is blank."""
    return len(np.unique(np.asarray(Image.open(file)).reshape(-1, 3), axis=0))


def save_scene(folder, name, seed=0, **options):
    """A drawn picture with its exact masks beside it."""
    scene = draw_scene(9_900_000_000 + seed, 96, **{"objects": (2, 3), "overlap": 0.0} | options)
    folder.mkdir(exist_ok=True)
    Image.fromarray(scene.image).save(folder / f"{name}.png")
    masks = (255 * scene.masks).round().astype(np.uint8)
    np.savez(folder / f"{name}.masks.npz", masks=masks)
    return scene


# --- masks ---


@pytest.fixture
def two_masks():
    """(2, 6, 8) bool."""
    masks = np.zeros((2, 6, 8), bool)
    masks[0, 1:4, 2:6] = masks[1, 4:6, 0:2] = True
    return masks


def test_files_of_masks_of_all_kinds_say_the_same(two_masks, tmp_path):
    pytest.importorskip("pycocotools", reason="pip install -e '.[train]'")
    np.savez(tmp_path / "bools.npz", masks=two_masks)
    np.savez(tmp_path / "bytes.npz", masks=255 * two_masks.astype(np.uint8))
    Image.fromarray((7 * two_masks[0] + 9 * two_masks[1]).astype(np.uint8)).save(tmp_path / "labels.png")
    polygons = [[2, 1, 5, 1, 5, 3, 2, 3]], [[0, 4, 1, 4, 1, 5, 0, 5]]  # Pillow draws the last pixel too
    (tmp_path / "polygons.json").write_text(json.dumps([{"segmentation": polygon} for polygon in polygons]))
    runs = {"image": {}, "annotations": [{"segmentation": encode(mask)} for mask in two_masks]}
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    for file in tmp_path.iterdir():
        assert np.array_equal(list(beside(file, (8, 6))), two_masks), file.name


def test_soft_masks_stay_soft(tmp_path):
    np.savez(tmp_path / "soft.npz", masks=np.full((1, 2, 2), 51, np.uint8))
    np.testing.assert_allclose(list(beside(tmp_path / "soft.npz", (2, 2))), 0.2)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", {"other": np.zeros(1)}, r"holds \['other'\], expected an array named masks"),
        ("a.npz", {"masks": np.zeros((2, 2), bool)}, r"masks of bool \(2, 2\), expected"),
        ("a.npz", {"masks": np.zeros((1, 3, 2), bool)}, r"holds masks of \(3, 2\), expected \(2, 2\)"),
        ("a.png", np.zeros((2, 2, 3), np.uint8), "has colours, expected one number a pixel"),
        ("a.json", [{"box": [0, 0, 1, 1]}], "no list of annotations"),
        ("a.json", {"images": []}, "no list of annotations"),
    ],
)
def test_what_is_no_file_of_masks_is_refused(name, content, message, tmp_path):
    if name == "a.npz":
        np.savez(tmp_path / name, **content)
    elif name == "a.png":
        Image.fromarray(content).save(tmp_path / name)
    else:
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        list(beside(tmp_path / name, (2, 2)))


def test_specks_and_repetitions_are_left_out_and_the_first_kept():
    masks = np.zeros((6, 100, 100), np.float32)
    masks[0, 10:50, 10:50] = 1
    masks[1, 10:50, 11:51] = 1  # nearly the first
    masks[2, 90:93, 90:93] = 1  # 9 pixels of 10,000
    masks[3, 10:50, 10:30] = 1  # half of the first: another thing
    masks[4] = 0.4  # nowhere foreground
    masks[5, 60:90] = 1
    assert worth_it(masks) == [0, 3, 5]
    assert worth_it(masks[[1, 0]]) == [0]
    assert worth_it(masks, least=0.0005, overlap=0.99) == [0, 1, 2, 3, 5]


def test_large_pictures_and_their_masks_shrink_alike(tmp_path):
    picture = Image.new("RGB", (2 * SIDE, SIDE))
    mask = alpha_clip.box_mask((SIDE, 0, 1.5 * SIDE, SIDE / 2), picture.size[::-1])
    np.savez(tmp_path / "large.masks.npz", masks=mask[None] > 0)
    assert mask_file(tmp_path / "large.jpg") == tmp_path / "large.masks.npz"
    small, masks = masks_of(tmp_path / "large.jpg", picture, grid)
    assert small.size == (SIDE, SIDE // 2)
    assert mask_box(masks[0]) == (SIDE // 2, 0, SIDE * 3 // 4, SIDE // 4)
    assert masks_of(tmp_path / "other.jpg", picture, lambda _: [])[1].shape == (0, SIDE // 2, SIDE)


def test_grid_covers_the_picture_by_boxes_of_three_sizes():
    masks = np.stack(list(grid(Image.new("RGB", (120, 60)))))
    boxes = [mask_box(mask) for mask in masks]
    assert boxes[0] == (0, 0, 120, 60)
    assert [(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes] == [(120, 60)] + 9 * [(60, 30)] + 25 * [(40, 20)]
    assert len(set(boxes)) == 35
    for part in (masks[1:10], masks[10:]):
        assert (part.max(axis=0) == 1).all()


# --- SAM ---

SMALL = {"hidden_size": 32, "patch_size": 16, "mask_input_channels": 4}
DECODER = {"hidden_size": 32, "mlp_dim": 64, "num_attention_heads": 2, "iou_head_hidden_dim": 32}
ANYTHING = {"pred_iou_thresh": -1e9, "stability_score_thresh": -1.0, "crops_nms_thresh": 0.99}  # of random weights


def parts(vision, **prompt):
    return {"vision_config": vision, "prompt_encoder_config": SMALL | prompt, "mask_decoder_config": DECODER}


def sam():
    from transformers import SamConfig, SamImageProcessor, SamModel

    vision = {"hidden_size": 32, "output_channels": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 64}
    vision |= {"image_size": 128, "patch_size": 16, "window_size": 4, "global_attn_indexes": [0], "num_pos_feats": 16}
    config = SamConfig(**parts(vision, image_size=128))
    processor = SamImageProcessor(
        size={"longest_edge": 128}, pad_size={"height": 128, "width": 128},
        mask_size={"longest_edge": 32}, mask_pad_size={"height": 32, "width": 32},
    )  # fmt: skip
    return SamModel(config), processor


def sam2():
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model

    stages = {
        "embed_dim_per_stage": [8, 16, 32, 64],
        "blocks_per_stage": [1, 1, 2, 1],
        "num_attention_heads_per_stage": [1] * 4,
    }
    backbone = stages | {"model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [128, 128]}
    backbone |= {"window_size_per_stage": [8, 4, 4, 4], "global_attention_blocks": [3]}
    vision = {"backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 32}
    vision |= {"backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
    config = Sam2Config(**parts(vision, image_size=128))
    return Sam2Model(config), Sam2ImageProcessor(
        size={"height": 128, "width": 128}, mask_size={"height": 32, "width": 32}
    )


def sam3():
    from transformers import Sam3ImageProcessor, Sam3TrackerConfig, Sam3TrackerModel

    backbone = {"model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    backbone |= {"num_attention_heads": 2, "image_size": 112, "window_size": 4, "global_attn_indexes": [0]}
    backbone |= {"pretrain_image_size": 56}
    vision = {"backbone_config": backbone, "fpn_hidden_size": 32}
    vision |= {"backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]}
    config = Sam3TrackerConfig(**parts(vision, image_size=112, patch_size=14))
    size = {"height": 112, "width": 112}
    return Sam3TrackerModel(config), Sam3ImageProcessor(size=size, mask_size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A function of a maker above: the folder where its model lies, with random weights."""
    pytest.importorskip("transformers", reason="pip install -e '.[test]'")
    folders = {}

    def saved(make):
        if make not in folders:
            torch.manual_seed(0)
            folders[make] = tmp_path_factory.mktemp(make.__name__)
            for part in make():
                part.save_pretrained(folders[make])
            if make is sam3:  # facebook/sam3 says it is a model of videos, of which the tracker is a part
                config = folders[make] / "config.json"
                tracker = json.loads(config.read_text())
                config.write_text(json.dumps({"model_type": "sam3_video", "tracker_config": tracker}))
        return str(folders[make])

    return saved


@pytest.mark.parametrize(("make", "name"), [(sam, "SamModel"), (sam2, "Sam2Model"), (sam3, "Sam3TrackerModel")])
def test_segmenter_asks_any_sam_at_a_grid_of_points(make, name, folder_of, monkeypatch):
    segmenter = SamMasks(folder_of(make), points=3, device="cpu", **ANYTHING)
    found = segmenter._generate.model
    assert type(found).__name__ == name
    torch.manual_seed(0)
    for name, value in make()[0].state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    asked, original = [], found.forward

    def forward(*args, **kwargs):
        asked.append(kwargs["input_points"])
        return original(*args, **kwargs)

    monkeypatch.setattr(found, "forward", forward)
    picture = Image.fromarray(draw_scene(0, (60, 80)).image)
    masks = list(segmenter(picture))
    assert sum(points.shape[1] for points in asked) == 9
    assert masks
    assert {(mask.shape, mask.dtype) for mask in masks} == {((60, 80), np.dtype(bool))}


def test_masks_of_sam_are_labelled(folder_of, monkeypatch, tmp_path, capsys):
    Image.fromarray(draw_scene(0, (60, 80)).image).save(tmp_path / "photo.png")
    # Random weights say the same everywhere, in specks: any mask will do.
    monkeypatch.setattr(label_everything, "SamMasks", partial(SamMasks, **ANYTHING))
    out = run(
        label_everything, capsys, monkeypatch, "--image", tmp_path / "photo.png", "--sam", folder_of(sam),
        "--points", 3, "--labels", "a cat", "a dog", "--least", 0, "--out", tmp_path / "figure.png",
    )  # fmt: skip
    labels = {line[8:24].strip() for line in out.splitlines()[1:-1]}
    assert labels and labels <= {"a cat", "a dog"}


def test_sam_that_finds_nothing_is_said_in_a_line(folder_of, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        run(label_everything, capsys, monkeypatch, "--sam", folder_of(sam), "--points", 2, "--out", tmp_path / "f.png")
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("label_everything: no mask is left")


def test_segmenter_says_what_it_comes_from(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        SamMasks("facebook/sam-vit-base")


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


# --- the index on disk ---


def seen(path, key, features, boxes=((0, 0, 4, 4),)):
    """A picture of 8 x 8 pixels with a region for each row of (K, 8) features."""
    masks = [alpha_clip.box_mask(boxes[k % len(boxes)], (8, 8)) for k in range(len(features))]
    masks = np.stack(masks) if masks else np.zeros((0, 8, 8), np.float32)
    return Seen(path, key, records(np.asarray(features, np.float32).reshape(-1, 8), masks))


@pytest.fixture
def features():
    """(60, 8) of unit length."""
    rows = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def index(features, tmp_path):
    """30 pictures, pI and key kI, of two regions each, in five parts."""
    index = RegionIndex.create(tmp_path / "index", SETTINGS)
    for first in range(0, 30, 6):
        index.add([seen(f"p{i}", f"k{i}", features[2 * i : 2 * i + 2]) for i in range(first, first + 6)])
    return index


def names(hits):
    return [[(hit.paths[0], hit.box) for hit in some] for some in hits]


def test_search_is_the_largest_products_over_all_parts(index, features, monkeypatch):
    monkeypatch.setattr("alpha_clip.search.index._BLOCK", 5)
    queries = features[::7]
    hits = RegionIndex.open(index.folder).search(queries, 10)
    products = queries @ features.T
    for some, row in zip(hits, products, strict=True):
        assert [hit.paths for hit in some] == [(f"p{k // 2}",) for k in np.argsort(-row)[:10]]
        np.testing.assert_allclose([hit.score for hit in some], np.sort(row)[::-1][:10], atol=1e-3)
    assert len(index.search(queries, 1000)[0]) == len(index) == 60


def test_a_hit_tells_where_it_is(tmp_path):
    index = RegionIndex.create(tmp_path, SETTINGS)
    index.add([seen("p", "k", np.eye(2, 8), boxes=((0, 0, 4, 2), (6, 2, 8, 8)))])
    first, second = index.search(np.eye(8, dtype=np.float32)[1:2], 2)[0]
    assert (first.box, second.box) == ((0.75, 0.25, 1.0, 1.0), (0.0, 0.0, 0.5, 0.25))
    assert first.score == 1
    expected = alpha_clip.box_mask((0.75 * OUTLINE, 0.25 * OUTLINE, OUTLINE, OUTLINE), (OUTLINE, OUTLINE))
    assert np.array_equal(first.outline, expected > 0)


def test_a_thin_region_keeps_an_outline(tmp_path):
    mask = np.zeros((1, 1000, 1000), np.float32)
    mask[0, :, 500] = 1
    packed = records(np.eye(1, 8, dtype=np.float32), mask)["outline"]
    assert np.unpackbits(packed).sum() == OUTLINE


def test_a_part_counts_once_its_list_is_there(index, features):
    *_, last = sorted((index.folder / "parts").glob("*.json"))
    last.rename(index.folder / "parts" / f".{last.name}.part")  # as if killed just before it was renamed
    again = RegionIndex.create(index.folder, SETTINGS)
    assert len(again) == 48
    with again.alone():
        assert not list(index.folder.rglob("*.part"))
    again.add([seen(f"p{i}", f"k{i}", features[2 * i : 2 * i + 2]) for i in range(24, 30)])
    assert names(RegionIndex.open(index.folder).search(features[:3], 9)) == names(index.search(features[:3], 9))


def test_no_file_is_ever_half_written(index, monkeypatch):
    before = {path: path.read_bytes() for path in index.folder.rglob("*") if path.is_file()}

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("alpha_clip.search.index.os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        index.add([seen("new", "new", np.eye(1, 8))])
    after = {path: path.read_bytes() for path in index.folder.rglob("*") if path.is_file() and path.suffix != ".part"}
    assert after == before


def test_of_copies_one_is_searched_and_all_are_named(index, features):
    index.add([Seen("copy", "k3", None)])
    (hit,) = index.search(features[6:7], 1)[0]
    assert hit.paths == ("copy", "p3")
    assert len(index) == 60


def test_a_picture_that_changed_is_found_as_it_is_now(index, features):
    index.add([seen("p3", "changed", -features[6:7])])
    assert len(index) == 59
    assert "p3" not in [hit.paths[0] for hit in index.search(features[6:8], 5)[0]]
    assert index.search(-features[6:7], 1)[0][0].paths == ("p3",)
    index.add([Seen("p3", "k3", None)])  # changed back
    assert index.search(features[6:7], 1)[0][0].paths == ("p3",)
    assert len(index) == 60


def test_one_process_at_a_time_adds_and_sees_what_was_added_before(index, features):
    other = RegionIndex.open(index.folder)
    with index.alone():
        index.add([seen("new", "new", np.eye(1, 8))])
        with pytest.raises(RuntimeError, match=r"another process adds to .*index: wait for it, or na"), other.alone():
            raise AssertionError("two at a time")
    assert len(other) == 60
    with other.alone():
        assert len(other) == 61


def test_a_key_that_two_processes_added_counts_once(index, features):
    other = RegionIndex.open(index.folder)
    index.add([seen("new", "new", np.eye(1, 8))])
    other.add([seen("new", "new", np.eye(1, 8)), seen("newer", "newer", np.eye(1, 8))])
    both = RegionIndex.open(index.folder)
    assert len(both) == 62
    assert {hit.paths[0] for hit in both.search(np.eye(1, 8, dtype=np.float32), 2)[0]} == {"new", "newer"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": "other", "sha256": "1" * 64},
            "was made with tiny, weights 000000000000, and this is other, weights 11",
        ),
        ({"method": "crop"}, "was made with method 'alpha', not 'crop'"),
        ({"masks": "sam"}, "was made with masks 'beside the picture, else a grid', not 'sam'"),
    ],
)
def test_another_model_method_or_source_of_masks_is_refused(change, message, index):
    with pytest.raises(ValueError, match=message):
        RegionIndex.create(index.folder, Settings(**{**vars(SETTINGS), **change}))
    RegionIndex.create(index.folder, Settings(**{**vars(SETTINGS), "model": "the same under another name"}))


def test_what_is_no_index_is_refused(index, tmp_path):
    with pytest.raises(ValueError, match="holds no index"):
        RegionIndex.open(tmp_path)
    part = next((index.folder / "parts").glob("*.npy"))
    np.save(part, np.load(part)[:5])
    with pytest.raises(ValueError, match="holds 5 regions, expected 12"):
        RegionIndex.open(index.folder)
    file = index.folder / "index.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="is an index of version 2, expected 1"):
        RegionIndex.open(index.folder)


def test_faiss_finds_what_the_exact_search_finds(index, features):
    pytest.importorskip("faiss", reason="pip install faiss-cpu")
    assert approximate.search(index, features[:3], 5) is None
    approximate.update(index)
    assert names(approximate.search(index, features[:3], 5)) == names(index.search(features[:3], 5))
    index.add([seen("new", "new", np.eye(1, 8))])
    assert approximate.search(index, features[:3], 5) is None  # it would not find what was added
    approximate.update(index)
    queries = np.eye(2, 8, dtype=np.float32)
    assert names(approximate.search(index, queries, 10)) == names(index.search(queries, 10))


def test_faiss_s_graph_is_made_anew_when_a_picture_changed_or_a_write_was_cut(index, features):
    pytest.importorskip("faiss", reason="pip install faiss-cpu")
    approximate.update(index)
    index.add([seen("p3", "changed", -features[6:7])])
    assert approximate.search(index, features[:3], 5) is None
    approximate.update(index)
    assert names(approximate.search(index, features[6:8], 10)) == names(index.search(features[6:8], 10))
    covered = (index.folder / "covered.json").read_bytes()
    index.add([seen("new", "new", np.eye(1, 8))])
    approximate.update(index)
    (index.folder / "covered.json").write_bytes(covered)  # as if killed before it was written
    assert approximate.search(index, features[:3], 5) is None
    approximate.update(index)
    assert names(approximate.search(index, features[:3], 10)) == names(index.search(features[:3], 10))


# --- indexing a folder, and the commands ---


@pytest.fixture
def photos(tmp_path):
    """Five drawn pictures with masks, one of them a folder deeper."""
    for i in range(5):
        save_scene(tmp_path / "photos" / ("more" if i == 4 else ""), f"{i}", i, nouns=["cat", "bus", "tree"])
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def tiny():
    return indexing.load("tiny", "cpu", "alpha", "beside the picture, else a grid")


def test_an_interrupted_run_goes_on_where_it_was(photos, tiny, tmp_path, monkeypatch):
    model, settings = tiny
    looked, look = [], indexing.look

    def interrupted(path, *rest):
        if len(looked) == 3:
            raise KeyboardInterrupt
        looked.append(path.name)
        return look(path, *rest)

    monkeypatch.setattr(indexing, "PART", 2)
    monkeypatch.setattr(indexing, "look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        indexing.fill(RegionIndex.create(tmp_path / "index", settings), photos, model, grid)
    assert len(RegionIndex.open(tmp_path / "index").pictures) == 3
    monkeypatch.setattr(indexing, "look", look)
    assert indexing.fill(RegionIndex.create(tmp_path / "index", settings), photos, model, grid) == (2, 3, 0)
    indexing.fill(RegionIndex.create(tmp_path / "at once", settings), photos, model, grid)
    found = [
        names(indexing.find(RegionIndex.open(tmp_path / name), model, ["a cat"], 99)) for name in ("index", "at once")
    ]
    assert found[0] == found[1]


def test_pictures_moved_copied_and_changed(photos, tiny, tmp_path):
    model, settings = tiny
    index = RegionIndex.create(tmp_path / "index", settings)
    assert indexing.fill(index, photos, model, grid) == (5, 0, 0)
    for kind in (".png", ".masks.npz"):
        (photos / f"0{kind}").rename(photos / f"moved{kind}")
    assert indexing.fill(index, photos, model, grid) == (0, 5, 0)
    regions = len(index)
    scene = save_scene(photos, "1", 77, nouns=["dog"], objects=(1, 1))
    assert indexing.fill(index, photos, model, grid) == (1, 4, 0)
    assert len(index) < regions
    (hit,) = indexing.find(index, model, ["a dog"], 1)[0]
    assert Path(hit.paths[0]).name == "1.png"
    np.testing.assert_allclose(hit.box, np.array(scene.regions[0].box) / 96, atol=1e-6)
    (photos / "1.masks.npz").unlink()  # other masks, another look
    assert indexing.fill(index, photos, model, grid) == (1, 4, 0)


def test_of_hits_on_one_another_the_best_is_shown():
    def hit(path, x0, x1):
        outline = np.zeros((OUTLINE, OUTLINE), bool)
        outline[:, x0:x1] = True
        return Hit(0.5, (path,), (0, 0, 1, 1), outline)

    hits = [hit("a", 0, 20), hit("a", 5, 10), hit("b", 0, 20), hit("a", 13, 33), hit("a", 12, 32), hit("a", 0, 64)]
    assert indexing.distinct(hits, 9) == [hits[0], hits[2], hits[3]]
    assert indexing.distinct(hits, 2) == [hits[0], hits[2]]


def test_without_faiss_every_feature_is_read(photos, tiny, tmp_path, monkeypatch):
    model, settings = tiny
    monkeypatch.setattr(approximate, "is_installed", lambda: False)
    index = RegionIndex.create(tmp_path / "index", settings)
    indexing.fill(index, photos, model, grid)
    found = indexing.find(index, model, ["a cat", "a bus"], 4)
    assert names(found) == names(indexing.find(index, model, ["a cat", "a bus"], 4, exact=True))
    assert [len(hits) for hits in found] == [4, 4]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("0.png", b""),
        ("0.png", "cut"),
        ("0.masks.npz", b"no archive"),
        ("0.masks.npz", b""),
        ("0.masks.npz", "cut"),
        ("0.masks.json", b"{"),
        ("0.masks.json", b'[{"segmentation": [[1, 2, 3]]}]'),
        ("0.masks.json", b'[{"segmentation": 7}]'),
        ("0.masks.json", b'[{"segmentation": {"size": 7, "counts": "x"}}]'),
        ("0.masks.png", b"no picture"),
    ],
)
def test_a_broken_picture_or_file_of_masks_is_named_and_left_out(name, content, photos, tiny, tmp_path, capsys):
    model, settings = tiny
    if not name.startswith("0.masks.npz"):
        (photos / "0.masks.npz").unlink()
    if content == "cut":
        content = (photos / name).read_bytes()[:200]
    (photos / name).write_bytes(content)
    index = RegionIndex.create(tmp_path / "index", settings)
    assert indexing.fill(index, photos, model, grid) == (4, 0, 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("skipped 0.png: ")
    assert len(index.pictures) == 4


def test_a_model_s_hash_is_that_of_its_weights_in_any_precision():
    model, _ = alpha_clip.load("tiny", "cpu")
    single = fingerprint(model, torch.half)
    assert fingerprint(model.half(), torch.half) == single
    with torch.no_grad():
        model.visual.ln_post.bias[3] += 0.5
    assert fingerprint(model, torch.half) != single


def test_a_hit_whose_picture_is_gone_is_grey_and_another_copy_serves(tmp_path):
    index = RegionIndex.create(tmp_path / "index", SETTINGS)
    index.add([seen(str(tmp_path / "gone.png"), "k", np.eye(1, 8))])
    (hit,) = index.search(np.eye(1, 8, dtype=np.float32), 1)[0]
    assert len(np.unique(thumbnail(hit))) <= 3
    Image.fromarray(draw_scene(0, 64).image).save(tmp_path / "copy.png")
    index.add([Seen(str(tmp_path / "copy.png"), "k", None), Seen(str(tmp_path / "gone.png"), "k", None)])
    (hit,) = index.search(np.eye(1, 8, dtype=np.float32), 1)[0]
    assert len(np.unique(thumbnail(hit))) > 100


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
