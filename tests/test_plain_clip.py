"""With zero alpha weights the model is CLIP: its weights give the same numbers in open_clip and in transformers."""

import pytest
import torch
from torch.testing import assert_close

from alpha_clip.model import build_model

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

TRANSFORMERS_NAMES = {  # replaced in this order
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "transformer.resblocks": "text_model.encoder.layers",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "attn.in_proj_": "self_attn.{}_proj.",
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def in_transformers_names(state_dict):
    renamed = {}
    for name, value in state_dict.items():
        for ours, theirs in TRANSFORMERS_NAMES.items():
            name = name.replace(ours, theirs)
        if "{}" in name:
            renamed |= {name.format(kind): part for kind, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            renamed[name] = value.T if "projection" in name else value
    return renamed


@pytest.fixture
def transformers_model(open_clip_model):
    from transformers import CLIPConfig, CLIPModel

    both = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "hidden_act": "quick_gelu"}
    vision = both | {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    text = both | {"num_hidden_layers": 2, "max_position_embeddings": 16, "vocab_size": 512}
    text |= {"bos_token_id": 510, "eos_token_id": 511}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=64, attn_implementation="eager")
    theirs = CLIPModel(config)
    theirs.load_state_dict(in_transformers_names(open_clip_model.state_dict()))
    return theirs.eval()


@torch.no_grad()
def test_image_features_equal_open_clip(plain, open_clip_model, images):
    assert_close(plain.encode_image(images), open_clip_model.encode_image(images), **TOLERANCE)


@torch.no_grad()
def test_text_features_equal_open_clip(plain, open_clip_model, tokens):
    assert_close(plain.encode_text(tokens), open_clip_model.encode_text(tokens), **TOLERANCE)


@torch.no_grad()
def test_logits_equal_open_clip(plain, open_clip_model, images, tokens):
    assert_close(plain(images, tokens), open_clip_model.get_logits(images, tokens), **TOLERANCE)


@torch.no_grad()
def test_a_state_dict_of_open_clip_builds_the_same_model(plain, open_clip_model, images, tokens):
    with pytest.warns(UserWarning, match=r"no visual\.conv1_alpha\.weight in this state dict: filled with zeros"):
        built = build_model(open_clip_model.state_dict())
    assert_close(built(images, tokens), plain(images, tokens), rtol=0, atol=0)


@torch.no_grad()
def test_image_features_equal_transformers(plain, transformers_model, images):
    theirs = transformers_model.get_image_features(images).pooler_output
    assert_close(plain.encode_image(images), theirs, **TOLERANCE)


@torch.no_grad()
def test_text_features_equal_transformers(plain, transformers_model, tokens):
    theirs = transformers_model.get_text_features(tokens.long()).pooler_output
    assert_close(plain.encode_text(tokens), theirs, **TOLERANCE)


@torch.no_grad()
def test_logits_equal_transformers(plain, transformers_model, images, tokens):
    theirs = transformers_model(pixel_values=images, input_ids=tokens.long())
    assert_close(plain(images, tokens), (theirs.logits_per_image, theirs.logits_per_text), **TOLERANCE)


@pytest.mark.parametrize("layer", [-3, -2, -1])
@torch.no_grad()
def test_tokens_equal_the_hidden_states_of_transformers(plain, transformers_model, images, layer):
    theirs = transformers_model.vision_model(images, output_hidden_states=True).hidden_states
    assert_close(plain.visual.tokens(images, layer=layer), theirs[layer], **TOLERANCE)


@pytest.mark.parametrize("layer", [-3, -2, -1])
@torch.no_grad()
def test_attention_equals_that_of_transformers(plain, transformers_model, images, layer):
    theirs = transformers_model.vision_model(images, output_attentions=True).attentions
    assert_close(plain.visual.attention(images, layer=layer), theirs[layer], **TOLERANCE)


@torch.no_grad()
def test_masks_change_not_one_bit_while_the_alpha_weights_are_zero(plain, images, masks):
    with pytest.warns(UserWarning, match="the alpha weights of this model are all zero"):
        masked = plain.encode_image(images, masks)
    assert torch.equal(masked, plain.encode_image(images))
