"""The picture and mask transforms against CLIP's five steps, numpy's own geometry, and each other."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from torchvision import transforms as T

from alpha_clip.given_masks import unit_mask
from alpha_clip.model import FOREGROUND
from alpha_clip.transforms import NoForeground, Preprocess, box_mask

N = 64
GEOMETRIES = ["crop", "pad", "squash"]
SIZES = [(37, 211), (333, 500), (427, 640), (640, 427), (64, 64), (50, 51), (20, 300), (300, 20)]  # height, width


@pytest.fixture(scope="module")
def preprocess():
    return Preprocess(N)


def photo(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Noise over a gradient, so that every pixel and every offset matters."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 128, height)[:, None, None] + np.linspace(0, 64, width)[None, :, None]
    return Image.fromarray((ramp + rng.integers(0, 64, (height, width, 3))).astype(np.uint8)).convert(mode)


def disc(height: int, width: int) -> np.ndarray:
    """Draw a hard disc in the middle, bool."""
    y, x = np.ogrid[:height, :width]
    return (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3) ** 2


def unit(alpha: torch.Tensor) -> torch.Tensor:
    return alpha * 0.26 + 0.5


# --- the picture alone ---


def clip_transform(n: int) -> T.Compose:
    """OpenAI's CLIP, clip.py, written out."""
    return T.Compose(
        [
            T.Resize(n, interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop(n),
            T.Lambda(lambda image: image.convert("RGB")),
            T.ToTensor(),
            T.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_alone_is_bit_equal_to_clip(preprocess, size):
    for n in (N, 224, 37):
        assert torch.equal(Preprocess(n)(photo(*size)), clip_transform(n)(photo(*size)))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_mode_is_bit_equal_to_clip(preprocess, mode):
    picture = photo(90, 131, "L").convert("I").convert(mode) if mode == "I;16" else photo(90, 131, mode)
    if mode == "RGBA":
        picture.putalpha(photo(90, 131, "L", seed=1))
    rgb = preprocess(picture)
    assert torch.equal(rgb, clip_transform(N)(picture))
    assert torch.equal(rgb, preprocess(picture, disc(90, 131))[0])


def test_arrays_and_paths_are_read_like_pictures(preprocess, tmp_path):
    for mode in ("RGB", "L", "RGBA"):
        picture = photo(90, 131, mode)
        path = tmp_path / f"{mode}.png"
        picture.save(path)
        expected = preprocess(picture)
        for image in (np.asarray(picture), path, str(path)):
            assert torch.equal(preprocess(image), expected)


def test_is_the_compose_that_client_code_expects(preprocess):
    assert isinstance(preprocess, T.Compose)
    assert [type(step).__name__ for step in preprocess.transforms] == [
        "Resize",
        "CenterCrop",
        "function",
        "ToTensor",
        "Normalize",
    ]
    assert isinstance(preprocess.transforms[-1], T.Normalize)
    rgb = preprocess(photo(90, 131), None)
    assert (rgb.dtype, rgb.shape) == (torch.float32, (3, N, N))


def test_pickles_to_another_process(preprocess):
    picture = photo(90, 131)
    assert torch.equal(pickle.loads(pickle.dumps(preprocess))(picture), preprocess(picture))
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        rgb, alpha = pool.apply(preprocess, (np.asarray(picture), disc(90, 131)))
    assert torch.equal(rgb, preprocess(picture))
    assert alpha.shape == (1, N, N)


def test_a_changed_list_of_transforms_is_told_of_where_there_is_a_mask(preprocess):
    changed = copy.deepcopy(preprocess)
    changed.transforms.insert(0, T.RandomHorizontalFlip(1.0))
    picture = photo(90, 131)
    changed(picture)
    with pytest.warns(UserWarning, match="what moves the picture there does not move the mask"):
        changed(picture, disc(90, 131))


def test_grey_of_sixteen_bits_keeps_its_shades(preprocess):
    grey = np.arange(N * N, dtype=np.uint16).reshape(N, N) * (65535 // (N * N - 1))
    sixteen, eight = Image.fromarray(grey), Image.fromarray((grey >> 8).astype(np.uint8))
    assert sixteen.mode.startswith("I")
    assert torch.equal(preprocess(sixteen), preprocess(eight))
    assert torch.equal(preprocess(sixteen, disc(N, N))[0], preprocess(eight, disc(N, N))[0])


def test_a_mask_of_0_and_1_divided_by_255_is_refused(preprocess):
    with pytest.raises(ValueError, match="a mask of 0 and 1 divided by 255: pass mask > 0"):
        preprocess(photo(90, 131), disc(90, 131).astype(np.float32) / 255)


def test_a_mask_of_which_the_resize_leaves_no_foreground_is_told_of(preprocess):
    mask = np.zeros((900, 1200), bool)
    mask[300:304, 500:504] = True  # a third of a pixel
    with pytest.warns(NoForeground, match=f"no pixel of {N} x {N} is foreground in the mask, smaller"):
        preprocess(photo(900, 1200), mask, geometry="pad")
    with pytest.warns(NoForeground, match="foreground in mask 1, smaller"):
        preprocess(photo(900, 1200), [disc(900, 1200), mask])
    preprocess(photo(900, 1200), mask * 0.4)  # it never was foreground


# --- one geometry for both ---


def centroid(weights: torch.Tensor) -> torch.Tensor:
    """Centre of mass (y, x) of (n, n), in pixels."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(side) + 0.5 for side in weights.shape], indexing="ij"))
    return (grid * weights).sum((1, 2)) / weights.sum()


@pytest.mark.filterwarnings("ignore:no pixel of")  # thin ones, but where they land is what counts
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", SIZES)
def test_a_painted_marker_and_its_mask_land_on_the_same_pixels(preprocess, size, geometry):
    height, width = size
    short = min(size)
    for shift in (-0.2, 0.0, 0.13):
        mask = np.zeros(size, dtype=bool)
        top, left = int(height / 2 + (shift - 0.2) * short), int(width / 2 + (shift - 0.25) * short)
        mask[top : top + max(1, short // 3), left : left + max(1, short // 4)] = True
        rgb, alpha = preprocess(Image.fromarray(mask).convert("RGB"), mask, geometry=geometry)
        painted = rgb[0] * 0.26862954 + 0.48145466
        marked = unit(alpha)[0]
        # Bicubic overshoots where bilinear does not, and bytes clip it: equal places, nearly equal areas.
        assert painted.sum().item() == pytest.approx(marked.sum().item(), rel=0.15)
        assert torch.allclose(centroid(painted), centroid(marked), atol=0.1)
        for here, there in ((painted, marked), (marked, painted)):
            assert not ((here > 0.7) & (there < 0.3)).any()


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", SIZES)
def test_mask_and_picture_agree_with_a_mask_moved_as_a_float_picture(size, geometry):
    """The oracle is PIL's bilinear resize of the square that the docstring describes, without torchvision."""
    height, width = size
    soft = np.random.default_rng(0).random(size).astype(np.float32)
    soft[disc(*size)] = 1
    n = 32
    canvas = Image.fromarray(soft)
    if geometry == "pad":
        side = max(size)
        square = np.zeros((side, side), dtype=np.float32)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = soft
        expected = Image.fromarray(square).resize((n, n), Image.Resampling.BILINEAR)
    elif geometry == "squash":
        expected = canvas.resize((n, n), Image.Resampling.BILINEAR)
    else:
        w, h = (n, int(n * height / width)) if width <= height else (int(n * width / height), n)
        top, left = round((h - n) / 2), round((w - n) / 2)
        expected = canvas.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + n, top + n))
    if geometry == "crop" and max(size) > 1.1 * min(size):
        with pytest.warns(UserWarning, match="the centre crop cuts off"):
            _, alpha = Preprocess(n)(photo(*size), soft, geometry=geometry)
    else:
        _, alpha = Preprocess(n)(photo(*size), soft, geometry=geometry)
    np.testing.assert_allclose(unit(alpha)[0].numpy(), np.asarray(expected), atol=2e-5)


def test_pad_puts_black_and_background_around(preprocess):
    picture = Image.new("RGB", (200, 100), "white")
    mask = np.zeros((100, 200), dtype=bool)
    mask[:, 40:160] = True
    rgb, alpha = preprocess(picture, mask, geometry="pad")
    bars = torch.ones(N, dtype=torch.bool)
    bars[N // 4 - 2 : N - N // 4 + 2] = False
    black = (0 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor([0.26862954, 0.26130258, 0.27577711])
    assert torch.allclose(rgb[:, bars], black[:, None, None].expand(3, int(bars.sum()), N))
    assert (alpha[0, bars] == -np.float32(FOREGROUND)).all()
    assert torch.allclose(alpha[0, N // 2, N // 4 : -N // 4], torch.tensor(FOREGROUND))


@pytest.mark.parametrize("turned", [False, True])
def test_of_a_thin_picture_one_line_is_left_and_no_square_is_made(turned, preprocess):
    white, mask = Image.new("RGB", (400_000, 1), "white"), np.zeros((1, 400_000), bool)  # 480 GB as a square
    mask[:, :200_000] = True
    if turned:
        white, mask = white.transpose(Image.Transpose.TRANSPOSE), mask.T
    rgb, alpha = preprocess(white, mask, geometry="pad")
    line, region = ((rgb[0] > 1).T, (alpha[0] > 1).T) if turned else (rgb[0] > 1, alpha[0] > 1)
    assert line.sum() == N and line[N // 2 - 1].all() and line.any(1).sum() == 1
    assert region.sum() == region[N // 2 - 1].sum() == N // 2
    just = photo(3, 3 * N)  # a pixel high in the end
    square = Image.new("RGB", (3 * N, 3 * N))
    square.paste(just, (0, (3 * N - 3) // 2))
    assert torch.equal(preprocess(just, geometry="pad"), preprocess(square))


def test_a_palette_is_padded_with_black(preprocess):
    picture = photo(60, 100).quantize(8)
    assert torch.equal(preprocess(picture, geometry="pad"), preprocess(picture.convert("RGB"), geometry="pad"))


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("size", SIZES)
def test_a_mask_of_ones_is_the_models_foreground_to_the_last_bit(preprocess, size, geometry):
    _, alpha = preprocess(photo(*size), np.ones(size, dtype=bool), geometry=geometry)
    assert torch.equal(alpha, torch.full((1, N, N), FOREGROUND))


def test_geometries_agree_on_a_square(preprocess):
    results = [preprocess(photo(90, 90), disc(90, 90), geometry=geometry) for geometry in GEOMETRIES]
    for rgb, alpha in results[1:]:
        assert torch.equal(rgb, results[0][0])
        assert torch.equal(alpha, results[0][1])


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_geometry_moves_a_picture_alone_in_the_same_way(preprocess, geometry):
    picture, mask = photo(90, 131), disc(90, 131)
    assert torch.equal(preprocess(picture, geometry=geometry), preprocess(picture, mask, geometry=geometry)[0])


# --- kinds of mask ---

HARD = disc(90, 131)


def palette_picture(values: np.ndarray, colours: dict[int, tuple[int, int, int]]) -> Image.Image:
    picture = Image.fromarray(values.astype(np.uint8))
    palette = [0] * 768
    for index, colour in colours.items():
        palette[3 * index : 3 * index + 3] = colour
    picture.putpalette(palette)
    return picture


def cut_out(mask: np.ndarray) -> Image.Image:
    picture = photo(*mask.shape, mode="RGBA")
    picture.putalpha(Image.fromarray(np.uint8(mask) * 255))
    return picture


SAME_MASKS = {
    "bool": HARD,
    "uint8 0 and 1": HARD.astype(np.uint8),
    "uint8 0 and 255": HARD.astype(np.uint8) * 255,
    "int64 0 and 1": HARD.astype(np.int64),
    "int64 0 and 255": HARD.astype(np.int64) * 255,
    "uint16 0 and 1": HARD.astype(np.uint16),
    "float16": HARD.astype(np.float16),
    "float64": HARD.astype(np.float64),
    "float with rounding": HARD * np.float32(1.000001) - np.float32(1e-6),
    "Fortran order": np.asfortranarray(HARD),
    "negative strides": np.ascontiguousarray(HARD[::-1, ::-1])[::-1, ::-1],
    "tensor bool": torch.from_numpy(HARD),
    "tensor uint8": torch.from_numpy(HARD.astype(np.uint8) * 255),
    "tensor bfloat16": torch.from_numpy(HARD).to(torch.bfloat16),
    "tensor with gradient": torch.from_numpy(HARD).float().requires_grad_(),
    "PIL 1": Image.fromarray(HARD),
    "PIL L": Image.fromarray(HARD.astype(np.uint8) * 255),
    "PIL L 0 and 1": Image.fromarray(HARD.astype(np.uint8)),
    "PIL I": Image.fromarray(HARD.astype(np.int32)),
    "PIL I;16": Image.fromarray(HARD.astype(np.uint16)),
    "PIL F": Image.fromarray(HARD.astype(np.float32)),
    "PIL RGB": Image.fromarray(HARD.astype(np.uint8) * 255).convert("RGB"),
    "PIL RGBA, opaque": Image.fromarray(HARD.astype(np.uint8) * 255).convert("RGBA"),
    "PIL RGBA, cut out": cut_out(HARD),
    "PIL LA, cut out": cut_out(HARD).convert("LA"),
    "PIL P, one label": palette_picture(HARD * 15, {15: (192, 128, 128)}),
    "PIL P, grey": Image.fromarray(HARD.astype(np.uint8) * 255).convert("P"),
    "PIL P, white first": palette_picture(~HARD, {0: (255, 255, 255), 1: (0, 0, 0)}),
}


@pytest.mark.parametrize("kind", SAME_MASKS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_kind_of_one_mask_gives_the_same_alpha(preprocess, kind, geometry):
    _, expected = preprocess(photo(90, 131), HARD, geometry=geometry)
    _, alpha = preprocess(photo(90, 131), SAME_MASKS[kind], geometry=geometry)
    assert (alpha.dtype, alpha.shape, alpha.requires_grad) == (torch.float32, (1, N, N), False)
    assert torch.allclose(alpha, expected, atol=1e-5)
    assert alpha.max().item() == pytest.approx(FOREGROUND)
    assert alpha.min().item() == pytest.approx(-FOREGROUND)


def test_mask_files(preprocess, tmp_path):
    _, expected = preprocess(photo(90, 131), HARD)
    for suffix in ("png", "bmp", "gif", "tiff"):
        path = tmp_path / f"mask.{suffix}"
        Image.fromarray(HARD.astype(np.uint8) * 255).save(path)
        assert torch.equal(preprocess(photo(90, 131), path)[1], expected)
        assert torch.equal(preprocess(photo(90, 131), [str(path)])[1][0], expected)


def test_soft_values_survive(preprocess):
    ramp = np.tile(np.linspace(0, 1, 131, dtype=np.float32), (90, 1))
    picture = photo(90, 131)
    _, alpha = preprocess(picture, ramp, geometry="squash")
    assert torch.allclose(unit(alpha)[0, :, 1:-1], torch.linspace(0.5 / N, 1 - 0.5 / N, N)[1:-1], atol=0.01)
    bytes_ = np.round(ramp * 255).astype(np.uint8)
    for mask in (bytes_, Image.fromarray(bytes_), torch.from_numpy(bytes_).int(), bytes_ / 255):
        assert torch.allclose(preprocess(picture, mask, geometry="squash")[1], alpha, atol=0.01)
    _, half = preprocess(picture, np.full((90, 131), 0.5), geometry="squash")
    assert half.abs().max() < 1e-6


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_k_masks_equal_k_single_masks(preprocess, geometry):
    masks = [HARD, np.ones_like(HARD), np.roll(HARD, 9, axis=0), np.roll(HARD, 9, axis=1)]
    picture = photo(90, 131)
    singles = torch.stack([preprocess(picture, mask, geometry=geometry)[1] for mask in masks])
    stack = np.stack(masks)
    for many in (masks, tuple(masks), stack, torch.from_numpy(stack), stack.astype(np.uint8) * 255):
        rgb, alpha = preprocess(picture, many, geometry=geometry)
        assert rgb.shape == (3, N, N)
        assert alpha.shape == (4, 1, N, N)
        assert torch.allclose(alpha, singles, atol=1e-6)
    mixed = [Image.fromarray(HARD), masks[1].astype(np.uint8), torch.from_numpy(masks[2]), masks[3] * 255]
    assert torch.allclose(preprocess(picture, mixed, geometry=geometry)[1], singles, atol=1e-6)
    assert preprocess(picture, stack[:1], geometry=geometry)[1].shape == (1, 1, N, N)


# --- what is refused ---

BAD_VALUES = {
    "empty": (np.zeros((90, 131), dtype=bool), "mask is 0 everywhere, expected some foreground"),
    "nan": (np.where(HARD, np.nan, 0), r"mask has \d+ values of NaN, expected 0 to 1: pass np.nan_to_num\(mask\)"),
    "inf": (np.where(HARD, np.inf, 0), "floats from 0 to inf"),
    "float 0..255": (HARD * 255.0, "floats from 0 to 255, expected 0 to 1: divide 0..255 by 255"),
    "logits": (HARD * 8.0 - 4, "floats from -4 to 4.*sigmoid"),
    "int64 overflow of a byte": (HARD.astype(np.int64) * 979, "integers from 0 to 979"),
    "negative": (HARD.astype(np.int64) * 2 - 1, "integers from -1 to 1"),
    "label map": (HARD.astype(np.uint8) * 5, "integers from 0 to 5.*choose a label, mask == 5"),
    "PIL label map": (Image.fromarray(HARD.astype(np.uint8) * 100), "integers from 0 to 100"),
    "palette label map": (
        palette_picture(HARD * 15 + np.eye(90, 131) * 2, {2: (0, 128, 0), 15: (192, 128, 128), 17: (0, 64, 0)}),
        r"label map of \[2, 15, 17\], expected one label: pass np.array\(mask\) == 2",
    ),
    "colour picture": (photo(90, 131), "mask is a colour picture, expected a grey one"),
    "transposed": (HARD.T, r"mask has shape \(131, 90\), expected \(90, 131\).*resize it"),
    "channels last": (np.dstack([HARD] * 3), r"mask has shape \(90, 131, 3\).*: take one channel, such as mask\[...,"),
    "one channel last": (HARD[..., None], r"mask has shape \(90, 131, 1\), expected .*: pass mask\[\.\.\., 0\]$"),
    "one channel last in a list": (
        [HARD, HARD[..., None]],
        r"mask 1 has shape \(90, 131, 1\).*: pass mask\[\.\.\., 0\]$",
    ),
    "many of another size": (np.stack([HARD.T, HARD.T]), r"mask has shape \(2, 131, 90\), expected \(90, 131\)"),
    "a batch": (HARD[None, None], r"mask has shape \(1, 1, 90, 131\).*as \(K, H, W\), mask\[:, 0\]$"),
    "a batch of three masks each": (np.stack([[HARD] * 3]), r"mask has shape \(1, 3, 90, 131\).*as \(K, H, W\)$"),
    "a row": (HARD[0], r"mask has shape \(131,\)"),
    "a box in an array": (np.array([10, 20, 30, 40]), r"mask has shape \(4,\).*box_mask\(box, \(height, width\)\)$"),
    "boxes in an array": (np.array([[10, 20, 30, 40.0]] * 3), r"mask has shape \(3, 4\).*box_mask\("),
    "polygons in arrays": ([np.ones((7, 2))], r"mask 0 has shape \(7, 2\).*ImageDraw\.Draw\(mask\)\.polygon\(points"),
    "no masks": (np.zeros((0, 90, 131)), "there are 0 masks, expected 1 or more"),
    "no masks in a list": ([], "there are 0 masks"),
    "one empty of two": ([HARD, HARD & False], "mask 1 is 0 everywhere"),
    "one of another size": ([HARD, HARD[1:]], r"mask 1 has shape \(89, 131\)"),
    "one label map of two": (np.stack([HARD * 1, HARD * 7]), "mask 1 has integers from 0 to 7"),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_masks_that_are_no_masks(preprocess, case):
    mask, message = BAD_VALUES[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        preprocess(photo(90, 131), mask)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (5, "mask is int, expected an array"),
        ([HARD, None], "mask 1 is NoneType"),
        (
            [{"segmentation": HARD, "area": 3}],
            r'mask 0 is dict, .* what it holds, \[m\["segmentation"\] for m in masks\]',
        ),
        ({"masks": HARD[None], "scores": [1]}, r'mask is dict, expected an array, .*\[m\["masks"\] for m in masks\]'),
        ({"size": [90, 131], "counts": "abc"}, r"decode run lengths, pycocotools\.mask\.decode\(rle\)$"),
        (
            [{"size": [90, 131], "counts": [9, 1]}],
            r"decode\(rle\) of pycocotools\.mask\.frPyObjects\(rle, height, width\)$",
        ),
        ({"bbox": [1, 2, 3, 4]}, "mask is dict, expected an array, a tensor, a PIL image or a path$"),
        ((10, 20, 30, 40), r"mask is tuple, .*: of a box make alpha_clip\.box_mask\(box, \(height, width\)\)"),
        ([[10, 20, 30, 40], [1.5, 2, 3, 4]], r"mask 0 is list, .*: of a box make alpha_clip\.box_mask\(box, "),
        (
            [[10, 20, 30, 40, 50, 60.5]],
            r"mask 0 is list, .*: draw a polygon, PIL\.ImageDraw\.Draw\(mask\)\.polygon\(points",
        ),
        ([10, 20, 30, 40, 50, 60.5], r"mask is list, .*pycocotools\.mask\.frPyObjects"),
        ([(10, 20), (30, 40), (50, 60)], "mask is list, .*: draw a polygon"),
        ([[[10, 20], [30, 40], [50, 60]]], "mask 0 is list, .*: draw a polygon"),
        (HARD.tolist(), r"mask 0 is list, .*: make it an array, np\.array\(mask\)"),
        (HARD.astype(np.complex64), "mask has dtype complex64, expected bool, integers or floats"),
        (HARD.astype(object), "mask has dtype object"),
    ],
)
def test_masks_of_a_wrong_type(preprocess, mask, message):
    with pytest.raises(TypeError, match=message):
        preprocess(photo(90, 131), mask)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(3, 8, 8), TypeError, "image is Tensor, expected a PIL image, a uint8 array"),
        (None, TypeError, "image is NoneType"),
        (np.zeros((8, 8, 3)), ValueError, r"image is a float64 array of shape \(8, 8, 3\), expected uint8"),
        (np.zeros((3, 8, 8), dtype=np.uint8), ValueError, r"shape \(3, 8, 8\).*channels last"),
        (np.zeros((1, 8, 8, 3), dtype=np.uint8), ValueError, r"shape \(1, 8, 8, 3\)"),
        (Path("no such picture.png"), FileNotFoundError, "no such picture"),
    ],
)
def test_pictures_that_are_no_pictures(preprocess, image, error, message):
    with pytest.raises(error, match=message):
        preprocess(image)


@pytest.mark.parametrize(
    ("floats", "named"),
    [
        (np.linspace(0, 1, 64).reshape(8, 8), "0 to 1"),
        (np.linspace(0, 65535, 64).reshape(8, 8), "0 to 65535"),
        (np.linspace(-2, 9, 64).reshape(8, 8), "-2 to 9"),
        (np.full((8, 8), np.nan), "nan to nan"),
    ],
)
def test_pictures_of_floats_that_pillow_would_make_black_or_white(preprocess, tmp_path, floats, named):
    picture = Image.fromarray(floats.astype(np.float32))
    picture.save(tmp_path / "floats.tif")
    for given in (picture, tmp_path / "floats.tif"):
        with pytest.raises(ValueError, match=f"PIL image of mode F with floats from {named}, expected 0 to 255: make"):
            preprocess(given)
        with pytest.raises(ValueError, match="of mode F with floats"):
            preprocess(given, np.ones((8, 8)))


def test_pictures_of_floats_from_0_to_255_are_seen(preprocess):
    grey = photo(90, 131, "L")
    assert torch.equal(preprocess(grey.convert("F"), geometry="squash"), preprocess(grey, geometry="squash"))
    assert torch.equal(preprocess(Image.new("F", (9, 9))), preprocess(Image.new("L", (9, 9))))


# --- label maps ---


def void_around(mask: np.ndarray, label: int, width: int = 2) -> np.ndarray:
    """As in Pascal VOC: 0, the label, and 255 on its border."""
    grown = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(2 * width + 1))) > 0
    labels = np.where(grown, 255, 0)
    labels[mask] = label
    return labels


def grid(labels: np.ndarray, side: int) -> np.ndarray:
    return labels.repeat(side, 0).repeat(side, 1)


LABELS = {
    **{f"VOC's {label}": (void_around(HARD, label), label) for label in (1, 2, 7, 15, 20)},
    "VOC's person in a dog": (np.where(np.roll(HARD, 30, 1), 12, void_around(HARD, 15)), 12),
    "ADE20K's, without background": (np.where(HARD, 128, 3), 128),
    "two classes on background": (np.where(HARD, 200, np.where(np.roll(HARD, 40, 1), 5, 0)), 200),
    "COCO-Stuff's sky": (np.where(HARD, 157, 0), 157),
    "200 instances": (grid(np.arange(200).reshape(10, 20), 9), None),
    "instances in any order": (grid(np.random.default_rng(0).permutation(256)[:130].reshape(10, 13), 10), None),
}


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64, np.uint16])
@pytest.mark.parametrize("case", LABELS)
def test_label_maps_of_a_high_maximum_are_refused(preprocess, case, kind):
    labels, named = LABELS[case]
    which = "" if named is None else f"{named}, without the void"
    with pytest.raises(ValueError, match=f"in flat areas, as a label map has, .*choose a label, mask == {which}"):
        preprocess(photo(*labels.shape), labels.astype(kind), geometry="pad")
    with pytest.raises(ValueError, match=r"mask 1 has integers from . to .* in flat areas"):
        preprocess(photo(*labels.shape), [labels > 0, Image.fromarray(labels.astype(np.uint8))], geometry="pad")


def compressed(mask: Image.Image, kind: str, quality: int) -> Image.Image:
    file = io.BytesIO()
    mask.save(file, kind, quality=quality)
    return Image.open(file).convert("L")


def soft_masks(height: int, width: int, shape: str) -> dict[str, Image.Image]:
    """A shape drawn at four times the size, and what people make of it."""
    large = Image.new("L", (4 * width, 4 * height))
    pen = ImageDraw.Draw(large)
    if shape == "ellipse":
        pen.ellipse((0.8 * width, 0.7 * height, 3 * width, 3.1 * height), fill=255)
    elif shape == "box on JPEG's grid":
        pen.rectangle(
            (32 * (width // 32), 32 * (height // 32), 64 * (width // 32) - 1, 64 * (height // 32) - 1), fill=255
        )
    else:
        for y in (0.3, 1.1, 2.2):
            pen.line((0.2 * width, y * height, 3.9 * width, (y + 1) * height), fill=255, width=12)
    hard = large.resize((width, height), Image.Resampling.NEAREST)
    edges = large.resize((width, height), Image.Resampling.BOX)
    quarter = large.resize((width // 4, height // 4), Image.Resampling.BOX)
    ramp = np.asarray(hard) * np.linspace(0.1, 1, width)
    found = {"hard": hard, "anti-aliased": edges}
    found |= {f"blur {s}": hard.filter(ImageFilter.GaussianBlur(s)) for s in (1, 3, 20)}
    found |= {f"box blur {s}": hard.filter(ImageFilter.BoxBlur(s)) for s in (1, 5)}
    for kind in ("JPEG", "WEBP"):
        found |= {f"{kind} {q}": compressed(hard, kind, q) for q in (3, 10, 30, 75, 95)}
        found |= {f"{kind} {q} anti-aliased": compressed(edges, kind, q) for q in (3, 10, 30, 75, 95)}
    found["enlarged"] = quarter.resize((width, height), Image.Resampling.BILINEAR)
    if shape == "ellipse":  # of thin things, all would be edge
        found["ramp"] = Image.fromarray(ramp.astype(np.uint8))
        found["enlarged in blocks"] = quarter.resize((width, height), Image.Resampling.NEAREST)
    return found


@pytest.mark.parametrize("shape", ["ellipse", "box on JPEG's grid", "lines"])
@pytest.mark.parametrize("size", [(90, 131), (480, 640)])
def test_soft_masks_are_no_label_maps(size, shape):
    for name, picture in soft_masks(*size, shape).items():
        mask = np.asarray(picture)
        if mask.max() > 127:  # less is refused, whatever it is
            assert np.allclose(unit_mask(mask, name), mask / 255), name


def test_small_and_even_masks_are_no_label_maps():
    for mask in (np.array([[0, 200]]), np.array([[200]]), np.array([[0], [128], [255]]), np.full((9, 9), 128)):
        assert np.allclose(unit_mask(mask, "mask"), mask / 255)


def test_unknown_geometry(preprocess):
    with pytest.raises(ValueError, match="geometry is 'stretch', expected one of crop, pad, squash"):
        preprocess(photo(90, 131), geometry="stretch")


def stripe(start: int, stop: int) -> np.ndarray:
    """Columns start to stop of a 100 x 200 mask, whose centre crop keeps columns 50 to 150."""
    mask = np.zeros((100, 200), dtype=bool)
    mask[20:80, start:stop] = True
    return mask


def test_a_crop_that_cuts_a_mask_is_not_silent(preprocess):
    picture = photo(100, 200)
    with pytest.warns(UserWarning, match=r'^the centre crop cuts off 50% of the mask: pass geometry="pad"') as caught:
        preprocess(picture, stripe(30, 70))
    assert caught[0].filename == __file__
    masks = [stripe(60, 140), stripe(40, 80), np.ones((100, 200), dtype=bool), stripe(130, 180)]
    with pytest.warns(UserWarning, match=r"cuts off 25% of mask 1, 60% of mask 3: pass"):
        preprocess(picture, masks)
    with pytest.raises(ValueError, match=r'the centre crop leaves nothing of the mask: pass geometry="pad"'):
        preprocess(picture, stripe(0, 40))
    with pytest.raises(ValueError, match="leaves nothing of mask 0, mask 2: pass"):
        preprocess(picture, [stripe(160, 200), stripe(60, 140), stripe(0, 10)])


def test_what_loses_little_or_nothing_gives_no_warning(preprocess):
    picture = photo(100, 200)
    preprocess(picture, stripe(47, 103))  # 3 of 56 columns
    for geometry in ("pad", "squash"):
        preprocess(picture, stripe(0, 40), geometry=geometry)


# --- EXIF ---

# The stored array of an upright one, from the EXIF 2.3 standard, tag 0x0112 ("row 0 is its top", and so on).
STORED = {
    1: lambda u: u,
    2: lambda u: u[:, ::-1],
    3: lambda u: u[::-1, ::-1],
    4: lambda u: u[::-1],
    5: lambda u: u.swapaxes(0, 1),
    6: lambda u: u[:, ::-1].swapaxes(0, 1),
    7: lambda u: u[::-1, ::-1].swapaxes(0, 1),
    8: lambda u: u[::-1].swapaxes(0, 1),
}


def with_exif(pixels: np.ndarray, orientation: int) -> Image.Image:
    picture, file = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(file, "png", exif=exif)
    return Image.open(file)


@pytest.mark.parametrize("orientation", STORED)
def test_exif_with_a_mask_turns_the_picture_upright(preprocess, orientation):
    upright = np.asarray(photo(90, 131))
    stored = with_exif(STORED[orientation](upright), orientation)
    for geometry in GEOMETRIES:
        rgb, alpha = preprocess(stored, HARD, geometry=geometry)
        expected = preprocess(upright, HARD, geometry=geometry)
        assert torch.equal(rgb, expected[0])
        assert torch.equal(alpha, expected[1])
    assert torch.equal(preprocess(stored), clip_transform(N)(stored))  # without a mask it is CLIP's, not turned


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_of_the_stored_orientation_is_refused(preprocess, orientation):
    stored = with_exif(STORED[orientation](np.asarray(photo(90, 131))), orientation)
    with pytest.raises(ValueError, match=r"\(131, 90\), expected \(90, 131\).*EXIF orientation.*exif_transpose"):
        preprocess(stored, STORED[orientation](HARD))


def test_a_mask_file_with_exif_is_turned_too(preprocess):
    stored = with_exif(STORED[6](np.asarray(photo(90, 131))), 6)
    mask = with_exif(STORED[6](HARD.astype(np.uint8) * 255), 6)
    assert torch.equal(preprocess(stored, mask)[1], preprocess(ImageOps.exif_transpose(stored), HARD)[1])


# --- boxes ---


def test_box_mask_of_whole_pixels_is_a_slice():
    mask = box_mask((2, 1, 5, 3), (4, 7))
    expected = np.zeros((4, 7), dtype=np.float32)
    expected[1:3, 2:5] = 1
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, expected)


def test_box_mask_covers_exactly_the_boxs_area():
    rng = np.random.default_rng(0)
    for _ in range(200):
        (x0, x1), (y0, y1) = np.sort(rng.random(2) * 31), np.sort(rng.random(2) * 17)
        mask = box_mask((x0, y0, x1, y1), (17, 31))
        assert mask.sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=1e-4)
        assert 0 <= mask.min() <= mask.max() <= 1
    np.testing.assert_allclose(box_mask((0.25, 0, 0.5, 1), (1, 2)), [[0.25, 0]])


def test_box_mask_takes_arrays_and_clips():
    np.testing.assert_array_equal(box_mask((-5, -1, 99, 2), (4, 7)), box_mask((0, 0, 7, 2), (4, 7)))
    np.testing.assert_array_equal(box_mask(torch.tensor([1, 1, 2, 2]), (4, 7)), box_mask((1, 1, 2, 2), (4, 7)))
    assert box_mask((0, 0, float("inf"), float("inf")), (4, 7)).all()


@pytest.mark.parametrize("box", [(0.1, 0.2, 0.5, 0.6), (0, 0, 1, 1)])
def test_a_box_of_shares_is_suspected(box):
    with pytest.warns(UserWarning, match=r"no more than 1 of 480 x 640 pixels.*multiply x by the width") as caught:
        mask = box_mask(box, (480, 640))
    assert caught[0].filename == __file__
    assert mask.sum() == pytest.approx((box[2] - box[0]) * (box[3] - box[1]))


@pytest.mark.parametrize(("box", "size"), [((0.1, 0.2, 0.5, 1.5), (480, 640)), ((0, 0, 1, 1), (2, 2))])
def test_a_small_box_in_pixels_is_not(box, size):
    assert box_mask(box, size).any()  # warnings are errors here


def test_box_mask_is_a_mask(preprocess):
    _, alpha = preprocess(photo(90, 131), box_mask((30.5, 20, 90, 70), (90, 131)))
    assert alpha.max().item() == pytest.approx(FOREGROUND)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((1, 1, 1, 3), r"box is \(1.0, 1.0, 1.0, 3.0\), expected x0 < x1 and y0 < y1.*\(x, y, w, h\)"),
        ((3, 1, 2, 3), "expected x0 < x1"),
        ((1, float("nan"), 2, 3), "expected x0 < x1"),
        ((7, 0, 9, 4), r"lies outside the picture of height 4 and width 7"),
        ((0, -3, 7, 0), "lies outside"),
        ((1, 2, 3), r"box has shape \(3,\), expected 4 numbers"),
        ([(1, 1, 2, 2)], r"box has shape \(1, 4\)"),
    ],
)
def test_boxes_that_are_no_boxes(box, message):
    with pytest.raises(ValueError, match=message):
        box_mask(box, (4, 7))
