"""With zero alpha weights the model is CLIP: its weights give the same numbers in open_clip and in transformers."""

import pytest
import torch
from torch.testing import assert_close

from alpha_clip.model import build_model

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


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
