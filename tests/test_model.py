"""The two towers: how alpha enters, shapes, errors, warnings, tokens, sizes, derivatives, dtypes, compilation."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

from alpha_clip.errors import MasksIgnored
from alpha_clip.model import CLIP, FOREGROUND, QuickGELU, build_model, convert_weights

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
RAW = "the values of this floating alpha lie within"
BLIND = "the alpha weights of this model are all zero"

# Inductor advises TF32 on every new GPU; these tests compare with exact float32.
INDUCTOR = pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
BACKENDS = ["eager", pytest.param("inductor", marks=[pytest.mark.slow, INDUCTOR])]


def block_input(visual, image, alpha=None):
    """What reaches `ln_pre`: the embedded patches behind the class token, (B, 1 + N, width)."""
    seen = []
    hook = visual.ln_pre.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    visual(image, alpha)
    hook.remove()
    return seen[0]


# How alpha enters


def test_foreground_is_that_of_the_authors():
    assert pytest.approx((1 - 0.5) / 0.26) == FOREGROUND == pytest.approx(1.923, abs=1e-3)


@torch.no_grad()
def test_alpha_is_the_fourth_channel_of_one_patch_convolution(model, images, masks):
    visual = model.visual
    alpha = torch.where(masks, FOREGROUND, -FOREGROUND)[:, None]
    weight = torch.cat([visual.conv1.weight, visual.conv1_alpha.weight], dim=1)  # (width, 4, 8, 8)
    patches = F.unfold(torch.cat([images, alpha], dim=1), 8, stride=8).mT @ weight.flatten(1).T
    embedded = block_input(visual, images, alpha) - visual.positional_embedding
    assert_close(embedded[:, 1:], patches, **TOLERANCE)


@torch.no_grad()
def test_a_bool_mask_equals_its_normalised_floats(model, images, masks):
    alpha = ((masks.double() - 0.5) / 0.26).float()
    assert torch.equal(model.encode_image(images, masks), model.encode_image(images, alpha))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_no_alpha_is_a_mask_of_ones(model, images, dtype):
    model.to(dtype)
    whole = torch.ones(32, 32, dtype=torch.bool)
    exact = {"rtol": 0, "atol": 1e-12 if dtype == torch.float64 else 1e-5}
    assert_close(model.encode_image(images), model.encode_image(images, whole), **exact)


@torch.no_grad()
def test_no_alpha_is_foreground_everywhere(model, images):
    everywhere = torch.full((3, 1, 32, 32), 1.9230769230769231)
    assert_close(model.encode_image(images), model.encode_image(images, everywhere), **TOLERANCE)


@torch.no_grad()
def test_masks_change_the_features(model, images, masks):
    features = [model.encode_image(images[0], alpha) for alpha in (None, *masks, ~masks[0])]
    distances = torch.cdist(torch.cat(features), torch.cat(features))
    assert distances[~torch.eye(5, dtype=torch.bool)].min() > 0.1


@torch.no_grad()
def test_soft_alpha_is_used_as_it_is(model, images, masks):
    hard = ((masks.float() - 0.5) / 0.26)[:, None]
    embedded = [block_input(model.visual, images, alpha) for alpha in (hard, 0.5 * hard, -hard)]
    assert_close(embedded[1], 0.75 * embedded[0] + 0.25 * embedded[2], **TOLERANCE)


@torch.no_grad()
def test_a_batch_equals_its_members(model, images, masks):
    singles = [model.encode_image(image, mask) for image, mask in zip(images, masks, strict=True)]
    assert_close(model.encode_image(images, masks), torch.cat(singles), **TOLERANCE)


@torch.no_grad()
def test_many_masks_of_one_image_equal_the_loop(model, images, masks):
    loop = [model.encode_image(images[0], mask) for mask in masks]
    assert_close(model.encode_image(images[:1], masks), torch.cat(loop), **TOLERANCE)


@torch.no_grad()
def test_one_mask_of_many_images_equals_the_loop(model, images, masks):
    loop = [model.encode_image(image, masks[0]) for image in images]
    assert_close(model.encode_image(images, masks[:1]), torch.cat(loop), **TOLERANCE)


@torch.no_grad()
def test_many_masks_of_one_image_cost_one_rgb_convolution(model, images, masks):
    seen = []
    model.visual.conv1.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    assert model.encode_image(images[0], masks).shape == (3, 64)
    assert seen == [(1, 3, 32, 32)]


@torch.no_grad()
def test_logits_are_cosines_times_the_temperature(model, images, masks, tokens):
    image_features, text_features = model.encode_image(images, masks), model.encode_text(tokens)
    cosines = F.cosine_similarity(image_features[:, None], text_features[None], dim=-1)  # (3, 4)
    per_image, per_text = model(images, tokens, masks)
    assert_close(per_image, model.logit_scale.exp() * cosines, **TOLERANCE)
    assert torch.equal(per_text, per_image.T)


# Shapes


@pytest.mark.parametrize("shape", [(3, 1, 32, 32), (3, 32, 32), (32, 32), (1, 32, 32), (1, 1, 32, 32)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@torch.no_grad()
def test_alpha_of_a_batch_may_have_shape(model, images, masks, shape, dtype):
    alpha = masks[: shape[0] if len(shape) > 2 else 1].reshape(shape)
    expected = model.encode_image(images, alpha.reshape(-1, 32, 32).expand(3, 32, 32))
    alpha = alpha if dtype == torch.bool else torch.where(alpha, FOREGROUND, -FOREGROUND)
    assert_close(model.encode_image(images, alpha), expected, **TOLERANCE)


@pytest.mark.parametrize("shape", [None, (32, 32), (1, 32, 32), (1, 1, 32, 32)])
@torch.no_grad()
def test_a_single_image_gives_a_batch_of_one(model, images, masks, shape):
    alpha = None if shape is None else masks[0].reshape(shape)
    features = model.encode_image(images[0], alpha)
    assert features.shape == (1, 64)
    assert torch.equal(features, model.encode_image(images[:1], alpha))


@torch.no_grad()
def test_text_may_be_shorter_than_the_context(model, tokens):
    assert_close(model.encode_text(tokens[:2, :6]), model.encode_text(tokens[:2]), **TOLERANCE)


@torch.no_grad()
def test_nothing_after_the_end_of_text_matters(model, tokens):
    junk = tokens.clone()
    junk[0, 3:] = 7
    assert_close(model.encode_text(junk), model.encode_text(tokens), **TOLERANCE)


# Errors


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, r"image is torch\.uint8, expected a floating tensor"),
        (np.zeros((1, 3, 32, 32)), TypeError, r"image is ndarray, expected a floating tensor"),
        (torch.zeros(32, 32), ValueError, r"image is \(32, 32\), expected \(B, 3, H, W\)"),
        (torch.zeros(1, 1, 3, 32, 32), ValueError, r"image is \(1, 1, 3, 32, 32\), expected \(B, 3, H, W\)"),
        (torch.zeros(1, 4, 32, 32), ValueError, r"image is \(1, 4, 32, 32\), expected \(B, 3, H, W\)"),
        (torch.zeros(1, 32, 32, 3), ValueError, r"image is \(1, 32, 32, 3\), expected \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 32, 30), ValueError, r"multiples of the patch size 8; the native size is 32"),
        (torch.zeros(1, 3, 0, 32), ValueError, r"\(1, 3, 0, 32\): height and width must be multiples"),
    ],
)
def test_image_errors(model, image, error, message):
    with pytest.raises(error, match=message):
        model.encode_image(image)


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (torch.ones(2, 32, 32, dtype=torch.uint8), TypeError, r"alpha is torch\.uint8, expected a bool mask or"),
        (torch.ones(2, 32, 32, dtype=torch.int64), TypeError, r"torch\.int64.*pass `mask\.bool\(\)`"),
        (np.ones((2, 32, 32), dtype=bool), TypeError, r"alpha is ndarray, expected a bool mask or"),
        (torch.ones(32), ValueError, r"alpha is \(32,\), expected \(B, 1, 32, 32\), \(B, 32, 32\) or \(32, 32\)"),
        (torch.ones(2, 24, 24), ValueError, r"alpha is \(2, 24, 24\).*to fit the image \(2, 3, 32, 32\)"),
        (
            torch.ones(2, 3, 32, 32),
            ValueError,
            r"\(2, 3, 32, 32\), expected.*pass 3 masks of each image as `image\.repeat",
        ),
        (
            torch.ones(1, 2, 1, 32, 32),
            ValueError,
            r"alpha is \(1, 2, 1, 32, 32\), expected.*transform the two together",
        ),
        (
            torch.ones(2, 2, 3, 32, 32),
            ValueError,
            r"alpha is \(2, 2, 3, 32, 32\), expected.*transform the two together",
        ),
        (torch.ones(3, 32, 32), ValueError, r"2 images and 3 alphas: the two batches must be equal, or one of them 1"),
    ],
)
def test_alpha_errors(model, images, alpha, error, message):
    with pytest.raises(error, match=message):
        model.encode_image(images[:2], alpha)


@pytest.mark.parametrize("shape", [(2, 3, 1, 32, 32), (2, 3, 32, 32)])
def test_k_masks_of_each_image_can_be_seen_as_the_message_says(model, images, shape):
    alpha = torch.randn(shape)
    with pytest.raises(ValueError, match=r"as `image\.repeat_interleave\(3, 0\), alpha\.flatten\(0, 1\)`"):
        model.encode_image(images[:2], alpha)
    found = model.encode_image(images[:2].repeat_interleave(3, 0), alpha.flatten(0, 1)).unflatten(0, (2, 3))
    for image, its, own in zip(images, alpha, found, strict=False):
        torch.testing.assert_close(own, model.encode_image(image, its))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (["a dog"], TypeError, r"text is list, expected an integer tensor of token ids: use alpha_clip\.tokenize"),
        (torch.zeros(1, 16), TypeError, r"text is torch\.float32, expected an integer tensor"),
        (torch.zeros(1, 16, dtype=torch.bool), TypeError, r"text is torch\.bool, expected an integer tensor"),
        (torch.zeros(16, dtype=torch.int32), ValueError, r"text is \(16,\), expected \(N, L\) with L from 1 to 16"),
        (torch.zeros(1, 77, dtype=torch.int32), ValueError, r"text is \(1, 77\).*context_length=16"),
        (torch.zeros(1, 0, dtype=torch.int32), ValueError, r"text is \(1, 0\), expected \(N, L\)"),
    ],
)
def test_text_errors(model, text, error, message):
    with pytest.raises(error, match=message):
        model.encode_text(text)


@pytest.mark.parametrize("layer", [-4, 3])
@pytest.mark.parametrize("method", ["tokens", "attention"])
def test_there_is_no_such_layer(model, images, method, layer):
    with pytest.raises(IndexError, match=rf"layer {layer} of an image tower of 3 blocks; use -3 to -1"):
        getattr(model.visual, method)(images, layer=layer)


# Warnings. pytest turns every other warning into an error, so a call outside `pytest.warns` shows that there is none.


def test_zero_alpha_weights_warn_on_the_first_masked_call_only(plain, images, masks):
    plain.encode_image(images)
    with pytest.warns(MasksIgnored, match=BLIND):
        plain.encode_image(images, masks)
    plain.encode_image(images, masks)


def test_zero_alpha_weights_warn_again_after_loading(plain, images, masks):
    with pytest.warns(MasksIgnored, match=BLIND):
        plain.encode_image(images, masks)
    plain.load_state_dict(plain.state_dict())
    with pytest.warns(MasksIgnored, match=BLIND):
        plain.encode_image(images, masks)


def test_zero_alpha_weights_do_not_warn_in_training_which_starts_there(plain, images, masks):
    plain.train().encode_image(images, masks)
    with pytest.warns(MasksIgnored, match=BLIND):
        plain.eval().encode_image(images, masks)


@pytest.mark.parametrize("method", ["forward", "tokens", "attention"])
def test_zero_alpha_weights_warn_however_the_tower_is_called(plain, images, masks, method):
    with pytest.warns(MasksIgnored, match=BLIND):
        getattr(plain.visual, method)(images, masks)


def test_alpha_within_0_and_1_warns_once(model, images, masks):
    model.encode_image(images, masks)  # bool: nothing to complain of, and not the first floating alpha
    with pytest.warns(UserWarning, match=RAW):
        model.encode_image(images, masks.float())
    model.encode_image(images, masks.float())


def test_alpha_far_beyond_the_foreground_warns(model, images, masks):
    with pytest.warns(UserWarning, match=r"this floating alpha reach from 0 to 255, far beyond ±1\.923"):
        model.encode_image(images, masks.float() * 255)


def test_floating_alphas_are_inspected_until_one_is_wrong(model, images, masks):
    model.encode_image(images, (masks.float() - 0.5) / 0.26)
    with pytest.warns(UserWarning, match=RAW):
        model.encode_image(images, masks.float())
    model.encode_image(images, masks.float())


def test_alpha_within_0_and_1_warns_again_after_loading(model, images, masks):
    model.encode_image(images, (masks.float() - 0.5) / 0.26)
    model.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match=RAW):
        model.encode_image(images, masks.float())


@torch.no_grad()
def test_nothing_warns_under_compile(plain, images, masks):
    compiled = torch.compile(plain.visual, fullgraph=True, backend="eager")
    compiled(images, masks.float())


@pytest.mark.parametrize("masked", [False, True])
def test_it_exports_with_a_batch_of_any_size(model, images, masks, tokens, masked):
    many = torch.export.Dim("many", min=1, max=16)
    inputs = (images, masks[:, None]) if masked else (images,)
    exported = torch.export.export(model.visual, inputs, dynamic_shapes=({0: many},) * len(inputs)).module()
    with torch.no_grad():
        for count in (2, 3):
            some = [x[:count] for x in inputs]
            assert_close(exported(*some), model.visual(*some), **TOLERANCE)


class Reader(torch.nn.Module):
    """The text tower."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model.encode_text(tokens)


def test_texts_export_with_a_batch_of_any_size(model, tokens):
    reader, many = Reader(model), torch.export.Dim("many", min=1, max=16)
    exported = torch.export.export(reader, (tokens,), dynamic_shapes=({0: many},)).module()
    with torch.no_grad():
        for count in (2, 4):
            assert_close(exported(tokens[:count]), reader(tokens[:count]), **TOLERANCE)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*", "ignore::torch.jit.TracerWarning")
def test_it_is_traced_with_gradients_on(model, images):
    traced = torch.jit.trace(model.visual, images)
    assert_close(traced(images), model.visual(images), **TOLERANCE)


# Tokens, projection, attention


@torch.no_grad()
def test_projected_class_token_is_the_image_feature(model, images, masks):
    projected = model.visual.project(model.visual.tokens(images, masks))
    assert projected.shape == (3, 17, 64)
    assert_close(projected[..., 0, :], model.encode_image(images, masks), **TOLERANCE)


@torch.no_grad()
def test_layers_count_from_either_end(model, images, masks):
    assert torch.equal(model.visual.tokens(images, masks, layer=1), model.visual.tokens(images, masks, layer=-2))


@torch.no_grad()
def test_attention_rows_sum_to_one(model, images, masks):
    attention = model.visual.attention(images[0], masks)
    assert attention.shape == (3, 2, 17, 17)
    assert_close(attention.sum(-1), torch.ones(3, 2, 17), **TOLERANCE)


@torch.no_grad()
def test_without_proj_features_are_not_projected(model, images, masks):
    projected, proj = model.encode_image(images, masks), model.visual.proj
    model.visual.proj = None
    features = model.encode_image(images, masks)
    assert features.shape == (3, 128)
    assert_close(features @ proj, projected, **TOLERANCE)


# Other sizes. With every other term of the sum set to zero, what reaches `ln_pre` is the positional embedding.


def positions(visual, height, width):
    with torch.no_grad():
        for other in (visual.conv1.weight, visual.conv1_alpha.weight, visual.class_embedding):
            other.zero_()
        return block_input(visual, torch.zeros(1, 3, height, width))[0]


def test_at_the_native_size_positions_are_the_parameter_to_the_bit(model):
    assert torch.equal(positions(model.visual, 32, 32), model.visual.positional_embedding)


@pytest.mark.parametrize(("height", "width"), [(48, 48), (16, 16), (56, 24), (32, 40)])
def test_positions_at_another_size_are_resized_as_pillow_resizes_pictures(model, height, width):
    grid = model.visual.positional_embedding[1:].detach().reshape(4, 4, 128).numpy()
    size = (width // 8, height // 8)
    channels = [Image.fromarray(grid[..., i]).resize(size, Image.Resampling.BICUBIC) for i in range(128)]
    resized = positions(model.visual, height, width)
    assert_close(resized[1:], torch.from_numpy(np.stack(channels, axis=-1).reshape(-1, 128)), **TOLERANCE)
    assert torch.equal(resized[0], model.visual.positional_embedding[0])


def test_positions_are_resized_in_float32(model):
    half = model.visual.bfloat16()
    full = copy.deepcopy(half).float()
    assert torch.equal(positions(half, 48, 48), positions(full, 48, 48).bfloat16())


@torch.no_grad()
def test_another_size_gives_tokens_for_its_patches_by_row(model):
    image = torch.randn(2, 3, 16, 40, generator=torch.Generator().manual_seed(3))
    mask = torch.rand(2, 16, 40, generator=torch.Generator().manual_seed(4)) > 0.5
    assert model.visual.tokens(image, mask).shape == (2, 1 + 2 * 5, 128)
    assert model.encode_image(image, mask).shape == (2, 64)


# Derivatives


def test_gradients_reach_image_alpha_and_every_weight(model, images, masks, tokens):
    alpha = torch.where(masks, FOREGROUND, -FOREGROUND).requires_grad_()
    images.requires_grad_()
    model(images, tokens, alpha)[0].square().sum().backward()
    leaves = {"image": images, "alpha": alpha, **dict(model.named_parameters())}
    assert [name for name, leaf in leaves.items() if leaf.grad is None or not leaf.grad.any()] == []


def test_derivatives_are_right(tower):
    image = torch.randn(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    alpha = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: tower(*inputs), (image, alpha))


def test_derivatives_are_right_for_the_weights_at_another_size(tower):
    image = torch.randn(1, 3, 12, 8, dtype=torch.float64)
    alpha = torch.randn(1, 1, 12, 8, dtype=torch.float64)
    names = ["conv1.weight", "conv1_alpha.weight", "positional_embedding", "class_embedding", "proj"]
    weights = [tower.get_parameter(name) for name in names]

    def features(*weights):
        return torch.func.functional_call(tower, dict(zip(names, weights, strict=True)), (image, alpha))

    assert torch.autograd.gradcheck(features, weights, fast_mode=True)


# Copies and dtypes


@torch.no_grad()
def test_a_deep_copy_is_equal_and_independent(model, images, masks, tokens):
    expected = model(images, tokens, masks)
    copied = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.zero_()
    assert_close(copied(images, tokens, masks), expected, rtol=0, atol=0)


@torch.no_grad()
def test_pickling_keeps_everything(model, images, masks, tokens):
    unpickled = pickle.loads(pickle.dumps(model))
    assert_close(unpickled(images, tokens, masks), model(images, tokens, masks), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@torch.no_grad()
def test_outputs_have_the_dtype_of_the_model(model, images, masks, tokens, dtype):
    expected = model(images, tokens, masks)
    model.to(dtype)
    assert model.dtype == dtype
    assert model.encode_image(images, masks).dtype == model.encode_text(tokens).dtype == dtype
    assert model.visual.tokens(images, masks).dtype == model.visual.attention(images, masks).dtype == dtype
    logits = model(images, tokens, masks)
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 4e-2}.get(dtype, 1e-5)
    assert_close(
        logits, tuple(e.to(dtype) for e in expected), rtol=tolerance, atol=float(tolerance * expected[0].max())
    )


@torch.no_grad()
def test_inputs_of_any_floating_dtype_are_cast(model, images, masks):
    alpha = torch.where(masks, FOREGROUND, -FOREGROUND)
    assert_close(model.encode_image(images.double(), alpha.double()), model.encode_image(images, alpha), **TOLERANCE)


def test_autocast_works_and_keeps_gradients(model, images, masks, tokens):
    expected = model(images, tokens, masks)[0].detach()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images, tokens, masks)[0]
    assert logits.dtype == torch.bfloat16
    assert_close(logits.detach().float(), expected, rtol=4e-2, atol=4e-2 * float(expected.abs().max()))
    logits.sum().backward()
    assert model.visual.conv1_alpha.weight.grad.dtype == torch.float32


# Compilation


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@torch.no_grad()
def test_compiled_image_features_are_equal(model, images, masks, backend, kind):
    alpha = {"none": None, "bool": masks, "float": torch.where(masks, FOREGROUND, -FOREGROUND)}[kind]
    compiled = torch.compile(model.encode_image, fullgraph=True, backend=backend)
    assert_close(compiled(images, alpha), model.encode_image(images, alpha), **TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_compiled_text_features_are_equal(model, tokens, backend):
    compiled = torch.compile(model.encode_text, fullgraph=True, backend=backend)
    assert_close(compiled(tokens), model.encode_text(tokens), **TOLERANCE)


@torch.no_grad()
def test_compiled_features_at_another_size_are_equal(model):
    image = torch.randn(1, 3, 48, 24, generator=torch.Generator().manual_seed(3))
    compiled = torch.compile(model.encode_image, fullgraph=True, backend="eager")
    assert_close(compiled(image), model.encode_image(image), **TOLERANCE)


# CUDA


def gpu(test):
    """Marks a test that needs a CUDA device."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


@gpu
@torch.no_grad()
def test_half_precision_on_cuda_equals_float32_on_the_cpu(model, images, masks, tokens):
    expected = F.normalize(model.encode_image(images, masks)), F.normalize(model.encode_text(tokens))
    convert_weights(model, torch.float16)
    model.cuda()
    features = F.normalize(model.encode_image(images, masks)), F.normalize(model.encode_text(tokens))
    assert features[0].device.type == "cuda" and features[0].dtype == torch.float16
    assert_close([f.float().cpu() for f in features], list(expected), rtol=0, atol=1e-2)


@gpu
@torch.no_grad()
def test_build_model_from_tensors_on_cuda_runs_there(model, images, masks, tokens):
    built = build_model({name: value.cuda() for name, value in model.state_dict().items()})
    assert {tensor.device.type for tensor in (*built.parameters(), *built.buffers())} == {"cuda"}
    # cuDNN convolves in TF32 unless told otherwise
    assert_close(built(images, tokens, masks)[0].cpu(), model(images, tokens, masks)[0], rtol=1e-2, atol=5e-2)


@gpu
@torch.no_grad()
def test_a_model_made_under_a_default_device_encodes_text_there(model, tokens):
    with torch.device("cuda"):
        made = CLIP(64, 32, 3, 128, 8, 16, 512, 128, 2, 2)
    made.load_state_dict(model.state_dict())
    assert_close(made.encode_text(tokens).cpu(), model.encode_text(tokens), rtol=1e-3, atol=1e-3)


@gpu
@INDUCTOR
@torch.no_grad()
def test_compiled_features_on_cuda_are_equal(model, images, masks):
    convert_weights(model, torch.float16)
    images, masks = images.cuda(), masks.cuda()
    expected = model.cuda().encode_image(images, masks)
    compiled = torch.compile(model.encode_image, fullgraph=True)
    assert_close(compiled(images, masks), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


@gpu
@pytest.mark.parametrize("dtype", [torch.bool, torch.float16])
@torch.no_grad()
def test_a_cuda_graph_captures_a_masked_call(model, images, masks, dtype):
    convert_weights(model, torch.float16)
    model.cuda()
    images, alpha = images.cuda(), masks.cuda()
    if dtype != torch.bool:
        alpha = torch.where(alpha, FOREGROUND, -FOREGROUND).to(dtype)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # warms up a copy: this model's own first masked call is the captured one
        copy.deepcopy(model).encode_image(images, alpha)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # raises where the host waits for the device
        features = model.encode_image(images, alpha)
    alpha.copy_(alpha.roll(1, dims=0))
    graph.replay()
    expected = model.encode_image(images, alpha)
    assert_close(features, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


# QuickGELU


def test_quick_gelu_s_own_backward_is_autograd_s():
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(QuickGELU(), x)
    assert torch.autograd.gradgradcheck(QuickGELU(), x)
    ours = torch.autograd.grad(QuickGELU()(x).sum(), x)[0]
    theirs = torch.autograd.grad((x * torch.sigmoid(1.702 * x)).sum(), x)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_quick_gelu_keeps_its_input_alone():
    kept = []
    x = torch.randn(50, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        QuickGELU()(x)
    assert [t.data_ptr() for t in kept] == [x.data_ptr()]


def test_quick_gelu_works_under_torch_func():
    x = torch.randn(4, 5)
    ours = torch.func.vmap(torch.func.grad(lambda row: QuickGELU()(row).sum()))(x)
    y = x.clone().requires_grad_()
    torch.testing.assert_close(ours, torch.autograd.grad(QuickGELU()(y).sum(), y)[0])
