"""Alpha weights for towers that are nearly CLIP's, or inside a model: they fit, or nothing is changed."""

from __future__ import annotations

import copy

import pytest
import torch
from test_integrations import SIDE, clip_config, left, made, pixels, seen, small_clip
from torch import nn
from torch.nn.utils import prune

from alpha_clip.errors import IncompatibleCheckpoint
from alpha_clip.integrations import copy_tower, has_alpha

transformers = pytest.importorskip("transformers", reason='pip install "alpha-clip[test]"')
open_clip = pytest.importorskip("open_clip", reason='pip install "alpha-clip[test]"')

_TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}


def masked() -> torch.Tensor:
    return torch.cat([pixels(), left()], dim=1)


def refused(tower: nn.Module, error: type[Exception], match: str) -> None:
    """Check that the weights are refused, and the tower is left as it was."""
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    with pytest.raises(error, match=match):
        copy_tower(small_clip().visual, tower)
    assert not has_alpha(tower) and tower.state_dict().keys() == before.keys()
    for name, tensor in tower.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor.float(), before[name].float())


# --- weights that are not what they seem ---


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["clip_projected", "open_clip"])
def test_a_quantised_tower_is_refused(name, dtype):
    """Copied values would be cast to small integers, without a scale."""
    tower = made(name)
    for module in tower.modules():
        if isinstance(module, nn.Linear):
            rough = (module.weight.detach() * 100).to(dtype)
            module.weight = nn.Parameter(rough, requires_grad=False)
    match = rf"{type(tower).__name__} is quantised, .* Parameter of {dtype}.* float64: load it in full precision, put"
    refused(tower, ValueError, match)


class Coarse(nn.Parameter):
    """A parameter type of its own, as in bitsandbytes and torchao, which may report any dtype."""


def test_a_weight_of_a_type_of_its_own_and_one_that_is_computed_are_refused():
    quantised, computed, renamed = made("clip_vision"), made("clip_vision"), made("clip_vision")
    linear = quantised.encoder.layers[1].mlp.fc1
    linear.weight = Coarse(linear.weight.detach(), requires_grad=False)
    refused(quantised, ValueError, r"is quantised, .*: block 1 MLP 1 is Coarse of torch.float32\. Expected parameters")
    prune.l1_unstructured(computed.encoder.layers[0].self_attn.q_proj, "weight", 0.5)
    refused(computed, ValueError, r"something computes its weights: block 0 q_proj is Tensor of torch.float32\.")
    del (linear := renamed.encoder.layers[0].self_attn.out_proj).weight
    linear.register_buffer("qweight", torch.zeros(8, 64, dtype=torch.int32))  # as GPTQ has it
    refused(renamed, ValueError, r"is quantised, .*: block 0 output is NoneType\.")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_full_precision_is_taken(dtype):
    model, tower = small_clip(), made("clip_projected").to(dtype)
    copy_tower(model.visual, tower)
    found = seen(tower, masked().to(dtype))
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.1
    torch.testing.assert_close(found.float(), model.encode_image(pixels(), left()), rtol=tolerance, atol=tolerance)


# --- what is not the tower's ---


@torch.no_grad()
def test_the_projection_of_a_model_around_the_tower_stays():
    """It has the size and the name of CLIP's, but maps into another space."""
    config = transformers.VisionTextDualEncoderConfig(
        vision_config=clip_config().vision_config.to_dict(),
        text_config=transformers.BertConfig(**_TEXT, vocab_size=50).to_dict(),
        projection_dim=32,
    )
    model, dual = small_clip(), transformers.VisionTextDualEncoderModel(config).eval()
    others = {name: p.clone() for name, p in dual.named_parameters() if not name.startswith("vision_model.")}
    copy_tower(model.visual, dual)
    found = dual.vision_model(masked()).last_hidden_state
    torch.testing.assert_close(found, model.visual.tokens(pixels(), left()), rtol=1e-5, atol=1e-5)
    assert "visual_projection.weight" in others
    assert all(torch.equal(p, others[name]) for name, p in dual.named_parameters() if name in others)


@torch.no_grad()
def test_the_projection_of_clip_s_own_models_comes_with_the_tower():
    model, around = small_clip(), nn.ModuleDict({"encoder": made("clip_projected"), "head": nn.Linear(32, 8)})
    copy_tower(model.visual, around)
    expected = model.encode_image(pixels(), left())
    torch.testing.assert_close(around["encoder"](masked()).image_embeds, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_tower_of_git_gets_them_and_its_projection_stays():
    vision = clip_config().vision_config.to_dict()
    git = transformers.GitForCausalLM(
        transformers.GitConfig(vision_config=vision, **_TEXT, vocab_size=150, bos_token_id=1, eos_token_id=2)
    ).eval()
    others = {name: p.clone() for name, p in git.named_parameters() if ".image_encoder." not in name}
    model = small_clip()
    copy_tower(model.visual, git)
    expected = model.visual.ln_post(model.visual.tokens(pixels(), left()))  # GIT's ends with the last norm
    found = git.git.image_encoder(masked()).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert any("visual_projection" in name for name in others)
    assert all(torch.equal(p, others[name]) for name, p in git.named_parameters() if name in others)


# --- nearly CLIP's ---


def _open_clip(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    vision = {"image_size": SIDE, "layers": 2, "width": 64, "patch_size": 8, **settings}
    text = {"context_length": 8, "vocab_size": 99, "width": 64, "heads": 1, "layers": 1}
    return open_clip.CLIP(32, vision, text, quick_gelu=True).eval()


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"pool_type": "avg"}, r"has pool_type='avg', expected 'tok': CLIP reads the class token"),
        ({"pool_type": "none"}, "has pool_type='none', expected 'tok'"),
        ({"ls_init_value": 0.1}, r"ls_1.gamma is in one of VisionTransformer and these weights, expected CLIP's own"),
        ({"attentional_pool": True, "attn_pooler_heads": 1}, "attn_pool.query is in one of VisionTransformer and"),
        ({"no_ln_pre": True}, "ln_pre.weight is in one of VisionTransformer and these weights"),
        ({"norm_kwargs": {"eps": 1e-3}}, r"norms of eps 0.001, expected 1e-05: make it with that"),
    ],
)
def test_settings_of_open_clip_that_clip_has_not_are_refused(setting, match):
    refused(_open_clip(**setting), IncompatibleCheckpoint, match)


@torch.no_grad()
@pytest.mark.parametrize("setting", [{"final_ln_after_pool": True}, {"patch_dropout": 0.5}, {"output_tokens": True}])
def test_settings_of_open_clip_that_change_nothing_are_taken(setting):
    model, tower = small_clip(), _open_clip(**setting)
    copy_tower(model.visual, tower)
    found = tower.visual(masked())
    found = found[0] if isinstance(found, tuple) else found
    torch.testing.assert_close(found, model.encode_image(pixels(), left()), rtol=1e-5, atol=1e-5)


def test_towers_of_transformers_that_are_nearly_clip_s_are_refused():
    config = copy.deepcopy(clip_config().vision_config)
    config.layer_norm_eps = 1e-3
    refused(transformers.CLIPVisionModel(config), IncompatibleCheckpoint, "norms of eps 0.001, expected 1e-05")
    scaled = made("clip_vision")
    scaled.encoder.layers[1].scale = nn.Parameter(torch.ones(64))
    refused(scaled, IncompatibleCheckpoint, "scale is in one of CLIPEncoderLayer and these weights, expected CLIP's")
    if hasattr(transformers, "MLCDVisionModel"):  # turns its queries and keys, and has no positions to learn
        sizes = {k: v for k, v in clip_config().vision_config.to_dict().items() if k in _SIZES}
        rotary = transformers.MLCDVisionModel(transformers.MLCDVisionConfig(**sizes, hidden_act="quick_gelu"))
        refused(rotary, IncompatibleCheckpoint, "class_pos_emb is in one of MLCDVisionModel and these weights")


_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size"),
)
