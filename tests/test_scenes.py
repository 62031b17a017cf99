"""The drawn world: reproducible, its masks exact, its words true."""

import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alpha_clip import scenes
from alpha_clip.clipart import COLORS
from alpha_clip.scenes import HELD_OUT, NOUNS, STYLES, Region, Scene, draw_scene

# What people call these colours; written down apart from the ranges that the drawings use.
ANCHORS = {
    "red": (215, 35, 35),
    "orange": (240, 135, 25),
    "yellow": (245, 220, 60),
    "green": (60, 160, 55),
    "blue": (50, 115, 205),
    "purple": (110, 65, 165),
    "pink": (250, 140, 185),
    "brown": (120, 70, 40),
    "black": (38, 38, 38),
    "white": (245, 245, 245),
    "gray": (150, 150, 155),
}


def digest(scene: Scene) -> str:
    words = "|".join((scene.caption, scene.background, *(f"{r.phrase}{r.color}{r.size}{r.box}" for r in scene.regions)))
    return sha256(scene.image.tobytes() + scene.masks.tobytes() + words.encode()).hexdigest()


def alone(noun: str, seed: int = 0, **options: Any) -> tuple[Scene, Region]:
    scene = draw_scene(seed, objects=(1, 1), nouns=(noun,), **{"scale": (0.7, 0.95), **options})
    return scene, scene.regions[0]


def test_nouns_and_held_out() -> None:
    assert len(NOUNS) == len(set(NOUNS)) == 58
    assert len(HELD_OUT) == len(set(HELD_OUT)) == 10
    assert set(HELD_OUT) < set(NOUNS)
    assert all(re.fullmatch("[a-z]+", noun) for noun in NOUNS)


@pytest.mark.parametrize("style", STYLES)
def test_same_seed_same_bytes_and_other_seed_other_bytes(style: str) -> None:
    digests = [digest(draw_scene(seed, style=style)) for seed in range(8)]
    assert digests == [digest(draw_scene(seed, style=style)) for seed in range(8)]
    assert len(set(digests)) == 8


def test_same_bytes_in_another_process() -> None:
    code = (
        "from alpha_clip.scenes import draw_scene\n"
        "for seed in range(5):\n"
        "    scene = draw_scene(seed, 48)\n"
        "    print(scene.caption, int(scene.image.sum()), float(scene.masks.sum()).hex(), sep='|')"
    )
    root = Path(scenes.__file__).parents[1]
    env = {**os.environ, "PYTHONHASHSEED": "123", "PYTHONPATH": str(root)}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    drawn = [draw_scene(seed, 48) for seed in range(5)]
    assert result.stdout.splitlines() == [
        f"{scene.caption}|{int(scene.image.sum())}|{float(scene.masks.sum()).hex()}" for scene in drawn
    ]


@pytest.mark.parametrize("size", [32, 64, (48, 96), (150, 100)])
@pytest.mark.parametrize("style", STYLES)
def test_masks_and_boxes_agree(size: int | tuple[int, int], style: str) -> None:
    height, width = (size, size) if isinstance(size, int) else size
    for seed in range(12):
        scene = draw_scene(seed, size, style=style, overlap=0.5)
        assert scene.image.shape == (height, width, 3) and scene.image.dtype == np.uint8
        assert scene.masks.shape == (len(scene.regions), height, width) and scene.masks.dtype == np.float32
        assert scene.masks.min() >= 0 and scene.masks.max() <= 1
        assert scene.masks.sum(axis=0).max() <= 1 + 1e-5
        for region in scene.regions:
            rows, columns = np.nonzero(region.mask > 0.5)
            assert region.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("noun", NOUNS)
def test_a_noun_never_looks_the_same_twice(noun: str) -> None:
    drawn = [alone(noun, seed) for seed in range(5)]
    for scene, region in drawn:
        assert region.noun == noun and noun in scene.caption.split()
        assert 0.03 < region.mask.mean() < 0.85
        assert region.color in COLORS
        assert ((region.mask > 0) & (region.mask < 1)).any(), "edges are soft"
    assert len({digest(scene) for scene, _ in drawn}) == 5
    assert len({region.mask.tobytes() for _, region in drawn}) == 5


def test_scale_is_the_longer_side() -> None:
    for seed in range(30):
        x0, y0, x1, y1 = alone("house", seed, size=(64, 100), scale=(0.7, 0.9))[1].box
        assert 0.7 * 64 - 3 <= max(x1 - x0, y1 - y0) <= 0.9 * 64 + 2


def test_holes_are_not_covered() -> None:
    for seed in range(5):
        _, region = alone("donut", seed)
        x0, y0, x1, y1 = region.box
        assert region.mask[(y0 + y1) // 2, (x0 + x1) // 2] == 0


def test_without_overlap_the_boxes_are_disjoint() -> None:
    for seed in range(40):
        scene = draw_scene(seed, objects=(2, 6), overlap=0.0)
        covered = np.zeros((64, 64), int)
        for region in scene.regions:
            x0, y0, x1, y1 = region.box
            covered[y0:y1, x0:x1] += 1
        assert covered.max() == 1


def test_what_is_in_front_hides_what_is_behind() -> None:
    back = scenes._Stamp(np.zeros((4, 4, 3), np.float32), np.full((4, 4), 0.8, np.float32))
    front = scenes._Stamp(np.zeros((2, 2, 3), np.float32), np.array([[1, 0.5], [0, 1]], np.float32))
    masks = scenes._visible([back, front], [scenes._Spot(0, 0, 4), scenes._Spot(3, 1, 2)], 5, 6)
    assert masks.shape == (2, 5, 6)
    np.testing.assert_array_equal(masks[1, 1:3, 3:5], front.alpha)
    np.testing.assert_allclose(masks[0, :4, 3], [0.8, 0, 0.8, 0.8])
    assert masks[0].sum() == pytest.approx(0.8 * 15)


def test_overlap_leaves_every_object_visible() -> None:
    touching = 0
    for seed in range(60):
        scene = draw_scene(seed, objects=(3, 6), overlap=1.0)
        assert min(mask.sum() for mask in scene.masks) >= 12
        boxes = [region.box for region in scene.regions]
        touching += any(
            a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a in boxes for b in boxes if a != b
        )
    assert touching > 30


def test_a_crowd_fits() -> None:
    scene = draw_scene(0, 64, objects=(20, 20), overlap=0.0)
    assert len({region.noun for region in scene.regions}) == 20
    assert min(mask.sum() for mask in scene.masks) > 4


@pytest.mark.parametrize("noun", ["heart", "star", "balloon", "bus", "leaf"])
def test_colors_are_called_what_they_are(noun: str) -> None:
    for seed in range(12):
        scene, region = alone(noun, seed)
        seen = np.median(scene.image[region.mask > 0.95], axis=0)
        assert min(ANCHORS, key=lambda word: float(np.abs(seen - ANCHORS[word]).sum())) == region.color


def test_without_attributes_there_are_only_nouns() -> None:
    for seed in range(40):
        scene = draw_scene(seed, attributes=0.0)
        nouns = sorted(region.noun for region in scene.regions)
        assert [region.phrase for region in scene.regions] == [region.noun for region in scene.regions]
        words = re.findall("[a-z]+", scene.caption)
        assert sorted(word for word in words if word not in ("a", "an", "and")) == nouns


def test_attributes_are_true() -> None:
    seen = set()
    for seed in range(150):
        scene = draw_scene(seed, (64, 80), attributes=1.0)
        regions = {region.noun: region for region in scene.regions}
        for region in scene.regions:
            assert region.phrase != region.noun and region.noun in region.phrase.split()
            before, after = re.split(rf"\b{region.noun}\b", region.phrase, maxsplit=1)
            assert set(before.split()) <= {region.size, region.color}
            seen.add(" ".join(word for word in after.split() if word not in NOUNS) or "adjective")
            x0, y0, x1, y1 = region.box
            if " the " in after and (other := regions.get(after.split()[-1])):
                a, b, c, d = other.box
                apart = {"above": y1 <= b, "below": y0 >= d, "left": x1 <= a, "right": x0 >= c}
                assert apart[after.split()[0]]
            elif after:
                inside = {"left": x1 < 40, "right": x0 > 40, "top": y1 < 32, "bottom": y0 > 32}
                assert inside[after.split()[-1]]
    assert len(seen) == 9, seen


def test_captions_name_every_object() -> None:
    captions = [draw_scene(seed) for seed in range(60)]
    for scene in captions:
        assert {region.noun for region in scene.regions} <= set(re.findall("[a-z]+", scene.caption))
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", scene.caption)
    assert any(scene.background in scene.caption for scene in captions)
    assert len({scene.background for scene in captions}) == 8


def test_styles_change_the_look_alone() -> None:
    for seed in range(6):
        plain, outline, hatched = (draw_scene(seed, style=style, overlap=0.0) for style in STYLES)
        assert [r.noun for r in plain.regions] == [r.noun for r in outline.regions] == [r.noun for r in hatched.regions]
        np.testing.assert_array_equal(plain.masks, hatched.masks)
        assert np.abs(plain.masks - outline.masks).mean() < 0.01
        assert np.ptp(hatched.image.astype(int), axis=2).max() < 45, "near grey"
        assert outline.image.mean() > 190, "pale"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 16}, r"size \(16, 16\) is too small: draw at 32 pixels"),
        ({"size": (64, 20)}, r"size \(64, 20\) is too small"),
        ({"nouns": ("car", "carr")}, r"unknown nouns \['carr'\]: choose from scenes.NOUNS"),
        ({"nouns": ("car", "cat", "car"), "objects": (1, 2)}, r"nouns \['car', 'car', 'cat'\] repeat: name each once"),
        ({"nouns": ("car", "cat")}, "up to 6 objects of 2 nouns: ask for fewer objects or give more nouns"),
        ({"objects": (0, 3)}, r"objects \(0, 3\) is no range: give \(fewest, most\)"),
        ({"objects": (3, 2)}, r"objects \(3, 2\) is no range"),
        (
            {"size": 32, "objects": (1, 20)},
            r"up to 20 objects do not fit size \(32, 32\): ask for fewer or draw larger",
        ),
        ({"style": "cubist"}, "unknown style 'cubist': choose from plain, outline, hatched"),
        ({"scale": (0.5, 0.3)}, r"scale \(0.5, 0.3\) is no range"),
        ({"scale": (0.0, 0.3)}, r"scale \(0.0, 0.3\) is no range"),
        ({"scale": (0.5, 1.2)}, r"scale \(0.5, 1.2\) is no range"),
        ({"overlap": 1.5}, "overlap=1.5 is no probability: give a number from 0 to 1"),
        ({"attributes": -0.1}, "attributes=-0.1 is no probability"),
    ],
)
def test_errors_say_what_to_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_scene(0, **options)
