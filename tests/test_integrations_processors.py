"""Masks sent through processors that pad with a colour, choose their own sizes, or get rotated or nested pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from test_integrations import PATCH, SIDE, photo

from alpha_clip.integrations import processor_with_mask
from alpha_clip.model import FOREGROUND
from alpha_clip.transforms import RegionLost

transformers = pytest.importorskip("transformers", reason='pip install "alpha-clip[test]"')

_SQUARE = {"height": SIDE, "width": SIDE}


def image_processor(name: str, **options: object):
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    return getattr(transformers, name)(**options)


# --- padding ---

PADDING = {
    "LlavaImageProcessor": {"do_pad": True, "size": {"shortest_edge": SIDE}, "crop_size": _SQUARE},
    "JanusImageProcessor": {"size": _SQUARE},
    "DeepseekVLImageProcessor": {"size": _SQUARE},
    "DeepseekOcr2ImageProcessor": {"size": _SQUARE},
}


@pytest.mark.parametrize("name", PADDING)
def test_padding_is_background_whatever_its_colour(name):
    made_with = processor_with_mask(image_processor(name, **PADDING[name]))
    ones = np.ones((40, 80), bool)  # the upper and lower quarter of the square are padding
    found = made_with([photo(80, 40)] * 2, [ones, None])["pixel_values"]
    own = made_with([photo(80, 40)] * 2)["pixel_values"]
    assert torch.equal(found[:, :3], own)
    alpha, (height, _) = found[0, 3], found.shape[-2:]
    edge = 2  # rows that a resize mixes
    assert (alpha[: height // 4 - edge] == -FOREGROUND).all()
    assert (alpha[3 * height // 4 + edge :] == -FOREGROUND).all()
    assert (alpha[height // 4 + edge : 3 * height // 4 - edge] == FOREGROUND).all()
    assert (found[1, 3] == FOREGROUND).all()


def test_a_mask_that_is_lost_is_refused_beside_padding_too():
    tiny = {"height": 8, "width": 8}
    mask = np.zeros((800, 1600), bool)
    mask[0, 0] = True
    for processor in (
        image_processor("LlavaImageProcessor", do_pad=True, size={"shortest_edge": 8}, crop_size=tiny),
        image_processor("JanusImageProcessor", size=tiny, min_size=1),
    ):
        with pytest.raises(RegionLost, match="leaves nothing of mask 0"):
            processor_with_mask(processor)(photo(1600, 800), mask)


def test_packed_padding_is_background():
    processor = image_processor("Siglip2ImageProcessor", patch_size=PATCH, max_num_patches=17)
    found = processor_with_mask(processor)(photo(80, 20), np.ones((20, 80), bool))
    alpha, attended = found["pixel_values"][0, :, 3 * PATCH**2 :], found["pixel_attention_mask"][0].bool()
    assert attended.sum() == 16
    assert (alpha[attended] == FOREGROUND).all() and (alpha[~attended] == -FOREGROUND).all()


# --- values ---


@pytest.mark.parametrize("offset", [False, True])
def test_values_are_a_mask_s_or_it_is_refused(offset):
    """EfficientNet's processor divides by the deviation twice, and may shift values by one."""
    mask = np.zeros((40, 80), bool)
    mask[:, :40] = True
    made_with = processor_with_mask(
        image_processor("EfficientNetImageProcessor", size=_SQUARE, rescale_offset=offset, resample=0)
    )
    if offset:
        with pytest.raises(
            ValueError, match=r"EfficientNetImageProcessor makes values from -1 to 0 of a mask, and -1 to -1 of black"
        ):
            made_with(photo(80, 40), mask)
    else:
        alpha = made_with(photo(80, 40), mask)["pixel_values"][0, 3]
        assert (alpha[:, : SIDE // 2] == FOREGROUND).all() and (alpha[:, SIDE // 2 :] == -FOREGROUND).all()


class Odd:
    """An image processor that does something to colours, or to what it returns."""

    def __init__(self, change) -> None:
        self.change = change
        self.own = transformers.CLIPImageProcessor(size=_SQUARE, do_center_crop=False)

    def __call__(self, images, **options):
        return self.change(self.own(images, **options))


def changed(change) -> Odd:
    def apply(made):
        made["pixel_values"] = change(made["pixel_values"])
        return made

    return Odd(apply)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: torch.nn.functional.pad(p[..., 2:-2], (2, 2), value=0.5),  # pads with a colour that is no attribute
        lambda p: p.mean(dim=1, keepdim=True).expand_as(p),  # to grey
        lambda p: p * 2,
        lambda p: p - 0.5,
    ],
)
def test_a_processor_that_cannot_carry_a_mask_is_refused(change):
    made_with = processor_with_mask(changed(change))
    mask = np.ones((40, 80), bool)
    assert made_with(photo(80, 40))["pixel_values"].shape == (1, 3, SIDE, SIDE)
    with pytest.raises(ValueError, match=r"Odd makes values from .* expected 0 to 1, and 0: it pads with a colour"):
        made_with(photo(80, 40), mask)


def test_channels_in_another_order_carry_it():
    mask = np.zeros((40, 80), bool)
    mask[:20] = True
    straight = processor_with_mask(changed(lambda p: p))(photo(80, 40), mask)["pixel_values"]
    flipped = processor_with_mask(changed(lambda p: p.flip(1)))(photo(80, 40), mask)["pixel_values"]
    assert torch.equal(flipped[:, 3], straight[:, 3]) and torch.equal(flipped[:, :3], straight[:, :3].flip(1))


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made["pixel_values"],
        lambda made: {"images": made["pixel_values"]},
        lambda made: {"pixel_values": made["pixel_values"].permute(0, 2, 3, 1)},
        lambda made: {"pixel_values": [*made["pixel_values"]]},
        lambda made: {"pixel_values": made["pixel_values"].repeat(2, 1, 1, 1)},
    ],
)
def test_what_is_no_row_of_channels_for_each_picture_is_refused(change):
    with pytest.raises(ValueError, match="Odd makes no pixel_values of one row for each picture, as those of CLIP"):
        processor_with_mask(Odd(change))(photo(80, 40), np.ones((40, 80), bool))


def test_a_processor_that_takes_no_options_is_refused():
    def made_with(images, return_tensors):
        return transformers.CLIPImageProcessor()(images, return_tensors=return_tensors)

    assert processor_with_mask(made_with)(photo())["pixel_values"].shape == (1, 3, 224, 224)
    with pytest.raises(ValueError, match="function does not take the options that a mask needs, hold the mask in"):
        processor_with_mask(made_with)(photo(), np.ones((48, 80), bool))


# --- options ---


def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "a": 1, "cat": 2, "<unk>": 3}, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")


@pytest.mark.parametrize(("patch", "count"), [(16, 16), (8, 256), (16, 256)])
def test_a_processor_with_sizes_of_its_own_gives_the_mask_those(patch, count):
    """SigLIP 2's processor overrides the sizes of its image processor."""
    of_images = image_processor("Siglip2ImageProcessor", patch_size=patch, max_num_patches=count)
    processor = transformers.Siglip2Processor(of_images, tokenizer())
    mask = np.zeros((40, 80), bool)
    mask[:20] = True
    for options in ({}, {"max_num_patches": 64}, {"images_kwargs": {"max_num_patches": 64}}):
        own = processor(images=photo(80, 40), text="a cat", return_tensors="pt", **options)
        found = processor_with_mask(processor)(photo(80, 40), mask, text="a cat", **options)
        width, (rows, columns) = own["pixel_values"].shape[-1], own["spatial_shapes"][0].tolist()
        assert torch.equal(found["pixel_values"][..., :width], own["pixel_values"])
        alpha = found["pixel_values"][0, : rows * columns, width:]
        assert alpha.shape[-1] == width // 3
        alpha = alpha.mean(-1).reshape(rows, columns)
        assert (alpha[: rows // 2] > 1.5).all() and (alpha[(rows + 3) // 2 :] < -1.5).all()
    assert processor.image_processor is of_images


# --- several pictures in a chat ---

NESTING = {
    "CLIPImageProcessor": {"size": {"shortest_edge": SIDE}, "crop_size": SIDE},
    "LlavaNextImageProcessor": {
        "size": {"shortest_edge": SIDE},
        "crop_size": SIDE,
        "image_grid_pinpoints": [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]],
    },
}


@pytest.mark.parametrize("name", NESTING)
def test_pictures_and_masks_may_be_nested(name, tmp_path):
    own = image_processor(name, **NESTING[name])
    made_with, image, mask = processor_with_mask(own), photo(), np.zeros((48, 80), bool)
    mask[:, :40] = True
    (other := photo().transpose(Image.Transpose.ROTATE_180)).save(path := tmp_path / "photo.png")
    flat = made_with([image, other, image], [mask, None, ~mask])["pixel_values"]
    nested = [[image, other], [image]]
    for given in ([[mask, None], [~mask]], ((mask, None), [~mask])):
        assert torch.equal(made_with(nested, given)["pixel_values"], flat)
    assert torch.equal(made_with([[image, path], (image,)], [[mask, None], ~mask[None]])["pixel_values"], flat)
    only = made_with(nested, [None, [~mask]])["pixel_values"]
    assert torch.equal(only, made_with([image, other, image], [None, None, ~mask])["pixel_values"])
    plain = own(nested, return_tensors="pt")["pixel_values"]
    assert torch.equal(made_with(nested)["pixel_values"], plain)


def test_nested_masks_of_other_pictures_are_refused():
    made_with, mask = processor_with_mask(transformers.CLIPImageProcessor()), np.ones((48, 80), bool)
    nested = [[photo(), photo()], [photo()]]
    with pytest.raises(
        ValueError, match=r"3 masks of 2 lists of pictures, .*: nest the masks as the pictures are, \[\["
    ):
        made_with(nested, [mask, None, mask])
    with pytest.raises(ValueError, match="1 masks of 2 pictures, expected one each, or None for the whole"):
        made_with(nested, [[mask], [mask, None]])
    with pytest.raises(ValueError, match="1 masks of 2 pictures, expected one each"):
        made_with([photo(), photo()], Image.fromarray(mask))


# --- turned pictures ---


def turned(path) -> Image.Image:
    """A picture stored 80 wide and 40 high, which upright is 40 wide and 80 high."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(80, 40).save(path, exif=exif)
    return Image.open(path)


def test_without_a_mask_no_picture_is_turned(tmp_path):
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    made_with, image = processor_with_mask(processor), turned(tmp_path / "turned.png")
    plain = processor(image, return_tensors="pt")["pixel_values"]
    upright = processor(ImageOps.exif_transpose(image), return_tensors="pt")["pixel_values"]
    assert not torch.allclose(plain, upright)
    assert torch.equal(made_with(image)["pixel_values"], plain)
    assert torch.equal(made_with([image, image], [None, None])["pixel_values"], torch.cat([plain, plain]))
    mask = np.zeros((80, 40), bool)
    mask[:40] = True
    some = made_with([image, image], [None, mask])["pixel_values"]
    assert torch.equal(some[:, :3], torch.cat([plain, upright]))
    assert (some[0, 3] == FOREGROUND).all()
    assert (some[1, 3, : SIDE // 2 - 1] > 1).all() and (some[1, 3, SIDE // 2 + 1 :] < -1).all()


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")  # transformers'
def test_whatever_the_processor_takes_it_is_given(tmp_path):
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    made_with, array = processor_with_mask(processor), np.array(photo())
    photo().convert("L").save(path := tmp_path / "grey.png")
    for image in (photo(), array, array.transpose(2, 0, 1), torch.from_numpy(array), [photo(), photo()], str(path)):
        expected = processor(image, return_tensors="pt")["pixel_values"]
        assert torch.equal(made_with(image)["pixel_values"], expected)
    expected = processor(Image.open(path), return_tensors="pt")["pixel_values"]
    assert torch.equal(made_with(path)["pixel_values"], expected)
    assert torch.equal(made_with([path, photo()])["pixel_values"][:1], expected)
