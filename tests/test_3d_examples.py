"""Shaping a volume after a text, the grid of patches for Point-E, and labels."""

import re
import sys
from pathlib import Path

import label_everything
import numpy as np
import patch_grid
import pytest
import render3d
import torch
from PIL import Image
from torch.nn import functional as F

import alpha_clip
from alpha_clip.model import CLIP


@pytest.fixture
def volume():
    return render3d.Volume(torch.Generator().manual_seed(0))


def views(volume, *azimuths, elevation=0.0, n=24):
    with torch.no_grad():
        return volume.render(torch.tensor(azimuths), torch.full((len(azimuths),), elevation), n)


def test_nothing_lets_all_light_through_and_a_wall_none(volume):
    with torch.no_grad():
        volume.voxels[0] = -50
        colour, opacity = views(volume, 0.0, 1.0)
        assert opacity.abs().max() < 1e-6 and colour.abs().max() < 1e-6
        volume.voxels[0], volume.voxels[1:] = 50, torch.tensor([1.0, 0.0, -1.0])[:, None, None, None]
    colour, opacity = views(volume, 0.0)
    across = torch.linspace(-1.25, 1.25, 24)
    inside = across.abs() < 1
    assert opacity[0, 0][inside][:, inside].min() > 0.999
    assert opacity[0, 0][~inside].max() == 0
    expected = torch.tensor([1.0, 0.0, -1.0]).sigmoid()
    torch.testing.assert_close(colour[0, :, 12, 12], expected, atol=1e-3, rtol=0)


def test_a_thin_fog_dims_by_the_length_of_the_ray(volume):
    with torch.no_grad():
        volume.voxels[0] = -3
    _, opacity = views(volume, 0.0, np.pi / 4)
    density = 4 * F.softplus(torch.tensor(-3.0))
    spacing = 2 * render3d.FAR / (render3d.DEPTH - 1)
    for seen, length in zip(opacity[:, 0, 12, 12], (2, 2 * 2**0.5), strict=True):
        length_of = -torch.log(1 - seen) / density
        assert abs(length_of - length) < spacing  # a sample more or less


def test_the_nearer_side_hides_the_farther_and_turns_away(volume):
    with torch.no_grad():
        volume.voxels[0], volume.voxels[1:] = 50, -50  # black
        volume.voxels[1, :10] = 50  # red where z < 0, the side of the eye
    red = [float(colour[0, 12, 12]) for colour in views(volume, 0.0, np.pi)[0]]
    assert red[0] > 0.99
    assert red[1] < 0.01


def test_half_a_turn_mirrors_the_outline(volume):
    front, back = views(volume, 0.3, 0.3 + np.pi)[1]
    torch.testing.assert_close(front, back.flip(-1), atol=1e-4, rtol=0)


def test_gradients_reach_density_and_colour_through_image_and_mask(volume):
    model, _ = alpha_clip.load("tiny", "cpu")
    colour, opacity = volume.render(torch.zeros(1), torch.zeros(1), 48)
    for image, mask, channels in ((colour, None, 4), (colour.detach(), opacity, 1)):
        volume.voxels.grad = None
        render3d.encode(model, image, mask)[0, 0].backward(retain_graph=True)
        touched = [bool(part.abs().sum() > 0) for part in volume.voxels.grad]
        assert touched == [True] * channels + [False] * (4 - channels)


@pytest.mark.parametrize("masked", [True, False])
def test_shaping_brings_views_nearer_to_the_text(masked):
    model, _ = alpha_clip.load("tiny", "cpu")
    model.requires_grad_(False)
    run = render3d.Run("a red apple", masked, seed=0)
    target = render3d._text_features(model, [run.text])
    cosines = []
    for steps in (0, 30):
        volume = render3d.shape(model, run, steps, views=2)
        with torch.no_grad():
            colour, opacity = render3d.look_around(volume, 48, 4)
            image = colour + (1 - opacity) * 0.5
            cosines.append(float((render3d.encode(model, image, opacity if masked else None) @ target.T).mean()))
    assert cosines[1] > cosines[0] + 0.05
    first, again = (render3d.shape(model, run, 2, views=2) for _ in range(2))
    assert torch.equal(first.voxels, again.voxels)


def test_the_judge_counts_views_named_right(volume, monkeypatch):
    model, _ = alpha_clip.load("tiny", "cpu")
    nouns = render3d._text_features(model, [f"a {noun}" for noun in render3d.NOUNS])
    kinds = {True: "apple", False: "cat"}
    monkeypatch.setattr(
        render3d, "encode", lambda _, image, mask: nouns[[render3d.NOUNS.index(kinds[mask is not None])]].expand(12, -1)
    )
    *shares, opaque = render3d.judge(model, volume, "a red apple")
    assert shares == [1, 0, 1, 0]
    assert 0 < opaque < 1


def test_render3d_writes_frames_and_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["render3d", "--quick", "--out", str(tmp_path)])
    render3d.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[1] for line in lines if line.startswith("| a red apple")] == ["opacity", "none"]
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["a_red_apple-mask.gif", "a_red_apple-no_mask.gif", "views.png"]
    with Image.open(tmp_path / "a_red_apple-mask.gif") as frames:
        assert frames.n_frames == render3d.SIDES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--texts", "a red zebra"], "'a red zebra' ends in no noun that tiny knows"),
        (["--texts", ""], "'' ends in no noun"),
        (["--seeds", "0"], "--seeds is 0, expected 1 or more"),
        (["--steps", "0"], "--steps is 0, expected 1 or more"),
    ],
)
def test_render3d_says_in_a_line_what_is_wrong(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["render3d", *arguments])
    with pytest.raises(SystemExit, match="2"):
        render3d.main()
    assert message in capsys.readouterr().err


# --- Point-E ---


def test_grid_has_point_e_s_shape_for_vit_l_14():
    model = CLIP(8, 224, 1, 1024, 14, 77, 16, 64, 1, 1)  # one block in place of 24
    rgb, alpha = alpha_clip.Preprocess(224)(Image.new("RGB", (300, 200)), np.ones((2, 200, 300), bool))
    grid = patch_grid.patch_grid(model, rgb, alpha)
    assert grid.shape == (2, 1024, 256)
    assert grid.dtype == torch.float32 and grid.is_contiguous()


def test_grid_without_mask_is_transformers_last_hidden_state(plain, transformers_model, images):
    theirs = transformers_model.vision_model(images).last_hidden_state[:, 1:]
    torch.testing.assert_close(patch_grid.patch_grid(plain, images).transpose(1, 2), theirs, atol=2e-5, rtol=1e-4)


def test_grid_depends_on_the_mask(model, images, masks):
    whole, region = patch_grid.patch_grid(model, images), patch_grid.patch_grid(model, images, masks)
    assert (whole - region).abs().max() > 0.1


def test_gradients_reach_the_alpha_weights_through_the_grid(images, masks):
    model, _ = alpha_clip.load("tiny", "cpu")
    alpha = ((masks.float() - 0.5) / 0.26).requires_grad_()
    patch_grid.patch_grid(model, images, alpha).square().mean().backward()
    assert model.visual.conv1_alpha.weight.grad.abs().max() > 1e-6 and alpha.grad.abs().max() > 0


def test_patch_grid_prints_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["patch_grid", "--out", str(tmp_path / "grid.pt")])
    patch_grid.main()
    assert len(capsys.readouterr().out.splitlines()) == 9
    model, preprocess = alpha_clip.load("tiny")
    assets = Path(alpha_clip.__file__).parent / "assets"
    rgb, alpha = preprocess(assets / "sample.png", np.asarray(Image.open(assets / "sample_masks.png")) == 1)
    expected = patch_grid.patch_grid(model, rgb, alpha).cpu()
    torch.testing.assert_close(torch.load(tmp_path / "grid.pt"), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--image", "a.png"], "2", "give both or none"),
        (["--image", "a.png", "--mask", "b.png"], "1", "patch_grid: .*a.png"),
        (["--model", "nowhere"], "1", "patch_grid: Model nowhere not found"),
        (["--out", "nowhere/grid.pt"], "1", "patch_grid: .*nowhere"),
    ],
)
def test_patch_grid_says_in_a_line_what_is_wrong(arguments, status, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["patch_grid", *arguments])
    with pytest.raises(SystemExit, match=status):
        patch_grid.main()
    assert re.search(message, capsys.readouterr().err)


# --- labels ---


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--labels", "a cat", " "], "2", "argument --labels: ' ' is no label, expected some words"),
        (["--points", "0"], "2", "argument --points: '0' is no count, expected 1 or more"),
        (["--label-file", "empty.txt"], "1", "label_everything: empty.txt holds no label, expected one on each line"),
    ],
)
def test_label_everything_needs_something_to_choose_from(arguments, status, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    monkeypatch.setattr(sys, "argv", ["label_everything", *arguments])
    with pytest.raises(SystemExit, match=status):
        label_everything.main()
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]
