"""State dicts: what loads, what it becomes, and what is refused."""

import pytest
import torch
from torch.testing import assert_close

from alpha_clip.model import CLIP, build_model, convert_weights

FILLED = r"no visual\.conv1_alpha\.weight in this state dict: filled with zeros"


@pytest.fixture
def other(model):
    """A model of the same sizes with weights of its own."""
    other = build_model({name: torch.randn_like(value) for name, value in model.state_dict().items()})
    assert not torch.equal(other.text_projection, model.text_projection)
    return other


def authors_names(visual):
    """The state dict of an image tower as the Alpha-CLIP authors save it."""
    return {name.replace("attn.in_proj_", "attn.in_proj."): value for name, value in visual.state_dict().items()}


@torch.no_grad()
def test_round_trip(model, other, images, masks, tokens):
    other.load_state_dict(model.state_dict())
    assert_close(other(images, tokens, masks), model(images, tokens, masks), rtol=0, atol=0)


def test_the_causal_mask_is_in_no_state_dict(model):
    assert [name for name in model.state_dict() if "mask" in name] == []


# Plain CLIP


@torch.no_grad()
def test_a_plain_clip_state_dict_zeroes_alpha_with_a_warning(model, other, images):
    state_dict = model.state_dict()
    del state_dict["visual.conv1_alpha.weight"]
    with pytest.warns(UserWarning, match=FILLED):
        other.load_state_dict(state_dict)
    assert not other.visual.conv1_alpha.weight.any()
    assert torch.equal(other.visual.conv1.weight, model.visual.conv1.weight)


def test_a_plain_image_tower_zeroes_alpha_with_a_warning(model, other):
    state_dict = model.visual.state_dict()
    del state_dict["conv1_alpha.weight"]
    with pytest.warns(UserWarning, match=r"no conv1_alpha\.weight in this state dict: filled with zeros"):
        other.visual.load_state_dict(state_dict)
    assert not other.visual.conv1_alpha.weight.any()


def test_what_openai_stores_beside_the_weights_is_dropped(model, other):
    extras = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    other.load_state_dict(model.state_dict() | extras)
    assert (other.visual.input_resolution, other.context_length, other.vocab_size) == (32, 16, 512)


# The authors' files


@torch.no_grad()
def test_the_authors_image_tower_loads_strictly(model, other, images, masks):
    other.visual.load_state_dict(authors_names(model.visual))
    assert torch.equal(other.visual(images, masks), model.visual(images, masks))


@torch.no_grad()
def test_the_authors_names_load_into_the_whole_model_too(model, other, images, masks):
    visual = {f"visual.{name}": value for name, value in authors_names(model.visual).items()}
    other.load_state_dict(other.state_dict() | visual, strict=False)
    assert torch.equal(other.visual(images, masks), model.visual(images, masks))


# Errors


def test_missing_and_unexpected_keys_are_reported_together(model, other):
    state_dict = model.state_dict()
    state_dict["lnfinal.weight"] = state_dict.pop("ln_final.weight")
    state_dict["visual.extra"] = torch.zeros(1)
    del state_dict["visual.transformer.resblocks.2.attn.in_proj_bias"]
    missing = r"Missing key\(s\).*visual\.transformer\.resblocks\.2\.attn\.in_proj_bias.*ln_final\.weight"
    with pytest.raises(RuntimeError, match=rf"(?s){missing}.*Unexpected key\(s\).*lnfinal\.weight.*visual\.extra"):
        other.load_state_dict(state_dict)


def test_build_model_reports_missing_and_unexpected_keys_together(model):
    state_dict = model.state_dict()
    state_dict["lnfinal.weight"] = state_dict.pop("ln_final.weight")
    with pytest.raises(RuntimeError, match=r"(?s)Missing key\(s\).*ln_final\.weight.*Unexpected.*lnfinal\.weight"):
        build_model(state_dict)


def test_a_resnet_clip_is_refused():
    with pytest.raises(ValueError, match=r"ResNet image tower; alpha-clip's image towers are ViTs: load a ViT-B"):
        build_model({"visual.layer1.0.conv1.weight": torch.zeros(1), "visual.conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", ["positional_embedding", "token_embedding.weight", "visual.conv1.weight"])
def test_sizes_that_cannot_be_read_are_named(model, name):
    state_dict = model.state_dict()
    del state_dict[name]
    with pytest.raises(ValueError, match=rf"not the state dict of a CLIP in OpenAI's names: {name} missing"):
        build_model(state_dict)


# What loading leaves alone


@pytest.mark.parametrize("load", ["load_state_dict", "build_model"])
def test_the_callers_dict_is_not_modified(model, other, load):
    state_dict = dict(model.state_dict()) | {"vocab_size": torch.tensor(512)}
    for kind in ("weight", "bias"):
        ours, theirs = (f"visual.transformer.resblocks.0.attn.in_proj{mark}{kind}" for mark in "_.")
        state_dict[theirs] = state_dict.pop(ours)
    del state_dict["visual.conv1_alpha.weight"]
    before = dict(state_dict)
    with pytest.warns(UserWarning, match=FILLED):
        build_model(state_dict) if load == "build_model" else other.load_state_dict(state_dict)
    assert state_dict.keys() == before.keys()
    assert all(state_dict[name] is before[name] for name in before)


# build_model


def test_build_model_reads_all_sizes(model):
    built = build_model(model.state_dict())
    assert [(name, value.shape) for name, value in built.state_dict().items()] == [
        (name, value.shape) for name, value in model.state_dict().items()
    ]
    assert [block.attn.num_heads for block in (*built.visual.transformer.blocks, *built.transformer.blocks)] == [2] * 5
    assert (built.visual.input_resolution, built.visual.output_dim) == (32, 64)
    assert (built.context_length, built.vocab_size) == (16, 512)


def test_build_model_takes_the_tensors_over_without_a_copy(model):
    state_dict = model.state_dict()
    built = build_model(state_dict).state_dict()
    assert [name for name in state_dict if built[name].data_ptr() != state_dict[name].data_ptr()] == []


def test_build_model_keeps_each_dtype(model):
    convert_weights(model)
    state_dict = model.state_dict()
    built = build_model(state_dict).state_dict()
    assert {name: value.dtype for name, value in built.items()} == {name: v.dtype for name, v in state_dict.items()}


def test_build_model_gives_a_model_in_eval_that_can_be_trained(model):
    built = build_model(model.state_dict())
    assert not any(module.training for module in built.modules())
    assert all(parameter.requires_grad for parameter in built.parameters())


def test_build_model_leaves_nothing_on_another_device(model):
    built = build_model({name: value.to("meta") for name, value in model.state_dict().items()})
    assert {tensor.device.type for tensor in (*built.parameters(), *built.buffers())} == {"meta"}


@torch.no_grad()
def test_a_model_built_on_the_meta_device_keeps_its_causal_mask(model, tokens):
    with torch.device("meta"):
        built = CLIP(64, 32, 3, 128, 8, 16, 512, 128, 2, 2)
    built.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(built.encode_text(tokens), model.encode_text(tokens))


# convert_weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_convert_weights_follows_the_rule_of_clip(plain, open_clip_model, dtype):
    from open_clip.model import convert_weights_to_lp

    convert_weights(plain, dtype)
    convert_weights_to_lp(open_clip_model, dtype)
    ours = {name: parameter.dtype for name, parameter in plain.named_parameters()}
    assert ours.pop("visual.conv1_alpha.weight") == dtype
    assert ours == {name: parameter.dtype for name, parameter in open_clip_model.named_parameters()}


@torch.no_grad()
def test_converted_weights_give_the_same_features_to_half_precision(model, images, masks, tokens):
    expected = model(images, tokens, masks)
    convert_weights(model, torch.bfloat16)
    logits = model(images, tokens, masks)
    assert model.dtype == logits[0].dtype == torch.bfloat16
    assert_close(logits[0].float(), expected[0], rtol=4e-2, atol=4e-2 * float(expected[0].abs().max()))
