"""Code that people have written against OpenAI's CLIP, replayed: what reaches into the model keeps working.

Each piece is written as its users write it (the source is named), and checked against the model's own verbs or against
open_clip's CLIP with the same weights.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import alpha_clip
from alpha_clip.model import CLIP, ResidualAttentionBlock, Transformer, VisionTransformer

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


# Names


def openai_names(vision_layers, text_layers):
    """The keys of a state dict of OpenAI's CLIP with a ViT."""
    block = ["attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias"]
    block += [f"{part}.{kind}" for part in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj") for kind in ("weight", "bias")]
    names = ["positional_embedding", "text_projection", "logit_scale", "token_embedding.weight"]
    names += ["ln_final.weight", "ln_final.bias", "visual.class_embedding", "visual.positional_embedding"]
    names += ["visual.proj", "visual.conv1.weight", "visual.ln_pre.weight", "visual.ln_pre.bias"]
    names += ["visual.ln_post.weight", "visual.ln_post.bias"]
    names += [f"visual.transformer.resblocks.{i}.{name}" for i in range(vision_layers) for name in block]
    names += [f"transformer.resblocks.{i}.{name}" for i in range(text_layers) for name in block]
    return names


def test_state_dict_has_the_names_of_openai_and_the_alpha_convolution(model):
    assert sorted(model.state_dict()) == sorted([*openai_names(3, 2), "visual.conv1_alpha.weight"])


def test_class_names_are_those_of_clip(model):
    assert type(model) is alpha_clip.model.CLIP is CLIP
    assert type(model.visual) is VisionTransformer
    assert type(model.transformer) is type(model.visual.transformer) is Transformer
    assert {type(block) for block in model.visual.transformer.resblocks} == {ResidualAttentionBlock}
    assert isinstance(model.transformer.resblocks, nn.Sequential)
    assert isinstance(model.visual.transformer.resblocks[0].attn, nn.MultiheadAttention)


def test_sizes_are_attributes(model):
    assert (model.visual.input_resolution, model.visual.output_dim) == (32, 64)
    assert (model.context_length, model.vocab_size) == (16, 512)
    assert (model.transformer.width, model.transformer.layers) == (128, 2)
    assert model.visual.conv1.weight.dtype == model.dtype == torch.float32


def test_text_blocks_carry_the_causal_mask(model):
    expected = torch.full((16, 16), float("-inf")).triu(1)
    assert all(torch.equal(block.attn_mask, expected) for block in model.transformer.resblocks)
    assert all(block.attn_mask is None for block in model.visual.transformer.resblocks)


# The three calls of CLIP's README


@torch.no_grad()
def test_the_readme_of_clip(plain, open_clip_model, images, tokens):
    logits_per_image, logits_per_text = plain(images, tokens)
    probs = logits_per_image.softmax(dim=-1).cpu().numpy()
    assert (logits_per_image.shape, logits_per_text.shape) == ((3, 4), (4, 3))

    image_features, text_features = open_clip_model.encode_image(images), open_clip_model.encode_text(tokens)
    image_features /= image_features.norm(dim=-1, keepdim=True)
    text_features /= text_features.norm(dim=-1, keepdim=True)
    similarity = (plain.logit_scale.exp() * image_features @ text_features.T).softmax(dim=-1)
    assert_close(torch.from_numpy(probs), similarity, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@torch.no_grad()
def test_tokens_of_either_integer_type(plain, open_clip_model, tokens, dtype):
    assert_close(plain.encode_text(tokens.to(dtype)), open_clip_model.encode_text(tokens), **TOLERANCE)


# Prompt learning (KaiyangZhou/CoOp, trainers/coop.py)


def coop_text_encoder(clip_model, prompts, tokenized_prompts):
    x = prompts + clip_model.positional_embedding.type(clip_model.dtype)
    x = x.permute(1, 0, 2)  # NLD -> LND
    x = clip_model.transformer(x)
    x = x.permute(1, 0, 2)  # LND -> NLD
    x = clip_model.ln_final(x).type(clip_model.dtype)
    return x[torch.arange(x.shape[0]), tokenized_prompts.argmax(dim=-1)] @ clip_model.text_projection


@torch.no_grad()
def test_coop_encodes_plain_prompts_as_clip_does(plain, open_clip_model, tokens):
    prompts = plain.token_embedding(tokens).type(plain.dtype)
    assert_close(coop_text_encoder(plain, prompts, tokens), open_clip_model.encode_text(tokens), **TOLERANCE)


def test_coop_learns_its_context_and_nothing_else(model, tokens):
    model.requires_grad_(False)
    with torch.no_grad():
        embedding = model.token_embedding(tokens).type(model.dtype)
    context = nn.Parameter(torch.zeros(1, 128))  # one learned token in the first place after the start
    prompts = torch.cat([embedding[:, :1], context.expand(4, 1, -1), embedding[:, 2:]], dim=1)
    coop_text_encoder(model, prompts, tokens).sum().backward()
    assert context.grad.any()
    assert all(parameter.grad is None for parameter in model.parameters())


# The image tower by hand (openai/CLIP, clip/model.py; copied in nearly every dense-prediction paper)


def vision_by_hand(visual, x):
    x = visual.conv1(x)  # shape = [*, width, grid, grid]
    x = x.reshape(x.shape[0], x.shape[1], -1)  # shape = [*, width, grid ** 2]
    x = x.permute(0, 2, 1)  # shape = [*, grid ** 2, width]
    class_token = visual.class_embedding.to(x.dtype) + torch.zeros(x.shape[0], 1, x.shape[-1], dtype=x.dtype)
    x = torch.cat([class_token, x], dim=1)  # shape = [*, grid ** 2 + 1, width]
    x = x + visual.positional_embedding.to(x.dtype)
    x = visual.ln_pre(x)
    x = x.permute(1, 0, 2)  # NLD -> LND
    x = visual.transformer(x)
    x = x.permute(1, 0, 2)  # LND -> NLD
    x = visual.ln_post(x[:, 0, :])
    return x @ visual.proj


@torch.no_grad()
def test_the_image_tower_written_out_by_hand(plain, images):
    assert_close(vision_by_hand(plain.visual, images), plain.visual(images), **TOLERANCE)


@torch.no_grad()
def test_the_loop_over_blocks_written_out_by_hand(plain, open_clip_model, images):
    outputs = []  # as in CLIPSeg and in feature extractors for diffusion
    hooks = [b.register_forward_hook(lambda m, i, o: outputs.append(o)) for b in plain.visual.transformer.resblocks]
    plain.encode_image(images)
    for hook in hooks:
        hook.remove()
    theirs = open_clip_model.visual.forward_intermediates(
        images, indices=3, output_fmt="NLC", output_extra_tokens=True, intermediates_only=True
    )
    assert [o.shape for o in outputs] == [(17, 3, 128)] * 3
    assert_close([o[1:].transpose(0, 1) for o in outputs], list(theirs["image_intermediates"]), **TOLERANCE)


# Grad-CAM (jacobgil/pytorch-grad-cam, usage_examples/clip_example.py): a hook on ln_1 of the last block


def grad_cam(layer, features, length_first):
    """Activations and gradients at `layer` of the first feature, each (B, L, D)."""
    seen = {}

    def save(module, inputs, output):
        seen["activations"] = output
        output.register_hook(lambda grad: seen.update(gradients=grad))

    hook = layer.register_forward_hook(save)
    features()[:, 0].sum().backward()
    hook.remove()
    activations, gradients = seen["activations"].detach(), seen["gradients"]
    return (activations.transpose(0, 1), gradients.transpose(0, 1)) if length_first else (activations, gradients)


def test_grad_cam_sees_what_it_sees_in_clip(plain, open_clip_model, images):
    ours = grad_cam(plain.visual.transformer.resblocks[-1].ln_1, lambda: plain.encode_image(images), length_first=True)
    layer = open_clip_model.visual.transformer.resblocks[-1].ln_1
    theirs = grad_cam(layer, lambda: open_clip_model.encode_image(images), length_first=False)
    assert_close(ours, theirs, **TOLERANCE)


def test_grad_cam_of_a_masked_call(model, images, masks):
    layer = model.visual.transformer.resblocks[-1].ln_1
    activations, gradients = grad_cam(layer, lambda: model.encode_image(images[0], masks), length_first=True)
    cam = (activations * gradients)[:, 1:].sum(-1).relu().reshape(3, 4, 4)
    assert cam.any(dim=(1, 2)).all()


# Attention (hila-chefer/Transformer-MM-Explainability, and everyone who wants a map)


@torch.no_grad()
def test_attn_is_called_as_nn_multihead_attention(plain, open_clip_model, images):
    x = plain.visual.tokens(images, layer=0)
    ours, theirs = (m.visual.transformer.resblocks[1] for m in (plain, open_clip_model))
    normed = ours.ln_1(x.permute(1, 0, 2))
    output, weights = ours.attn(normed, normed, normed, need_weights=True)
    expected, expected_weights = theirs.attn(*[theirs.ln_1(x)] * 3, need_weights=True)
    assert_close((output.transpose(0, 1), weights), (expected, expected_weights), **TOLERANCE)


class AttentionRecorder(nn.Module):
    """Stands in for `attn`, and keeps the weights of each call."""

    def __init__(self, attn):
        super().__init__()
        self.attn = attn

    def forward(self, *args, **kwargs):
        output, self.weights = self.attn(*args, **(kwargs | {"need_weights": True}))
        return output, self.weights


@torch.no_grad()
def test_attn_may_be_replaced(model, images, masks):
    expected_attention = model.visual.attention(images, masks)
    expected = model.encode_image(images, masks)
    block = model.visual.transformer.resblocks[-1]
    block.attn = AttentionRecorder(block.attn)
    assert_close(model.encode_image(images, masks), expected, **TOLERANCE)
    assert_close(block.attn.weights, expected_attention.mean(1), **TOLERANCE)


@torch.no_grad()
def test_attn_may_be_hooked(model, images):
    seen = []
    block = model.visual.transformer.resblocks[-1]
    block.attn.register_forward_hook(lambda module, args, output: seen.append((args[0].shape, output[0].shape)))
    model.encode_image(images)
    assert seen == [((17, 3, 128), (17, 3, 128))]


@torch.no_grad()
def test_the_attention_method_may_be_replaced(model, images):
    expected = model.encode_image(images)
    for block in model.visual.transformer.resblocks:
        block.attention = lambda x, block=block: block.attn(x, x, x, need_weights=True)[0]
    assert_close(model.encode_image(images), expected, **TOLERANCE)


@torch.no_grad()
def test_attn_mask_of_an_image_block_may_be_set(model, images):
    blind = torch.zeros(17, 17)
    blind[0, 1:] = float("-inf")  # the class token sees nothing but itself
    for block in model.visual.transformer.resblocks:
        block.attn_mask = blind
    features = model.encode_image(images)
    assert_close(features, features[:1].expand(3, -1), **TOLERANCE)


# LoRA: one linear layer replaced by itself and a low-rank term


class LoRALinear(nn.Module):
    def __init__(self, linear, rank=2):
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(rank, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + F.linear(F.linear(x, self.down), self.up)


def add_lora(model):
    model.requires_grad_(False)
    for block in model.visual.transformer.resblocks:
        block.mlp.c_fc = LoRALinear(block.mlp.c_fc)


@torch.no_grad()
def test_lora_starts_as_the_model_itself(model, images, masks):
    expected = model.encode_image(images, masks)
    add_lora(model)
    assert_close(model.encode_image(images, masks), expected, **TOLERANCE)


def test_lora_alone_is_trained(model, images, masks):
    add_lora(model)
    model.encode_image(images, masks).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {f"visual.transformer.resblocks.{i}.mlp.c_fc.{part}" for i in range(3) for part in ("down", "up")}


# The class token alone goes through the last block, unless somebody watches it


def full_features(model, images, masks):
    return model.visual.project(model.visual.tokens(images, masks)[:, 0])


@torch.no_grad()
def test_features_are_those_of_the_whole_last_block(model, images, masks):
    assert_close(model.encode_image(images, masks), full_features(model, images, masks), rtol=1e-6, atol=1e-6)


def test_gradients_are_those_of_the_whole_last_block(model, images, masks):
    model.double()

    def gradients(features):
        model.zero_grad()
        features.square().sum().backward()
        return [p.grad for p in model.visual.parameters()]

    ours = gradients(model.encode_image(images, masks))
    for a, b in zip(ours, gradients(full_features(model, images, masks)), strict=True):
        assert (a - b).abs().max() <= 1e-6 * b.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("where", ["", "resblocks", "resblocks.2", "resblocks.2.attn", "resblocks.2.mlp.c_fc"])
@pytest.mark.parametrize("kind", ["hook", "pre-hook", "patch"])
def test_whoever_watches_the_last_block_sees_all_tokens(model, images, where, kind):
    module = model.visual.transformer.get_submodule(where)
    expected, seen = model.encode_image(images), []
    if kind == "hook":
        module.register_forward_hook(lambda m, args, out: seen.append(args[0].shape))
    elif kind == "pre-hook":
        module.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
    else:
        original = module.forward
        module.forward = lambda *args, **kwargs: seen.append(args[0].shape) or original(*args, **kwargs)
    assert_close(model.encode_image(images), expected, **TOLERANCE)
    assert [tuple(shape[:2]) for shape in seen] == [(17, 3)]
