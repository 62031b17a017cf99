"""Features of regions: each method against the same done by hand, with every family of models."""

import copy
import functools
import sys
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close

import alpha_clip
from alpha_clip import embed_regions, zero_shot_classifier
from alpha_clip.regions import GREY, METHODS
from alpha_clip.scenes import NOUNS, draw_scene
from alpha_clip.towers import tower_of
from alpha_clip.transforms import Preprocess, box_mask, mask_box

SCENE = draw_scene(3, (60, 90), objects=(3, 3), overlap=0.0)
PICTURE = Image.fromarray(SCENE.image)
MASKS = [region.mask for region in SCENE.regions]
OTHERS = [name for name in METHODS if name not in ("alpha", "ensemble", "maskinversion")]


@torch.no_grad()
def by_hand(model, pictures: list[Image.Image]) -> Tensor:
    preprocess = Preprocess(32)
    return F.normalize(model.encode_image(torch.stack([preprocess(p, geometry="pad") for p in pictures])), dim=-1)


def painted(mask: np.ndarray, elsewhere: np.ndarray) -> Image.Image:
    soft = mask[..., None]
    return Image.fromarray((SCENE.image * soft + elsewhere * (1 - soft)).round().astype(np.uint8))


# --- the methods ---


@torch.no_grad()
def test_a_method_that_changes_the_last_block_changes_it_in_its_own_thread_alone(model):
    rgb, expected = Preprocess(32)(PICTURE), by_hand(model, [PICTURE])
    seen = []
    with tower_of(model).last_block_sees(lambda x: x[:, :1]):
        thread = threading.Thread(target=lambda: seen.append(by_hand(model, [PICTURE])))
        thread.start()
        thread.join()
        changed = F.normalize(model.encode_image(rgb[None]), dim=-1)
    assert_close(seen[0], expected)
    assert not torch.allclose(changed, expected, atol=1e-3)


@torch.no_grad()
def test_alpha_is_the_model_s_own(model):
    rgb, alpha = Preprocess(32)(PICTURE, MASKS, geometry="squash")
    expected = F.normalize(model.encode_image(rgb, alpha), dim=-1)
    assert_close(embed_regions(model, PICTURE, MASKS, geometry="squash"), expected)
    assert_close(embed_regions(model, PICTURE, MASKS, "alpha", geometry="squash", chunk=2), expected)


def test_whole_is_the_picture_for_each_mask(model):
    found = embed_regions(model, PICTURE, MASKS, "whole")
    assert_close(found, by_hand(model, [PICTURE] * 3))


def test_crop_is_the_box_with_its_surroundings(model):
    x0, y0, x1, y1 = mask_box(MASKS[0])
    assert_close(
        embed_regions(model, PICTURE, MASKS[0], "crop", context=1), by_hand(model, [PICTURE.crop((x0, y0, x1, y1))])
    )
    dx, dy = (x1 - x0) / 2, (y1 - y0) / 2
    box = (max(0, round(x0 - dx)), max(0, round(y0 - dy)), min(90, round(x1 + dx)), min(60, round(y1 + dy)))
    assert_close(embed_regions(model, PICTURE, MASKS[0], "crop", context=2), by_hand(model, [PICTURE.crop(box)]))


def test_what_is_outside_of_the_mask_is_grey_blurred_or_without_colour(model):
    grey = painted(MASKS[1], np.array(GREY))
    close = {"rtol": 0, "atol": 2e-3}  # one grey level of rounding
    assert_close(embed_regions(model, PICTURE, MASKS[1], "cut_out"), by_hand(model, [grey]), **close)
    cropped = grey.crop(mask_box(MASKS[1]))
    assert_close(embed_regions(model, PICTURE, MASKS[1], "masked_crop", context=1), by_hand(model, [cropped]), **close)
    colourless = painted(MASKS[1], np.asarray(PICTURE.convert("L"))[..., None])
    assert_close(embed_regions(model, PICTURE, MASKS[1], "gray"), by_hand(model, [colourless]), **close)
    slight = embed_regions(model, PICTURE, MASKS[1], "blur", strength=1e-4)
    assert_close(slight, by_hand(model, [PICTURE]), **close)
    assert not torch.allclose(embed_regions(model, PICTURE, MASKS[1], "blur"), slight, atol=1e-2)


def test_red_circle_marks_the_region_and_keeps_it():
    seen = []
    tower = tower_of(alpha_clip.load("tiny", "cpu")[0])
    tower.preprocess.transforms.insert(0, lambda picture: seen.append(np.asarray(picture)) or picture)
    x0, y0, x1, y1 = mask_box(MASKS[0])
    METHODS["red_circle"](tower, PICTURE, np.stack(MASKS[:1]), 8, size=1.0, line=1e-9)
    (marked,) = seen
    marked = marked[15:75]  # padded to a square
    changed = (marked != SCENE.image).any(axis=2)
    assert (marked[changed] == (255, 0, 0)).all()
    assert mask_box(changed.astype(float)) == (x0, y0, x1, y1)
    assert not changed[(y0 + y1) // 2, (x0 + x1) // 2]


@torch.no_grad()
def test_maskclip_is_attention_masked_in_the_last_block(model):
    """With an attention mask on all tokens, in place of the others being left out."""
    rgb, alpha = Preprocess(32)(PICTURE, MASKS, geometry="pad")
    visual = model.visual
    covered = F.adaptive_avg_pool2d(alpha * 0.26 + 0.5, 4).flatten(1)
    x = visual.tokens(rgb, layer=-2).permute(1, 0, 2)  # (L, 1, width)
    *_, last = visual.transformer.blocks
    for share, found in zip(covered, embed_regions(model, PICTURE, MASKS, "maskclip"), strict=True):
        hidden = torch.cat([torch.zeros(1, dtype=torch.bool), share < min(0.5, float(share.max()))])
        y = last.ln_1(x)
        z = x[:1] + last.attn(y[:1], y, y, need_weights=False, key_padding_mask=hidden[None])[0]
        z = z + last.mlp(last.ln_2(z))
        assert_close(found, F.normalize(visual.project(z[0, 0]), dim=0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_pool_is_the_mean_of_projected_values(model):
    rgb, alpha = Preprocess(32)(PICTURE, MASKS, geometry="pad")
    visual = model.visual
    x = visual.tokens(rgb, layer=-2)[0, 1:]  # (N, width)
    *_, last = visual.transformer.blocks
    _, _, v = F.linear(last.ln_1(x), last.attn.in_proj_weight, last.attn.in_proj_bias).chunk(3, dim=-1)
    x = x + last.attn.out_proj(v)
    dense = F.normalize(visual.project(x + last.mlp(last.ln_2(x))), dim=-1)
    covered = F.adaptive_avg_pool2d(alpha * 0.26 + 0.5, 4).flatten(1)
    expected = F.normalize(covered @ dense, dim=-1)
    assert_close(embed_regions(model, PICTURE, MASKS, "pool"), expected, rtol=1e-4, atol=1e-5)


def test_ensemble_is_the_weighted_mean(model, open_clip_model):
    a, b = (embed_regions(model, PICTURE, MASKS, name) for name in ("alpha", "crop"))
    assert_close(embed_regions(model, PICTURE, MASKS, "ensemble"), F.normalize(a + b, dim=-1))
    with_others = embed_regions(open_clip_model, PICTURE, MASKS, "ensemble")
    c, d = (embed_regions(open_clip_model, PICTURE, MASKS, name) for name in ("masked_crop", "crop"))
    assert_close(with_others, F.normalize(c + d, dim=-1))
    found = embed_regions(model, PICTURE, MASKS, "ensemble", methods=["alpha", METHODS["crop"]], weights=[3, 1])
    assert_close(found, F.normalize(3 * a + b, dim=-1))


def test_a_method_may_be_the_caller_s_own(model):
    def turned(tower, picture, masks, chunk, quarters=1):
        return tower.encode(tower.preprocess(picture.rotate(90 * quarters), geometry="squash")[None]).expand(
            len(masks), -1
        )

    found = embed_regions(model, PICTURE, MASKS, turned, quarters=2)
    assert found.shape == (3, 64) and not torch.allclose(found[:1], by_hand(model, [PICTURE]), atol=1e-2)


# --- the models ---


@pytest.mark.parametrize("method", OTHERS)
def test_every_family_of_models_gives_the_same(plain, open_clip_model, transformers_model, method):
    expected = embed_regions(plain, PICTURE, MASKS, method)
    assert_close(expected.norm(dim=1), torch.ones(3))
    for theirs in (open_clip_model, transformers_model):
        found = embed_regions(theirs, PICTURE, MASKS, method)
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not any(module._forward_pre_hooks for module in theirs.modules())  # it leaves nothing behind


def test_an_open_clip_model_sees_with_its_own_mean(open_clip_model):
    before = embed_regions(open_clip_model, PICTURE, MASKS, "whole")
    open_clip_model.visual.preprocess_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert tower_of(open_clip_model).preprocess.transforms[-1].mean == (0.5, 0.5, 0.5)
    assert not torch.allclose(embed_regions(open_clip_model, PICTURE, MASKS, "whole"), before, atol=1e-3)


@pytest.mark.parametrize("method", OTHERS)
def test_chunks_change_nothing(plain, method):
    assert_close(embed_regions(plain, PICTURE, MASKS, method, chunk=2), embed_regions(plain, PICTURE, MASKS, method))


def test_a_siglip_model_sees_with_its_own_mean_and_size():
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    both = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = both | {"vocab_size": 100, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    config = SiglipConfig(vision_config=both | {"image_size": 48, "patch_size": 8}, text_config=text)
    siglip = SiglipModel(config).eval()
    found = embed_regions(siglip, PICTURE, MASKS, "whole")
    square = Image.new("RGB", (90, 90))
    square.paste(PICTURE, (0, 15))
    pixels = torch.from_numpy(np.array(square.resize((48, 48), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 127.5 - 1
    with torch.no_grad():
        expected = F.normalize(siglip.get_image_features(pixel_values=pixels[None]).pooler_output, dim=-1)
    assert_close(found[:1], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="SiglipModel has no class token that reads the patches in its last block"):
        embed_regions(siglip, PICTURE, MASKS, "maskclip")


def test_tiny_names_regions_by_several_methods():
    """With the bundled model; no method is made up."""
    model, _ = alpha_clip.load("tiny", "cpu")
    with torch.no_grad():
        names = [f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in NOUNS]
        text = F.normalize(model.encode_text(alpha_clip.tokenize(names)), dim=-1)
    right: dict[str, list[bool]] = {}
    for seed in range(9_600_000_000, 9_600_000_025):
        scene = draw_scene(seed, 96, objects=(2, 4))
        for method in ("alpha", "masked_crop", "whole"):
            named = (embed_regions(model, scene.image, [r.mask for r in scene.regions], method) @ text.T).argmax(dim=1)
            right.setdefault(method, []).extend(NOUNS[n] == r.noun for n, r in zip(named, scene.regions, strict=True))
    assert np.mean(right["alpha"]) > 0.8 and np.mean(right["masked_crop"]) > 0.7 and np.mean(right["whole"]) < 0.4


# --- dtypes and wrappers ---

NAMES = ["cat", "car", "tree", "balloon"]
CLOSE = {torch.float16: 3e-3, torch.bfloat16: 3e-2, torch.float64: 1e-5}  # cosines to those in float32


@functools.cache
def tiny(dtype):
    return alpha_clip.load("tiny", "cpu", dtype=dtype)[0]


@functools.cache
def scored(dtype, method):
    """As in the README: (K, N)."""
    features = embed_regions(tiny(dtype), PICTURE, MASKS, method)
    return features @ zero_shot_classifier(tiny(dtype), NAMES, ["a drawing of a {}"]).T


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("method", [name for name in METHODS if name != "maskinversion"])
@torch.no_grad()
def test_features_multiply_with_the_weights_of_names_in_every_dtype(dtype, method):
    scores = scored(dtype, method)
    assert scores.dtype == dtype
    assert_close(scores.float(), scored(torch.float32, method), rtol=0, atol=CLOSE[dtype])
    model = tiny(dtype)
    rgb, text = Preprocess(48)(PICTURE), alpha_clip.tokenize(["a cat"])
    assert model.encode_image(rgb).dtype == model.encode_text(text).dtype == dtype
    assert embed_regions(model, PICTURE, MASKS, lambda tower, *_: torch.ones(1, 2)).dtype == dtype


@torch.no_grad()
def test_autocast_changes_neither_features_nor_weights():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = embed_regions(tiny(torch.float32), PICTURE, MASKS)
        weights = zero_shot_classifier(tiny(torch.float32), NAMES, ["a drawing of a {}"])
        within = features @ weights.T
    assert features.dtype == weights.dtype == torch.float32
    for scores in (features @ weights.T, within.float()):
        assert_close(scores, scored(torch.float32, "alpha"), rtol=0, atol=3e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["whole", "maskclip", "pool"])
def test_a_model_of_open_clip_in_half_precision_sees_as_in_float32(dtype, method):
    """As its `create_model(precision=...)` makes it: layer norms and embeddings stay in float32."""
    from open_clip import model as theirs

    vision = theirs.CLIPVisionCfg(layers=2, width=128, head_width=64, patch_size=8, image_size=32)
    text = theirs.CLIPTextCfg(context_length=16, vocab_size=49408, width=128, heads=2, layers=1)
    torch.manual_seed(0)
    half = theirs.CLIP(64, vision, text, quick_gelu=True, cast_dtype=dtype).eval()
    expected = embed_regions(half, PICTURE, MASKS, method)
    weights = zero_shot_classifier(half, NAMES)
    theirs.convert_weights_to_lp(half, dtype)
    found = embed_regions(half, PICTURE, MASKS, method)
    assert found.dtype == half.encode_image(torch.zeros(1, 3, 32, 32, dtype=dtype)).dtype == dtype
    assert_close((found @ zero_shot_classifier(half, NAMES).T).float(), expected @ weights.T, rtol=0, atol=3e-2)


def wrapped_by_peft(model):
    peft = pytest.importorskip("peft", reason='pip install "alpha-clip[test]"')
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_fc", "c_proj"], init_lora_weights=False))


WRAPPERS = {
    "compiled": torch.compile,
    "DataParallel": torch.nn.DataParallel,
    "AveragedModel": AveragedModel,
    "peft": wrapped_by_peft,
    "peft, compiled and in DataParallel": lambda m: torch.nn.DataParallel(torch.compile(wrapped_by_peft(m))),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_model_is_seen_through_its_wrapper(wrapper):
    model = alpha_clip.load("tiny", "cpu")[0]
    before = embed_regions(model, PICTURE, MASKS)
    wrapped = WRAPPERS[wrapper](model)
    found = embed_regions(wrapped, PICTURE, MASKS)
    own = tower_of(wrapped).model
    assert isinstance(own, alpha_clip.model.CLIP)
    rgb, alpha = Preprocess(48)(PICTURE, MASKS, geometry="pad")
    with torch.no_grad():
        assert_close(found, F.normalize(own.encode_image(rgb, alpha), dim=-1))
        assert torch.allclose(found, before, atol=1e-4) == ("peft" not in wrapper)  # its adapters have a part in it
        if wrapper == "peft":
            assert_close(found, F.normalize(wrapped.encode_image(rgb, alpha), dim=-1))
    assert_close(zero_shot_classifier(wrapped, NAMES), zero_shot_classifier(own, NAMES))


def test_a_wrapper_that_is_not_known_is_refused_with_the_name_of_what_it_holds(model, open_clip_model):
    class Trained(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.towers = torch.nn.ModuleDict({"clip": model})

    for held in (model, open_clip_model):
        with pytest.raises(TypeError, match=r"the model is Trained, .*: pass the one it holds, model\.towers\.clip$"):
            embed_regions(Trained(held), PICTURE, MASKS)


# --- by another package ---

INSTALL = "pip install --no-deps maskinversion_torch legrad_torch; pip install opencv-python-headless einops matplotlib"


def test_maskinversion_begins_with_the_picture_s_feature_and_leaves_the_model_alone(open_clip_model):
    """With steps of length 0 it is the model's own: the package's code sees as the model does."""
    pytest.importorskip("maskinversion", reason=INSTALL)
    before = {name: value.clone() for name, value in open_clip_model.state_dict().items()}
    expected = embed_regions(open_clip_model, PICTURE, MASKS, "whole")
    with torch.inference_mode():
        found = embed_regions(open_clip_model, PICTURE, MASKS, "maskinversion", lr=0.0)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    inverted = embed_regions(open_clip_model, PICTURE, MASKS, "maskinversion")
    assert_close(inverted.norm(dim=1), torch.ones(3))
    assert not inverted.requires_grad
    apart = embed_regions(open_clip_model, PICTURE, MASKS, "maskinversion", chunk=2)
    assert_close(apart, inverted, rtol=0, atol=1e-4)  # its AdamW takes the mean of the losses, almost without effect
    assert all(torch.equal(value, before[name]) for name, value in open_clip_model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in open_clip_model.visual.transformer.parameters())
    assert_close(embed_regions(open_clip_model, PICTURE, MASKS, "whole"), expected)


@pytest.mark.parametrize("settings", [{}, {"iterations": 3, "lr": 0.5, "alpha": 1.0}])
def test_maskinversion_is_the_package_s_own(open_clip_model, settings):
    """Of one block, which its code replaces whatever the version of open_clip, so that it can be given the model."""
    package = pytest.importorskip("maskinversion", reason=INSTALL)
    open_clip_model.visual.transformer.resblocks = open_clip_model.visual.transformer.resblocks[-1:]
    found = embed_regions(open_clip_model, PICTURE, MASKS, "maskinversion", geometry="squash", **settings)
    rgb, alpha = Preprocess(32)(PICTURE, MASKS, geometry="squash")
    theirs = package.MaskInversion(copy.deepcopy(open_clip_model))
    expected = theirs.compute_maskinversion(rgb[None], alpha[:, 0] * 0.26 + 0.5, **settings)
    assert_close(found, F.normalize(expected.detach(), dim=-1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, embed_regions(open_clip_model, PICTURE, MASKS, "whole", geometry="squash"))


def test_maskinversion_without_an_explanation_is_an_error(open_clip_model):
    pytest.importorskip("maskinversion", reason=INSTALL)
    torch.nn.init.zeros_(open_clip_model.visual.transformer.resblocks[-1].attn.out_proj.weight)  # attention: no effect
    with pytest.raises(FloatingPointError, match=r"no patches that explain a feature.*a smaller lr than 0\.1"):
        embed_regions(open_clip_model, PICTURE, MASKS, "maskinversion")


def test_maskinversion_takes_a_step_at_least(open_clip_model):
    with pytest.raises(ValueError, match="iterations is 0, expected at least 1"):
        embed_regions(open_clip_model, PICTURE, MASKS, "maskinversion", iterations=0)


def test_maskinversion_says_how_to_install_it(open_clip_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "maskinversion", None)
    with pytest.raises(ImportError, match="maskinversion needs maskinversion: pip install maskinversion_torch"):
        embed_regions(open_clip_model, PICTURE, MASKS, "maskinversion")


def test_maskinversion_takes_models_of_open_clip_only(model, transformers_model):
    for other in (model, transformers_model):
        with pytest.raises(
            TypeError, match=r"maskinversion cannot see with .*, expected a model of open_clip with CLIP"
        ):
            embed_regions(other, PICTURE, MASKS, "maskinversion")


# --- errors ---


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"method": "magic"}, ValueError, r"method is 'magic', expected one of alpha, whole, crop, .*, or a function"),
        ({"chunk": 0}, ValueError, "chunk is 0, expected at least 1"),
        ({"method": "crop", "context": 0}, ValueError, "context is 0, expected more than 0"),
        ({"method": "blur", "strength": 0}, ValueError, "strength is 0, expected more than 0"),
        ({"method": "ensemble", "weights": [1]}, ValueError, "2 methods and 1 weights, expected as many"),
        ({"method": "whole", "context": 2}, TypeError, "context"),
    ],
)
def test_what_is_wrong_is_said(model, settings, error, message):
    with pytest.raises(error, match=message):
        embed_regions(model, PICTURE, MASKS, **settings)


@pytest.mark.parametrize(
    ("method", "expected"),
    [("crop", "expected context"), ("gray", "expected none"), ("red_circle", "expected size or line")],
)
def test_an_unknown_option_of_a_method_is_named_beside_those_there_are(method, expected):
    with pytest.raises(TypeError, match=f"method '{method}' has no option 'contxt', {expected}"):
        embed_regions(torch.nn.Linear(1, 1), np.zeros((4, 4, 3), np.uint8), [np.ones((4, 4))], method, contxt=2.0)


def test_a_model_without_alpha_takes_no_mask(open_clip_model):
    with pytest.raises(TypeError, match="CLIP takes no mask: use a model from"):
        embed_regions(open_clip_model, PICTURE, MASKS)


def test_other_models_are_refused(transformers_model):
    with pytest.raises(TypeError, match="the model is Linear, expected one from"):
        embed_regions(torch.nn.Linear(2, 2), PICTURE, MASKS)
    transformers_model.config.model_type = "blip"
    with pytest.raises(TypeError, match="the model is transformers' 'blip', expected one of 'clip', 'siglip'"):
        embed_regions(transformers_model, PICTURE, MASKS, "whole")


def test_a_pooler_that_reads_all_tokens_is_no_class_token():
    """As in open_clip's CoCa."""
    from open_clip.transformer import VisionTransformer

    torch.manual_seed(0)
    visual = VisionTransformer(32, 8, 64, 2, 2, 4.0, attentional_pool=True, attn_pooler_heads=2, output_dim=16)
    coca = torch.nn.Module()
    coca.visual, coca.encode_image = visual, visual.forward
    assert embed_regions(coca, PICTURE, MASKS, "whole").shape == (3, 16)
    for method in ("maskclip", "pool"):
        with pytest.raises(TypeError, match="no class token that reads the patches"):
            embed_regions(coca, PICTURE, MASKS, method)


def test_a_model_that_does_not_see_squares_is_refused(open_clip_model):
    open_clip_model.visual.image_size = (32, 64)
    with pytest.raises(TypeError, match="the model sees 32 x 64 pixels, expected a square"):
        embed_regions(open_clip_model, PICTURE, MASKS, "whole")


def test_a_mask_without_a_clear_foreground_cannot_be_cropped(model):
    faint = 0.4 * box_mask((10, 10, 20, 20), (60, 90))
    with pytest.raises(ValueError, match=r"no pixel above 0\.5"):
        embed_regions(model, PICTURE, faint, "crop")
    assert embed_regions(model, PICTURE, faint, "maskclip").isfinite().all()


def test_mask_box_is_the_inverse_of_box_mask():
    assert mask_box(box_mask((3, 4, 9, 7), (20, 30))) == (3, 4, 9, 7)
    drawn = Image.new("L", (30, 20))
    ImageDraw.Draw(drawn).rectangle((5, 6, 7, 8), fill=1)
    assert mask_box(np.asarray(drawn)) == (5, 6, 8, 9)
