"""Masks from files, a grid and SAM, and which of them are kept."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sams import ANYTHING

import alpha_clip
from alpha_clip.mask_sources import SIDE, SamMasks, beside, grid, mask_file, masks_of, when_needed, worth_it
from alpha_clip.rle import encode
from alpha_clip.scenes import draw_scene
from alpha_clip.transforms import mask_box


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
    np.savez(tmp_path / "ones.npz", masks=two_masks.astype(np.uint8))
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
        (
            "a.npz",
            {"masks": np.zeros((1, 2, 2), np.int64)},
            r"masks of int64 \(1, 2, 2\), expected .* of bool, of uint8",
        ),
        ("a.npz", {"masks": np.zeros((1, 3, 2), bool)}, r"holds masks of \(3, 2\), expected \(2, 2\)"),
        ("a.png", np.zeros((2, 2, 3), np.uint8), "has colours, expected one number a pixel"),
        ("a.json", [{"box": [0, 0, 1, 1]}], "no list of annotations .*, but a list"),
        ("a.json", {"images": []}, r"no list of annotations .*, but a record of \['images'\]"),
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
    assert worth_it(masks[[1, 2]]) == [0]


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


@pytest.mark.parametrize("make", [sam, sam2])
def test_a_sam_stored_in_half_precision_finds_masks_too(make, tmp_path):
    for part in make():
        (part.to(torch.float16) if isinstance(part, torch.nn.Module) else part).save_pretrained(tmp_path)
    assert list(SamMasks(str(tmp_path), points=2, device="cpu", **ANYTHING)(Image.fromarray(draw_scene(0, 64).image)))


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


def test_a_source_is_made_when_the_first_picture_asks_and_once():
    made = []

    def make():
        made.append(1)
        return grid

    source = when_needed("a grid", make)
    assert made == []
    picture = Image.new("RGB", (8, 8))
    assert len(list(source(picture))) == len(list(source(picture))) == 35 and made == [1]


@pytest.mark.parametrize("error", [ImportError, OSError, ValueError])
def test_a_source_that_cannot_be_made_is_no_fault_of_a_picture(error):
    def make():
        raise error("there is none")

    with pytest.raises(RuntimeError, match="some/sam: there is none"):
        when_needed("some/sam", make)(Image.new("RGB", (8, 8)))


def test_segmenter_says_what_it_comes_from(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install transformers"):
        SamMasks("facebook/sam-vit-base")
