"""An alpha channel in small random towers of transformers, open_clip, timm and OpenAI's clip."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import io
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType

import numpy as np
import packaging.version
import pytest
import torch
from PIL import Image
from torch import nn

import alpha_clip
from alpha_clip.errors import IncompatibleCheckpoint
from alpha_clip.integrations import (
    add_alpha,
    alpha_of,
    alpha_weight,
    copy_tower,
    focus,
    from_pretrained,
    has_alpha,
    load_alpha_weights,
    processor_with_mask,
    remove_alpha,
)
from alpha_clip.model import CLIP, FOREGROUND
from alpha_clip.transforms import RegionLost

transformers = pytest.importorskip("transformers", reason='pip install "alpha-clip[test]"')
open_clip = pytest.importorskip("open_clip", reason='pip install "alpha-clip[test]"')

SIDE, PATCH, WIDTH = 32, 8, 64
_VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": SIDE,
    "patch_size": PATCH,
}
_TEXT = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 99}


def clip_config():
    vision = _VISION | {"projection_dim": 32}
    return transformers.CLIPConfig(text_config=_TEXT, vision_config=vision, projection_dim=32)


def _clip_vision():
    return transformers.CLIPVisionModel(clip_config().vision_config)


def _clip_projected():
    return transformers.CLIPVisionModelWithProjection(clip_config().vision_config)


def _clip():
    return transformers.CLIPModel(clip_config()).vision_model


def _siglip():
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_VISION))


def _blip2():
    return transformers.Blip2VisionModel(transformers.Blip2VisionConfig(**_VISION, initializer_range=0.1))


def _dinov2():
    return transformers.Dinov2Model(transformers.Dinov2Config(**_VISION))


def _dinov3():
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**_VISION))


def _vit():
    return transformers.ViTModel(transformers.ViTConfig(**_VISION))


def _open_clip():
    vision = {"image_size": SIDE, "layers": 2, "width": WIDTH, "patch_size": PATCH}
    text = {"context_length": 8, "vocab_size": 99, "width": 64, "heads": 1, "layers": 1}
    return open_clip.CLIP(32, vision, text, quick_gelu=True).visual


def _timm():
    timm = pytest.importorskip("timm", reason='pip install "alpha-clip[test]"')
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": 1}
    return timm.models.VisionTransformer(**sizes, num_classes=0)


def _eva():
    timm = pytest.importorskip("timm", reason='pip install "alpha-clip[test]"')
    sizes = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": 1}
    return timm.models.Eva(**sizes, num_classes=0)


TOWERS = {f.__name__[1:]: f for f in (_clip_vision, _clip_projected, _clip, _siglip, _blip2, _dinov2, _dinov3, _vit)}
TOWERS |= {f.__name__[1:]: f for f in (_open_clip, _timm, _eva)}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return TOWERS[name]().eval()


def seen(tower: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    found = tower(pixels)
    if isinstance(found, torch.Tensor):
        return found
    return found.image_embeds if hasattr(found, "image_embeds") else found.last_hidden_state


def pixels(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def left(count: int = 2) -> torch.Tensor:
    """A mask of the left half, normalised."""
    alpha = torch.full((count, 1, SIDE, SIDE), -FOREGROUND)
    alpha[..., : SIDE // 2] = FOREGROUND
    return alpha


def wake(tower: nn.Module) -> nn.Module:
    """Set alpha weights that are not zero."""
    with torch.no_grad():
        alpha_weight(tower).normal_(std=0.05, generator=torch.Generator().manual_seed(1))
    return tower


every_tower = pytest.mark.parametrize("name", TOWERS)


@every_tower
@torch.no_grad()
def test_nothing_changes_until_alpha_weights_come(name):
    tower = made(name)
    before, keys = seen(tower, pixels()), set(tower.state_dict())
    assert add_alpha(tower) is tower
    assert torch.equal(seen(tower, pixels()), before)
    assert torch.equal(seen(tower, torch.cat([pixels(), left()], dim=1)), before)
    with focus(tower, left()):
        assert torch.equal(seen(tower, pixels()), before)
    (new,) = set(tower.state_dict()) - keys
    assert new.endswith(".alpha") and keys < set(tower.state_dict())


@every_tower
@torch.no_grad()
def test_a_mask_is_the_fourth_channel_or_in_focus_and_none_is_the_whole(name):
    tower = wake(add_alpha(made(name)))
    whole = seen(tower, torch.cat([pixels(), torch.full((2, 1, SIDE, SIDE), FOREGROUND)], dim=1))
    masked = seen(tower, torch.cat([pixels(), left()], dim=1))
    torch.testing.assert_close(seen(tower, pixels()), whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(masked, whole, atol=1e-3)
    for mask in (left(), left(1), left()[:, 0], left() > 0):
        with focus(tower, mask):
            torch.testing.assert_close(seen(tower, pixels()), masked, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen(tower, pixels()), whole, rtol=1e-5, atol=1e-5)


@every_tower
@torch.no_grad()
def test_a_mask_of_all_true_in_focus_is_the_whole_image_to_the_bit(name):
    tower = wake(add_alpha(made(name)))
    with focus(tower, torch.ones(2, 1, SIDE, SIDE, dtype=torch.bool)):
        masked = seen(tower, pixels())
    assert torch.equal(masked, seen(tower, torch.cat([pixels(), torch.full((2, 1, SIDE, SIDE), FOREGROUND)], dim=1)))
    assert torch.equal(masked, seen(tower, pixels()))


@every_tower
def test_gradients_reach_the_alpha_weights(name):
    tower = add_alpha(made(name))
    seen(tower, torch.cat([pixels(), left()], dim=1)).square().sum().backward()
    assert alpha_weight(tower).grad.abs().sum() > 0


@every_tower
@torch.no_grad()
def test_what_was_added_is_removed_to_the_letter(name):
    tower, untouched = made(name), made(name)
    remove_alpha(wake(add_alpha(tower)))
    assert str(tower) == str(untouched)
    assert list(tower.state_dict()) == list(untouched.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(tower.state_dict().values(), untouched.state_dict().values(), strict=True)
    )
    assert torch.equal(seen(tower, pixels()), seen(untouched, pixels()))
    for one, other in zip(tower.modules(), untouched.modules(), strict=True):
        assert vars(one).keys() == vars(other).keys()
        assert len(one._forward_pre_hooks) == len(other._forward_pre_hooks)


@every_tower
@torch.no_grad()
def test_copies_have_an_alpha_channel_of_their_own(name):
    tower = wake(add_alpha(made(name)))
    twin = copy.deepcopy(tower)
    masked = torch.cat([pixels(), left()], dim=1)
    expected = seen(tower, masked)
    assert torch.equal(seen(twin, masked), expected)
    with focus(twin, left()):
        assert not torch.allclose(seen(tower, pixels()), expected, atol=1e-3)
        torch.testing.assert_close(seen(twin, pixels()), expected, rtol=1e-5, atol=1e-5)
    buffer = io.BytesIO()
    torch.save(tower, buffer)
    buffer.seek(0)
    assert torch.equal(seen(torch.load(buffer, weights_only=False), masked), expected)
    remove_alpha(twin)
    assert torch.equal(seen(tower, masked), expected)
    assert str(twin) == str(made(name))


@torch.no_grad()
def test_half_precision_and_other_devices_are_the_towers_own():
    tower = wake(add_alpha(made("clip_vision"))).to(torch.bfloat16)
    assert alpha_weight(tower).dtype == torch.bfloat16
    with focus(tower, left()):
        assert seen(tower, pixels()).dtype == torch.bfloat16


# --- packed patches ---


def siglip2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {k: v for k, v in _VISION.items() if k != "image_size"}
    return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**sizes, num_patches=16)).eval()


def packed(tower: nn.Module, patches: torch.Tensor) -> torch.Tensor:
    attention = torch.ones(patches.shape[:2], dtype=torch.int32)
    shapes = torch.tensor([[4, 4]] * len(patches))
    return tower(pixel_values=patches, pixel_attention_mask=attention, spatial_shapes=shapes).last_hidden_state


@torch.no_grad()
def test_packed_patches_carry_alpha_behind_their_colours():
    tower, patches = siglip2(), torch.randn(2, 16, 3 * PATCH**2, generator=torch.Generator().manual_seed(0))
    before = packed(tower, patches)
    add_alpha(tower)
    assert torch.equal(packed(tower, patches), before)
    wake(tower)
    alpha = torch.full((2, 16, PATCH**2), -FOREGROUND)
    alpha[:, :8] = FOREGROUND
    masked = packed(tower, torch.cat([patches, alpha], dim=-1))
    whole = packed(tower, torch.cat([patches, torch.full_like(alpha, FOREGROUND)], dim=-1))
    torch.testing.assert_close(packed(tower, patches), whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(masked, whole, atol=1e-3)
    with focus(tower, alpha):
        torch.testing.assert_close(packed(tower, patches), masked, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"expected 192 values each, or 256 with alpha"):
        packed(tower, torch.cat([patches, alpha, alpha], dim=-1))
    remove_alpha(tower)
    assert torch.equal(packed(tower, patches), before) and str(tower) == str(siglip2())


def test_gradients_reach_the_alpha_weights_of_packed_patches():
    tower = add_alpha(siglip2())
    packed(tower, torch.randn(2, 16, 4 * PATCH**2)).square().sum().backward()
    assert alpha_weight(tower).grad.abs().sum() > 0


def naflex(**settings) -> nn.Module:
    timm = pytest.importorskip("timm", reason='pip install "alpha-clip[test]"')
    if not hasattr(timm.models, "naflexvit"):
        pytest.skip("needs a timm with NaFlex")
    torch.manual_seed(0)
    sizes = {"patch_size": PATCH, "embed_dim": WIDTH, "depth": 1, "num_heads": 1, "pos_embed_grid_size": (4, 4)}
    cfg = timm.models.naflexvit.NaFlexVitCfg(**sizes, embed_proj_type="linear", **settings)
    return timm.models.naflexvit.NaFlexVit(cfg, num_classes=0).eval()


@torch.no_grad()
@pytest.mark.parametrize("channels_last", [True, False])
def test_a_tower_that_packs_pictures_of_four_channels_finds_alpha_in_each(channels_last):
    """timm packs pixel by pixel, or channel by channel; a convolution is the oracle."""
    tower = naflex() if channels_last else naflex(patchify_channels_last=False)
    before, masked = tower(pixels()), torch.cat([pixels(), left()], dim=1)
    add_alpha(tower)
    assert torch.equal(tower(pixels()), before) and torch.equal(tower(masked), before)
    proj = wake(tower).embeds.proj
    conv = nn.Conv2d(4, WIDTH, PATCH, PATCH)
    patch = (PATCH, PATCH, 3) if channels_last else (3, PATCH, PATCH)
    rgb = proj.weight.unflatten(1, patch)
    rgb = rgb.permute(0, 3, 1, 2) if channels_last else rgb
    conv.weight.copy_(torch.cat([rgb, proj.alpha.unflatten(1, (1, PATCH, PATCH))], dim=1))
    conv.bias.copy_(proj.bias)
    found = []
    proj.register_forward_hook(lambda *call: found.append(call[-1].clone()))  # positions are added in place
    seen_masked, seen_whole = tower(masked), tower(pixels())
    whole = torch.cat([pixels(), torch.full_like(left(), FOREGROUND)], dim=1)
    for one, picture in zip(found, (masked, whole), strict=True):
        torch.testing.assert_close(one, conv(picture).flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(seen_masked, seen_whole, atol=1e-3)
    alpha = left().unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).reshape(2, 16, PATCH**2)
    with focus(tower, alpha):
        torch.testing.assert_close(tower(pixels()), seen_masked, rtol=1e-5, atol=1e-5)
    remove_alpha(tower)
    assert torch.equal(tower(pixels()), before)


def test_a_patch_embedding_whose_weight_is_read_past_it_is_refused():
    tower = naflex(enable_patch_interpolator=True)
    before = str(tower)
    with pytest.raises(ValueError, match=r"NaFlexVit resizes the weight of its patch embedding, embeds.proj, past any"):
        add_alpha(tower)
    assert str(tower) == before


@torch.no_grad()
def test_a_padded_convolution_sees_the_edges_of_a_mask_as_those_of_the_picture():
    """The oracle is a convolution of four channels with zeros around, like the first of a ResNet."""
    tower = wake(add_alpha(nn.Sequential(nn.Conv2d(3, WIDTH, 3, stride=2, padding=1, dilation=2))))
    conv = tower[0]
    four = nn.Conv2d(4, WIDTH, 3, stride=2, padding=1, dilation=2)
    four.weight.copy_(torch.cat([conv.weight, conv.alpha], dim=1))
    four.bias.copy_(conv.bias)
    masked, whole = (torch.cat([pixels(), a], dim=1) for a in (left(), torch.full_like(left(), FOREGROUND)))
    torch.testing.assert_close(tower(masked), four(masked), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tower(pixels()), four(whole), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("wrong", [False, True])
def test_a_mask_is_for_one_picture_of_a_tower_that_counts_channels(wrong):
    """The fourth channel is in focus for one call alone, even if that call fails."""
    tower = wake(add_alpha(made("dinov2")))
    whole = seen(tower, pixels())
    if wrong:
        with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
            tower(torch.cat([pixels(), left()], dim=1)[..., : PATCH // 2])
    else:
        seen(tower, torch.cat([pixels(), left()], dim=1))
    convolution = alpha_of(tower)[1]
    everywhere = torch.cat([pixels(), torch.full_like(left(), FOREGROUND)], dim=1)
    torch.testing.assert_close(convolution(pixels()), convolution(everywhere), rtol=1e-5, atol=1e-5)
    assert torch.equal(seen(tower, pixels()), whole)


@pytest.mark.parametrize("name", ["clip_vision", "dinov2", "siglip2"])
def test_alpha_that_was_added_in_inference_mode_can_be_trained(name):
    tower = siglip2() if name == "siglip2" else made(name)
    with torch.inference_mode():
        add_alpha(tower)
    if name == "siglip2":
        found = packed(tower, torch.randn(2, 16, 4 * PATCH**2))
    else:
        found = seen(tower, torch.cat([pixels(), left()], dim=1))
    found.square().sum().backward()
    torch.optim.SGD(tower.parameters(), lr=1.0).step()
    assert alpha_weight(tower).any() and not alpha_weight(tower).is_inference()


# --- what is refused ---


def test_no_patch_embedding_or_several_are_listed():
    with pytest.raises(ValueError, match=r"Linear has no patch embeddings of RGB\. Expected one: pass the image tower"):
        add_alpha(nn.Linear(3, 3))
    two = nn.ModuleDict({"one": made("clip_vision"), "other": made("siglip")})
    with pytest.raises(ValueError, match=r"2 patch embeddings of RGB: one.*\(Conv2d\), other.*\(Conv2d\)"):
        add_alpha(two)
    with pytest.raises(ValueError, match=r"itself \(Conv2d\)"):
        add_alpha(nn.Conv2d(3, 8, 8, 8))


def test_alpha_is_added_once():
    tower = add_alpha(made("clip_vision"))
    with pytest.raises(ValueError, match=r"has an alpha channel already, in .*patch_embedding"):
        add_alpha(tower)
    own = add_alpha(small_clip())
    with pytest.raises(ValueError, match="has an alpha channel already, in visual"):
        add_alpha(own)
    with pytest.raises(ValueError, match="has 2 image towers of this package: pass one of them"):
        add_alpha(nn.ModuleList([small_clip(), small_clip()]))


@torch.no_grad()
def test_our_own_tower_learns_the_fourth_channel_and_the_focus():
    model = small_clip()
    expected, whole = model.encode_image(pixels(), left()), model.encode_image(pixels())
    assert add_alpha(model) is model and has_alpha(model)
    assert alpha_weight(model) is model.visual.conv1_alpha.weight
    assert torch.equal(model.encode_image(torch.cat([pixels(), left()], dim=1)), expected)
    assert torch.equal(model.encode_image(pixels(), left()), expected)
    assert torch.equal(model.visual(image=pixels(), alpha=left()), expected)
    with focus(model, left() > 0):
        torch.testing.assert_close(model.encode_image(pixels()), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.encode_image(pixels()), whole)
    copy_tower(small_clip().visual, model)
    remove_alpha(model)
    assert not has_alpha(model) and not model.visual._forward_pre_hooks
    with pytest.raises(ValueError, match="image is"):
        model.encode_image(torch.cat([pixels(), left()], dim=1))


def test_a_wrapped_patch_embedding_is_refused():
    class Wrapped(nn.Conv2d):
        pass

    tower = made("clip_vision")
    parent = next(m for m in tower.modules() if hasattr(m, "patch_embedding"))
    parent.patch_embedding = Wrapped(3, WIDTH, PATCH, PATCH, bias=False)
    with pytest.raises(ValueError, match="is Wrapped, expected a plain Conv2d or Linear: add alpha before"):
        add_alpha(tower)


def test_a_tower_without_alpha_has_none_to_focus_or_remove():
    for call in (remove_alpha, alpha_of):
        with pytest.raises(ValueError, match="has no alpha channel: call add_alpha on it first"):
            call(made("siglip"))
    two = nn.ModuleDict({"one": add_alpha(made("clip_vision")), "other": add_alpha(made("siglip"))})
    with pytest.raises(ValueError, match=r"has several, one.*, other.*: pass one of the towers"):
        alpha_of(two)


def test_a_mask_that_does_not_fit_is_refused_when_it_is_used():
    tower = add_alpha(made("dinov2"))
    for mask in (torch.zeros(3, 1, SIDE, SIDE), torch.zeros(1, 1, 16, 16)):
        with focus(tower, mask), pytest.raises(ValueError, match=r"the alpha in focus is .*make it 1 or 2 masks of"):
            seen(tower, pixels())
    assert torch.equal(seen(tower, pixels()), seen(made("dinov2"), pixels()))  # nothing is left of it
    with focus(tower, torch.zeros(4, 1, SIDE, SIDE)), pytest.raises(ValueError, match=r"make it 1 mask of \(32, 32\)"):
        seen(tower, pixels(1))
    with pytest.raises(TypeError, match=r"alpha has dtype torch.int64, expected floats"), focus(tower, left().long()):
        pass
    with pytest.raises(TypeError, match=r"alpha is ndarray, expected a tensor: torch.from_numpy"):
        focus(tower, left().numpy()).__enter__()
    for mask in (left()[0, 0], left()[None], torch.cat([pixels(), left()], dim=1)):  # one, tiles, all four channels
        with pytest.raises(ValueError, match=r"alpha is \(.*\), expected \(1 or B, 1, H, W\) or .* each tile"):
            focus(tower, mask).__enter__()
    with pytest.raises(ValueError, match=r"alpha is \(2, 1, 32, 32\), expected \(1 or B, N, pp\)"):
        focus(add_alpha(siglip2()), left()).__enter__()
    with pytest.raises(ValueError, match="expected 3 channels, or 4 with alpha"):
        seen(add_alpha(made("clip_vision")), torch.zeros(1, 5, SIDE, SIDE))


# --- threads ---


def in_threads(calls: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@torch.no_grad()
def test_threads_have_a_focus_of_their_own_unless_they_run_in_a_copied_context():
    tower = wake(add_alpha(made("dinov2")))
    whole, found = seen(tower, pixels()), {}

    def look(name: str) -> None:
        found[name] = seen(tower, pixels())

    with focus(tower, left()):
        masked = seen(tower, pixels())
        context = contextvars.copy_context()
        threads = [
            threading.Thread(target=look, args=("bare",)),
            threading.Thread(target=context.run, args=(look, "copied")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert torch.equal(found["bare"], whole) and torch.equal(found["copied"], masked)


@torch.no_grad()
def test_many_threads_see_through_masks_of_their_own():
    tower = wake(add_alpha(made("dinov2")))
    masks = [
        torch.where(torch.arange(SIDE) < 4 * (i + 1), FOREGROUND, -FOREGROUND).expand(1, 1, SIDE, SIDE)
        for i in range(6)
    ]
    expected = [seen(tower, torch.cat([pixels(1), mask], dim=1)) for mask in masks]
    wrong = []

    def look(i: int) -> None:
        with torch.no_grad():
            for _ in range(20):
                with focus(tower, masks[i]):
                    if not torch.allclose(seen(tower, pixels(1)), expected[i], atol=1e-5):
                        wrong.append(i)

    in_threads([partial(look, i) for i in range(6)])
    assert wrong == []


# --- blocks left elsewhere, or in another order ---

left_elsewhere = r"focus was left in another context than it was entered in.*: do not yield inside focus, but enter it"


def steps(tower: nn.Module, mask: torch.Tensor, count: int = 2) -> Iterator[torch.Tensor]:
    with focus(tower, mask):
        for _ in range(count):
            yield seen(tower, pixels()).detach()


def stepped(steps: Iterator[torch.Tensor]) -> list[torch.Tensor]:
    """Run each step in a thread and a fresh copy of the context, as a server does."""

    async def run() -> list[torch.Tensor]:
        found = []
        while (step := await asyncio.to_thread(next, steps, None)) is not None:
            found.append(step)
        return found

    return asyncio.run(run())


def test_a_block_that_a_server_leaves_in_another_context_says_so():
    tower = wake(add_alpha(made("clip_vision")))
    whole = seen(tower, pixels())
    with pytest.raises(RuntimeError, match=left_elsewhere):
        stepped(steps(tower, left()))
    assert torch.equal(seen(tower, pixels()), whole)

    def again_at_each_step() -> Iterator[torch.Tensor]:  # what the docs say to do
        for _ in range(2):
            with focus(tower, left()):
                found = seen(tower, pixels()).detach()
            yield found

    masked = seen(tower, torch.cat([pixels(), left()], dim=1))
    assert all(torch.equal(found, masked) for found in stepped(again_at_each_step()))


def test_a_block_left_elsewhere_hides_no_other_error_and_leaves_no_mask():
    tower = wake(add_alpha(made("clip_vision")))
    whole = seen(tower, pixels())

    def fails() -> Iterator[None]:
        with focus(tower, left()):
            yield
            raise KeyError("mine")

    generator = fails()
    next(generator)  # entered in this context, and left in a copy that has the mask too
    with pytest.warns(UserWarning, match=left_elsewhere) as caught, pytest.raises(KeyError, match="mine"):
        contextvars.copy_context().run(next, generator)
    assert caught[0].filename == __file__
    assert torch.equal(seen(tower, pixels()), whole)
    generator = steps(tower, left())
    next(generator)
    with pytest.warns(UserWarning, match=left_elsewhere):
        contextvars.Context().run(generator.close)
    assert torch.equal(seen(tower, pixels()), whole)


@torch.no_grad()
def test_blocks_may_be_left_in_any_order():
    tower = wake(add_alpha(made("clip_vision")))
    masks = left(), -left()
    whole, (one, other) = seen(tower, pixels()), (seen(tower, torch.cat([pixels(), mask], dim=1)) for mask in masks)
    first, second = (focus(tower, mask) for mask in masks)
    first.__enter__()
    second.__enter__()
    assert torch.equal(seen(tower, pixels()), other)
    first.__exit__(None, None, None)
    assert torch.equal(seen(tower, pixels()), other)
    second.__exit__(None, None, None)
    assert torch.equal(seen(tower, pixels()), whole)
    with focus(tower, masks[0]):
        with focus(tower, masks[1]):
            assert torch.equal(seen(tower, pixels()), other)
        assert torch.equal(seen(tower, pixels()), one)


@torch.no_grad()
@pytest.mark.parametrize("counts", [(2, 2), (2, 3), (3, 2)])
def test_generators_in_turn_leave_no_mask_behind(counts):
    tower = wake(add_alpha(made("clip_vision")))
    masks = left(), -left()
    whole, expected = seen(tower, pixels()), [seen(tower, torch.cat([pixels(), mask], dim=1)) for mask in masks]
    first, *_ = zip(*(steps(tower, mask, count) for mask, count in zip(masks, counts, strict=True)), strict=False)
    assert all(map(torch.equal, first, expected))
    assert torch.equal(seen(tower, pixels()), whole)


# --- weights ---


def small_clip(width: int = WIDTH, layers: int = 2) -> CLIP:
    torch.manual_seed(3)
    model = CLIP(32, SIDE, layers, width, PATCH, 77, 49408, 64, 1, 1).eval()
    nn.init.normal_(model.visual.conv1_alpha.weight, std=0.05)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip_vision", "clip_projected", "clip", "open_clip"])
def test_the_tower_of_another_library_sees_as_ours_does(name):
    model, tower = small_clip(), made(name)
    assert copy_tower(model.visual, tower) is tower
    image, alpha = pixels(), left()
    for mask in (alpha, None):
        given = image if mask is None else torch.cat([image, mask], dim=1)
        own = model.visual.tokens if name in ("clip_vision", "clip") else model.encode_image
        ours = own(image, mask)
        torch.testing.assert_close(seen(tower, given), ours, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_tower_of_openai_s_clip_sees_as_ours_does(monkeypatch):
    shim = ModuleType("pkg_resources")  # imported by clip, but gone from today's setuptools
    shim.packaging = packaging
    monkeypatch.setitem(sys.modules, "pkg_resources", shim)
    clip = pytest.importorskip("clip.model", reason='pip install "alpha-clip[bench]"')
    model, tower = small_clip(), clip.VisionTransformer(SIDE, PATCH, WIDTH, 2, 1, 32).eval()
    copy_tower(model.visual, tower)
    expected = model.encode_image(pixels(), left())
    torch.testing.assert_close(tower(torch.cat([pixels(), left()], dim=1)), expected, rtol=1e-5, atol=1e-5)
    with focus(tower, left()):
        torch.testing.assert_close(tower(pixels()), expected, rtol=1e-5, atol=1e-5)


class CutTower(nn.Module):
    """The layout of the ViT-L in LAVIS's BLIP-2: OpenAI's names, without the unused last blocks and the last norm."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        self.positional_embedding = nn.Parameter(torch.zeros((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre = nn.LayerNorm(WIDTH)
        self.transformer = open_clip.transformer.Transformer(
            WIDTH, layers, 1, act_layer=open_clip.transformer.QuickGELU
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return self.transformer(self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding))


@torch.no_grad()
def test_a_tower_that_ends_before_the_last_blocks_gets_the_first():
    model, tower = small_clip(layers=3), CutTower(2).eval()
    copy_tower(model.visual, tower)
    for mask in (left(), None):
        given = pixels() if mask is None else torch.cat([pixels(), mask], dim=1)
        torch.testing.assert_close(tower(given), model.visual.tokens(pixels(), mask, layer=1), rtol=1e-5, atol=1e-5)
    with pytest.raises(IncompatibleCheckpoint, match="has 4 blocks of 1 heads, expected 3 at most of 1"):
        copy_tower(model.visual, CutTower(4))
    tower = CutTower(2)
    tower.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(
        IncompatibleCheckpoint, match="extra is in one of CutTower and these weights, expected CLIP's own"
    ):
        copy_tower(model.visual, tower)
    assert type(tower.conv1) is nn.Conv2d


@torch.no_grad()
def test_a_whole_clip_of_transformers_gets_its_image_tower_alone():
    model = small_clip()
    theirs = transformers.CLIPModel(clip_config()).eval()
    texts = {k: v.clone() for k, v in theirs.text_model.state_dict().items()}
    copy_tower(model.visual, theirs)
    found = theirs.get_image_features(pixel_values=torch.cat([pixels(), left()], dim=1))
    found = getattr(found, "pooler_output", found)
    torch.testing.assert_close(found, model.encode_image(pixels(), left()), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(v, texts[k]) for k, v in theirs.text_model.state_dict().items())


def test_weights_come_by_name(tmp_path):
    tiny, _ = alpha_clip.load("tiny", "cpu")
    visual = tiny.visual
    config = transformers.CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=48,
        patch_size=8,
        projection_dim=128,
    )
    tower = transformers.CLIPVisionModelWithProjection(config).eval()
    load_alpha_weights(tower, "tiny", "scenes")
    image, alpha = torch.randn(1, 3, 48, 48), torch.rand(1, 1, 48, 48).sub(0.5).div(0.26)
    with torch.no_grad():
        found = tower(torch.cat([image, alpha], dim=1)).image_embeds
        torch.testing.assert_close(found, visual(image, alpha), rtol=1e-5, atol=1e-5)


def test_weights_of_another_architecture_are_refused_and_nothing_is_changed():
    for name in ("siglip", "blip2", "dinov2", "dinov3", "vit", "timm", "eva"):
        tower = made(name)
        with pytest.raises(IncompatibleCheckpoint, match=r"has no CLIP ViT .*EVA's \(BLIP-2 with ViT-g\), SigLIP's"):
            copy_tower(small_clip().visual, tower)
        assert str(tower) == str(made(name))
    for model, match in (
        (small_clip(layers=3), "has 2 blocks of 1 heads, expected 3 of 1"),
        (small_clip(width=128), "2 blocks of 1 heads, expected 2 of 2"),
    ):
        for name in ("clip_vision", "open_clip"):
            with pytest.raises(IncompatibleCheckpoint, match=match):
                copy_tower(model.visual, made(name))


@torch.no_grad()
def test_weights_go_into_the_clip_among_several_towers_and_two_of_it_are_refused():
    model, two = small_clip(), nn.ModuleDict({"clip": made("clip_vision"), "other": add_alpha(made("siglip"))})
    copy_tower(model.visual, two)
    assert not alpha_weight(two["other"]).any()
    masked = torch.cat([pixels(), left()], dim=1)
    torch.testing.assert_close(seen(two["clip"], masked), model.visual.tokens(pixels(), left()), rtol=1e-5, atol=1e-5)
    twins = nn.ModuleDict({"one": made("clip_vision"), "other": add_alpha(made("clip_vision"))})
    with pytest.raises(ValueError, match="ModuleDict has 2 CLIP ViTs, one, other: pass one of them"):
        copy_tower(model.visual, twins)
    assert torch.equal(seen(twins["one"], pixels()), seen(made("clip_vision"), pixels()))
    assert not alpha_weight(twins).any()


def test_a_tower_of_another_size_or_activation_is_refused():
    larger = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_VISION | {"image_size": 64})).eval()
    before = {k: v.clone() for k, v in larger.state_dict().items()}
    with pytest.raises(IncompatibleCheckpoint, match=r"another size .*: positions \(65, 64\), not \(17, 64\)"):
        copy_tower(small_clip().visual, larger)
    assert all(torch.equal(v, before[k]) for k, v in larger.state_dict().items())
    gelu = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**_VISION, hidden_act="gelu"))
    with pytest.raises(IncompatibleCheckpoint, match="than CLIP's QuickGELU: make it with hidden_act="):
        copy_tower(small_clip().visual, gelu)
    text = {"context_length": 8, "vocab_size": 99, "width": 64, "heads": 1, "layers": 1}
    vision = {"image_size": SIDE, "layers": 2, "width": WIDTH, "patch_size": PATCH}
    with pytest.raises(IncompatibleCheckpoint, match=r"make it with open_clip: \.\.\.-quickgelu"):
        copy_tower(small_clip().visual, open_clip.CLIP(32, vision, text).visual)


# --- files ---


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip_vision", "clip_projected", "siglip", "dinov2", "blip2"])
def test_alpha_survives_save_pretrained(name, tmp_path):
    tower = wake(add_alpha(made(name)))
    tower.save_pretrained(tmp_path)
    again = from_pretrained(type(tower), tmp_path).eval()
    masked = torch.cat([pixels(), left()], dim=1)
    assert torch.equal(seen(again, masked), seen(tower, masked))


@torch.no_grad()
def test_alpha_survives_in_shards(tmp_path):
    tower = wake(add_alpha(made("clip_vision")))
    tower.save_pretrained(tmp_path, max_shard_size="100KB")
    assert list(tmp_path.glob("*.index.json"))
    again = from_pretrained(type(tower), tmp_path)
    assert torch.equal(alpha_weight(again), alpha_weight(tower))


def test_alpha_comes_from_the_files_that_the_model_comes_from(tmp_path):
    tower = wake(add_alpha(made("clip_vision")))
    tower.save_pretrained(tmp_path / "sub", max_shard_size="100KB")
    alpha_weight(tower).data *= 2
    tower.save_pretrained(tmp_path / "sub")  # one file, while the index of the shards stays
    alpha_weight(tower).data *= 2
    tower.save_pretrained(tmp_path / "sub", variant="fp16")
    alpha_weight(tower).data *= 2
    tower.save_pretrained(tmp_path / "sub", variant="other", max_shard_size="100KB")
    expected = alpha_weight(wake(add_alpha(made("clip_vision"))))
    for variant, times in ((None, 2), ("fp16", 4), ("other", 8)):
        again = from_pretrained(type(tower), tmp_path, subfolder="sub", variant=variant)
        assert torch.equal(alpha_weight(again), times * expected)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved_keeps_alpha_too(zipped, tmp_path):
    tower = wake(add_alpha(made("clip_vision")))
    tower.config.save_pretrained(tmp_path)
    torch.save(tower.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert torch.equal(alpha_weight(from_pretrained(type(tower), tmp_path)), alpha_weight(tower))
    torch.save(made("clip_vision").state_dict(), tmp_path / "pytorch_model.bin")
    assert not alpha_weight(from_pretrained(type(tower), tmp_path)).any()


def test_plain_weights_give_an_alpha_of_zero(tmp_path):
    made("clip_vision").save_pretrained(tmp_path)
    tower = from_pretrained(transformers.CLIPVisionModel, tmp_path)
    assert not alpha_weight(tower).any()


def test_a_folder_that_is_not_there_or_does_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no folder, expected one that save_pretrained wrote"):
        from_pretrained(transformers.CLIPVisionModel, tmp_path / "none")
    from safetensors.torch import load_file, save_file

    add_alpha(made("clip_vision")).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    key = next(key for key in state if key.endswith(".alpha"))
    save_file(state | {key: torch.zeros(3, 1, 8, 8)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"are \(3, 1, 8, 8\), expected \(64, 1, 8, 8\)"):
        from_pretrained(transformers.CLIPVisionModel, tmp_path)
    save_file(state | {f"twin.{key}": state[key].clone()}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="holds 2 alpha weights, expected 1"):
        from_pretrained(transformers.CLIPVisionModel, tmp_path)


# --- processors ---


def photo(width: int = 80, height: int = 48) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_mask_goes_the_way_of_the_picture():
    """If the picture shows its own mask, its processed pixels equal the processed mask."""
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    mask = np.zeros((48, 80), bool)
    mask[10:30, 20:50] = True
    picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("RGB")
    found = processor_with_mask(processor)(picture, mask)["pixel_values"]
    assert found.shape == (1, 4, SIDE, SIDE)
    red = found[0, 0] * processor.image_std[0] + processor.image_mean[0]
    torch.testing.assert_close(found[0, 3] * 0.26 + 0.5, red, rtol=0, atol=2 / 255)


def test_without_a_mask_the_processor_does_what_it_does():
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    made_with = processor_with_mask(processor)
    plain = processor(photo(), return_tensors="pt")["pixel_values"]
    assert torch.equal(made_with(photo())["pixel_values"], plain)
    mask = np.zeros((48, 80), bool)
    mask[:, :40] = True
    some = made_with([photo(), photo()], [None, mask])["pixel_values"]
    assert torch.equal(some[:, :3], torch.cat([plain, plain]))
    assert (some[0, 3] == FOREGROUND).all() and (some[1, 3] < 0).any()
    assert made_with.crop_size == processor.crop_size  # all else is the processor's own


def test_masks_are_counted():
    made_with = processor_with_mask(transformers.CLIPImageProcessor())
    with pytest.raises(ValueError, match="1 masks of 2 pictures, expected one each"):
        made_with([photo(), photo()], [np.ones((48, 80), bool)])


def test_a_picture_has_one_mask():
    made_with = processor_with_mask(transformers.CLIPImageProcessor())
    mask = np.ones((48, 80), bool)
    for several in ([mask, mask], np.stack([mask, mask])):
        with pytest.raises(
            ValueError, match=r"2 masks of one picture, expected one: repeat the picture, \[image\] \* 2"
        ):
            made_with(photo(), several)
    assert torch.equal(made_with(photo(), mask[None])["pixel_values"], made_with(photo(), mask)["pixel_values"])


def test_a_mask_that_the_crop_takes_away_is_refused():
    made_with = processor_with_mask(transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE))
    mask = np.zeros((48, 80), bool)
    mask[:, :10] = True  # the crop begins at 16
    with pytest.raises(RegionLost, match=r"leaves nothing of mask 1, .* crop picture and mask around it first"):
        made_with([photo()] * 3, [~mask, mask, None])
    square = {"height": SIDE, "width": SIDE}
    kept = made_with(photo(), mask, do_center_crop=False, size=square)["pixel_values"]
    assert (kept[0, 3, :, :3] > 1.8).all() and (kept[0, 3, :, 5:] < -1.8).all()


def test_options_of_the_processor_move_the_mask_too():
    """Options that scale colours must not change the mask's values."""
    mask = np.zeros((48, 80), bool)
    mask[:, :40] = True
    plain = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    expected = processor_with_mask(plain)(photo(), mask)["pixel_values"][:, 3]
    unscaled = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE, do_rescale=False)
    for found in (
        processor_with_mask(unscaled)(photo(), mask),
        processor_with_mask(plain)(photo(), mask, do_rescale=False, do_normalize=False),
    ):
        assert torch.equal(found["pixel_values"][:, 3], expected)
    larger = processor_with_mask(plain)(photo(), mask, size={"shortest_edge": 48}, crop_size=48)["pixel_values"]
    assert larger.shape == (1, 4, 48, 48)
    assert larger[0, 3, 0, 22] > 1 and larger[0, 3, 0, 25] < -1


def test_what_is_no_tensor_of_a_row_each_is_refused():
    mask = np.ones((48, 80), bool)
    with pytest.raises(ValueError, match="return_tensors is 'np', expected 'pt'"):
        processor_with_mask(transformers.CLIPImageProcessor())(photo(), mask, return_tensors="np")
    with pytest.raises(ValueError, match="Qwen2VLImageProcessor makes no pixel_values of one row for each picture"):
        processor_with_mask(transformers.Qwen2VLImageProcessor())(photo(), mask)


def test_tiles_have_tiles_of_the_mask():
    processor = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=SIDE, image_grid_pinpoints=[[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    )
    mask = np.zeros((48, 96), bool)
    mask[:, :48] = True
    found = processor_with_mask(processor)(photo(96, 48), mask)["pixel_values"]
    assert found.shape == (1, 3, 4, SIDE, SIDE)  # the whole, and two tiles
    assert found[0, 1, 3].mean() > 1.5 and found[0, 2, 3].mean() < -1.5


@torch.no_grad()
def test_packed_pixels_are_followed_by_packed_masks():
    processor = transformers.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=16)
    mask = np.zeros((64, 64), bool)
    mask[:32] = True
    found = processor_with_mask(processor)(photo(64, 64), mask)
    patches = found["pixel_values"]
    assert patches.shape == (1, 16, 4 * PATCH**2)
    alpha = patches[0, :, 3 * PATCH**2 :].mean(-1).reshape(4, 4)
    assert (alpha[0] > 1.8).all() and (alpha[3] < -1.8).all()
    fine = np.random.default_rng(0).random((64, 64)) > 0.5  # different in each pixel of a patch
    white = Image.fromarray(np.where(fine, 255, 0).astype(np.uint8)).convert("RGB")
    own = processor_with_mask(processor)(white, fine)["pixel_values"]
    red, mask_of_red = own[..., : 3 * PATCH**2 : 3] * 0.5 + 0.5, own[..., 3 * PATCH**2 :] * 0.26 + 0.5
    torch.testing.assert_close(mask_of_red, red, rtol=0, atol=2 / 255)
    tower = wake(add_alpha(siglip2()))
    shown = tower(**found).last_hidden_state
    plain = tower(**found | {"pixel_values": patches[..., : 3 * PATCH**2]}).last_hidden_state
    assert not torch.allclose(shown, plain, atol=1e-3)
