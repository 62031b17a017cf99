"""What the towers leave out changes nothing, and is not left out where somebody may count on it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from alpha_clip import model as model_module
from alpha_clip.model import CLIP, _parts
from alpha_clip.transformer import LayerNorm, ResidualAttentionBlock, is_watched

CONTEXT, END = 16, 511  # the end-of-text token has the highest id
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 5e-2, torch.float16: 5e-3}
SLOW_VMAP = pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, of its attention
fuzz = settings(max_examples=40, deadline=None, derandomize=True)


def build() -> CLIP:
    torch.manual_seed(0)
    model = CLIP(64, 32, 3, 128, 8, CONTEXT, END + 1, 128, 2, 3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


MODEL = build()
OF_DTYPE = {dtype: copy.deepcopy(MODEL).to(dtype) for dtype in DTYPES}


def text_by_hand(model, text):
    """OpenAI's encode_text, over all places."""
    x = model.token_embedding(text).type(model.dtype) + model.positional_embedding[: text.shape[1]].type(model.dtype)
    x = model.ln_final(model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))
    return x[torch.arange(len(x)), text.argmax(dim=-1)] @ model.text_projection


def image_by_hand(model, image, alpha):
    return model.visual.project(model.visual.tokens(image, alpha)[:, 0])


def texts(ends, length=CONTEXT):
    """Random tokens with the end of text at `ends`; what follows it is random too."""
    tokens = torch.randint(0, END, (len(ends), length), generator=torch.Generator().manual_seed(len(ends)))
    for row, end in zip(tokens, ends, strict=True):
        row[end] = END
    return tokens


def assert_near(ours, expected):
    """As close as the dtype allows, the largest value being the measure."""
    tolerance = DTYPES[expected.dtype]
    assert_close(ours, expected, rtol=tolerance, atol=tolerance * max(1, float(expected.abs().max())))


class Embeddings(TorchFunctionMode):
    """Notes the shape of what is embedded, which no hook could without switching the shortcuts off."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is nn.functional.embedding:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def lengths_seen(model, tokens):
    """(texts, places) of each pass through the text tower."""
    with Embeddings() as mode:
        model.encode_text(tokens)
    return mode.shapes


# Equal to the straightforward computation


@fuzz
@given(
    ends=st.lists(st.integers(0, CONTEXT - 1), min_size=1, max_size=40),
    dtype=st.sampled_from(list(DTYPES)),
    kind=st.sampled_from([torch.int32, torch.int64]),
)
@torch.no_grad()
def test_text_features_are_those_of_all_places(ends, dtype, kind):
    model, tokens = OF_DTYPE[dtype], texts(ends).to(kind)
    assert_near(model.encode_text(tokens), text_by_hand(model, tokens))


@fuzz
@given(length=st.integers(1, CONTEXT), data=st.data())
@torch.no_grad()
def test_text_features_of_shorter_inputs(length, data):
    tokens = texts(data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=5)), length)
    assert_close(MODEL.encode_text(tokens), text_by_hand(MODEL, tokens), **TOLERANCE)


@torch.no_grad()
def test_the_first_of_equally_high_tokens_is_the_end():
    tokens = torch.full((2, CONTEXT), 7)
    assert_close(MODEL.encode_text(tokens), text_by_hand(MODEL, tokens), **TOLERANCE)
    tokens[:, [3, 9]] = END
    assert_close(MODEL.encode_text(tokens), text_by_hand(MODEL, tokens), **TOLERANCE)


@torch.no_grad()
def test_no_text_at_all_gives_no_features():
    assert MODEL.encode_text(torch.zeros(0, CONTEXT, dtype=torch.int64)).shape == (0, 64)


@fuzz
@given(
    batch=st.integers(1, 5),
    masks=st.sampled_from(["none", "one", "each"]),
    size=st.tuples(st.sampled_from([8, 24, 32, 40]), st.sampled_from([16, 32])),
    dtype=st.sampled_from(list(DTYPES)),
)
@torch.no_grad()
def test_image_features_are_those_of_all_tokens(batch, masks, size, dtype):
    model, generator = OF_DTYPE[dtype], torch.Generator().manual_seed(batch)
    image = torch.randn(batch, 3, *size, generator=generator)
    alpha = None if masks == "none" else torch.rand(1 if masks == "one" else batch, *size, generator=generator) > 0.5
    assert_near(model.encode_image(image, alpha), image_by_hand(model, image, alpha))


@fuzz
@given(
    length=st.integers(1, 20),
    members=st.integers(1, 4),
    masked=st.sampled_from(["no", "square", "each head"]),
    one_query=st.booleans(),
    dtype=st.sampled_from(list(DTYPES)),
)
@torch.no_grad()
def test_attention_is_that_of_nn_multihead_attention(length, members, masked, one_query, dtype):
    attn = OF_DTYPE[dtype].visual.transformer.resblocks[0].attn
    y = torch.randn(length, members, 128, generator=torch.Generator().manual_seed(length)).to(dtype)
    query = y[:1].clone() if one_query else y
    shape = {"no": None, "square": (len(query), length), "each head": (2 * members, len(query), length)}[masked]
    mask = None if shape is None else torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours = attn(query, y, y, need_weights=False, attn_mask=mask)[0]
    theirs = nn.MultiheadAttention.forward(attn, query, y, y, need_weights=False, attn_mask=mask)[0]
    assert_close(ours, theirs, rtol=DTYPES[dtype], atol=DTYPES[dtype])


@pytest.mark.parametrize("unusual", ["weights", "padding", "bool mask", "values", "causal"])
@torch.no_grad()
def test_attention_called_otherwise_is_the_parent_s(unusual):
    attn, y = MODEL.visual.transformer.resblocks[0].attn, torch.randn(5, 2, 128)
    given = {
        "weights": {"need_weights": True},
        "padding": {"key_padding_mask": torch.tensor([[False] * 4 + [True]] * 2)},
        "bool mask": {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)},
        "causal": {"is_causal": True, "attn_mask": torch.full((5, 5), float("-inf")).triu(1)},
        "values": {},
    }[unusual]
    given = {"need_weights": False} | given
    value = 2 * y if unusual == "values" else y
    assert_close(attn(y, y, value, **given), nn.MultiheadAttention.forward(attn, y, y, value, **given), rtol=0, atol=0)


def test_gradients_of_text_are_those_of_all_places():
    model, tokens = copy.deepcopy(OF_DTYPE[torch.float64]), texts([2, 14, 5, 5, 9])

    def gradients(features):
        model.zero_grad()
        features.square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    ours, theirs = gradients(model.encode_text(tokens)), gradients(text_by_hand(model, tokens))
    assert ours.keys() == theirs.keys() and len(ours) > 30
    for name, gradient in theirs.items():
        assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12)


def test_checkpointing_changes_no_gradient():
    tokens, gradients = texts([2, 14, 5]), []
    for checkpointing in (False, True):
        model = copy.deepcopy(MODEL)
        model.transformer.checkpointing = checkpointing
        model.encode_text(tokens).square().sum().backward()
        gradients.append(model.token_embedding.weight.grad)
    assert_close(*gradients, **TOLERANCE)


# In parts


@pytest.mark.parametrize(
    ("lengths", "worth", "parts"),
    [
        ([7], 1, [[7]]),
        ([5, 5, 5], 1, [[5, 5, 5]]),
        ([2, 2, 9, 9], 14, [[2, 2], [9, 9]]),
        ([2, 2, 9, 9], 15, [[2, 2, 9, 9]]),
        ([1, 5, 9], 2, [[1], [5], [9]]),
    ],
)
def test_texts_are_parted_where_that_spares_enough(monkeypatch, lengths, worth, parts):
    monkeypatch.setattr(model_module, "_WORTH_A_PART", worth)
    assert _parts(lengths) == parts


@torch.no_grad()
def test_texts_in_parts_come_back_in_their_order(monkeypatch):
    monkeypatch.setattr(model_module, "_WORTH_A_PART", 4)
    tokens = texts([9, 1, 14, 1, 9, 2])
    assert lengths_seen(MODEL, tokens) == [(3, 3), (2, 10), (1, 15)]
    assert_close(MODEL.encode_text(tokens), text_by_hand(MODEL, tokens), **TOLERANCE)


@torch.no_grad()
def test_texts_are_cut_to_the_longest():
    assert lengths_seen(MODEL, texts([2, 5, 3])) == [(3, 6)]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("masks", [None, 1, 7])
@torch.no_grad()
def test_a_batch_in_parts_is_the_batch(count, masks):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1 if masks == 7 else 7, 3, 32, 32, generator=generator)
    alpha = None if masks is None else torch.rand(masks, 32, 32, generator=generator) > 0.5
    assert_close(MODEL.encode_image(image, alpha, batch=count), MODEL.encode_image(image, alpha), **TOLERANCE)


@torch.no_grad()
def test_no_more_than_a_part_goes_through_the_tower_at_once(images):
    model, seen = copy.deepcopy(MODEL), []
    model.visual.ln_pre.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    model.encode_image(images[:1], torch.ones(5, 32, 32, dtype=torch.bool), batch=2)
    assert seen == [2, 2, 1]


def test_a_batch_below_one_is_an_error(images):
    with pytest.raises(ValueError, match="batch is 0, expected 1 or more images or masks at a time"):
        MODEL.encode_image(images, batch=0)


# Whoever watches sees all of it


class Wrapped(nn.Module):
    """A stand-in that counts on nothing, as adapters are."""

    def __init__(self, inner, seen):
        super().__init__()
        self.inner, self.seen = inner, seen

    def forward(self, x, *args, **kwargs):
        self.seen.append(tuple(x.shape))
        return self.inner(x, *args, **kwargs)


class Same(nn.Module):
    def forward(self, x):
        return x


def watch(model, name, kind, seen):
    """Let `seen` have the shapes that reach a module of `model`."""
    module = model.get_submodule(name)

    def note(module, args, *more):
        seen.append(tuple(args[0].shape))

    if kind == "hook":
        module.register_forward_hook(note)
    elif kind == "pre-hook":
        module.register_forward_pre_hook(note)
    elif kind == "patch":
        original = module.forward
        module.forward = lambda *args, **kwargs: seen.append(tuple(args[0].shape)) or original(*args, **kwargs)
    else:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Wrapped(module, seen))


@pytest.mark.parametrize("kind", ["hook", "pre-hook", "patch", "replaced"])
@pytest.mark.parametrize(
    "name",
    [
        "token_embedding",
        "transformer",
        "transformer.resblocks",
        "transformer.resblocks.1",
        "transformer.resblocks.0.mlp",
        "transformer.resblocks.2.mlp.c_fc",
        "ln_final",
    ],
)
@torch.no_grad()
def test_whoever_watches_the_text_tower_sees_all_places(name, kind):
    model, tokens, seen = copy.deepcopy(MODEL), texts([2, 5, 3]), []
    expected = model.encode_text(tokens)
    watch(model, name, kind, seen)
    assert_close(model.encode_text(tokens), expected, **TOLERANCE)
    (shape,) = seen
    assert sorted(shape[:2]) == [3, CONTEXT]


def test_backward_hooks_see_all_places():
    model, tokens, seen = copy.deepcopy(MODEL), texts([2, 5, 3]), []
    model.ln_final.register_full_backward_hook(lambda module, into, out: seen.append(tuple(out[0].shape)))
    model.encode_text(tokens).sum().backward()
    assert seen == [(3, CONTEXT, 128)]


@torch.no_grad()
def test_global_hooks_see_all_places(images):
    seen = []

    def note(module, args, output):
        if isinstance(module, LayerNorm):
            seen.append(tuple(output.shape[:2]))

    with nn.modules.module.register_module_forward_hook(note):
        MODEL.encode_text(texts([2, 5, 3]))
        MODEL.visual(images)
    assert set(seen[:6]) == {(CONTEXT, 3)} and seen[6] == (3, CONTEXT)
    assert seen[8:14] == [(17, 3)] * 6


@pytest.mark.parametrize("tower", ["transformer", "visual.transformer"])
@pytest.mark.parametrize("method", ["forward", "attention"])
@torch.no_grad()
def test_a_block_patched_for_all_is_called(monkeypatch, images, tower, method):
    expected = MODEL.encode_text(texts([2, 5, 3])), MODEL.encode_image(images)
    seen, original = [], getattr(ResidualAttentionBlock, method)

    def patched(self, x):
        seen.append(tuple(x.shape[:2]))
        return original(self, x)

    monkeypatch.setattr(ResidualAttentionBlock, method, patched)
    assert_close((MODEL.encode_text(texts([2, 5, 3])), MODEL.encode_image(images)), expected, **TOLERANCE)
    assert seen == [(CONTEXT, 3)] * 3 + [(17, 3)] * 3


@pytest.mark.parametrize("how", ["parametrized", "weight norm"])
@pytest.mark.parametrize("name", ["attn.out_proj", "mlp.c_proj"])
@torch.no_grad()
def test_parametrised_weights_switch_the_shortcuts_off(images, how, name):
    model, tokens = copy.deepcopy(MODEL), texts([2, 5, 3])
    expected = model.encode_text(tokens), model.encode_image(images)
    for tower in (model.transformer, model.visual.transformer):
        module = tower.resblocks[-1].get_submodule(name)
        if how == "parametrized":
            parametrize.register_parametrization(module, "weight", Same())
        else:
            parametrizations.weight_norm(module)
    assert is_watched(model.transformer, slice(-1, None))
    assert is_watched(model.visual.transformer, slice(-1, None))
    assert_close((model.encode_text(tokens), model.encode_image(images)), expected, **TOLERANCE)


@torch.no_grad()
def test_peft_s_lora_switches_the_shortcuts_off_and_changes_nothing_at_first(images):
    peft = pytest.importorskip("peft", reason="pip install peft to try its adapters")
    model, tokens = copy.deepcopy(MODEL), texts([2, 5, 3])
    expected = model.encode_text(tokens), model.encode_image(images)
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["c_fc", "c_proj"]), model)
    assert is_watched(model.transformer, slice(-1, None))
    assert_close((model.encode_text(tokens), model.encode_image(images)), expected, **TOLERANCE)


@torch.no_grad()
def test_a_replaced_tower_or_block_is_called_whole(images):
    model, tokens = copy.deepcopy(MODEL), texts([2, 5, 3])
    expected = model.encode_text(tokens), model.encode_image(images)
    model.transformer.resblocks[-1] = nn.Sequential(model.transformer.resblocks[-1], Same())
    seen = []
    model.visual.transformer = Wrapped(model.visual.transformer, seen)
    assert_close((model.encode_text(tokens), model.encode_image(images)), expected, **TOLERANCE)
    assert seen == [(17, 3, 128)]


@pytest.mark.parametrize("how", ["other", "written to", "none"])
@torch.no_grad()
def test_a_text_mask_that_looks_ahead_is_obeyed(how):
    model, tokens = copy.deepcopy(MODEL), texts([2, 5, 3])
    before = model.encode_text(tokens)
    block = model.transformer.resblocks[0]
    if how == "written to":
        block.attn_mask.zero_()
    else:
        block.attn_mask = torch.zeros(CONTEXT, CONTEXT) if how == "other" else None
    features = model.encode_text(tokens)
    assert_close(features, text_by_hand(model, tokens), **TOLERANCE)
    assert (features - before).abs().max() > 1e-3


@torch.inference_mode()
def test_a_mask_made_in_inference_mode_is_read_each_time():
    model, tokens = copy.deepcopy(MODEL), texts([2, 5, 3])
    for block in model.transformer.resblocks:
        block.attn_mask = block.attn_mask.clone()
    assert lengths_seen(model, tokens) == [(3, 6)]
    model.transformer.resblocks[0].attn_mask.zero_()
    assert lengths_seen(model, tokens) == [(3, CONTEXT)]
    assert_close(model.encode_text(tokens), text_by_hand(model, tokens), **TOLERANCE)


# Where nobody may look at values, lengths stay


@torch.no_grad()
def test_one_compiled_text_tower_serves_all_lengths():
    compiled = torch.compile(MODEL.encode_text, fullgraph=True, backend="eager")
    for ends in ([2, 5, 3], [14, 1, 1]):
        assert_close(compiled(texts(ends)), text_by_hand(MODEL, texts(ends)), **TOLERANCE)


@torch.no_grad()
def test_an_exported_text_tower_serves_all_lengths():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = MODEL

        def forward(self, tokens):
            return self.model.encode_text(tokens)

    exported = torch.export.export(Text(), (texts([2, 5, 3]),)).module()
    assert_close(exported(texts([14, 1, 1])), text_by_hand(MODEL, texts([14, 1, 1])), **TOLERANCE)


@SLOW_VMAP
@torch.no_grad()
def test_the_towers_work_under_vmap(images):
    tokens = texts([2, 5, 3, 9])
    assert_close(
        torch.func.vmap(MODEL.encode_text)(tokens.reshape(2, 2, CONTEXT)).flatten(0, 1),
        MODEL.encode_text(tokens),
        **TOLERANCE,
    )
    assert_close(torch.func.vmap(lambda x: MODEL.visual(x[None])[0])(images), MODEL.visual(images), **TOLERANCE)


@SLOW_VMAP
def test_gradients_per_sample_through_torch_func():
    parameters = {name: p.detach() for name, p in MODEL.named_parameters()}
    tokens = texts([2, 5, 3])

    def loss(parameters, row):
        names = {f"model.{name}": value for name, value in parameters.items()}
        return torch.func.functional_call(Verb(MODEL), names, (row[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, tokens)
    model = copy.deepcopy(MODEL)
    model.encode_text(tokens[1:2]).square().sum().backward()
    assert_close(each["text_projection"][1], model.text_projection.grad, rtol=1e-4, atol=1e-4)


class Verb(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model.encode_text(tokens)


def test_quick_gelu_under_a_gradient_of_a_vmap():
    x = torch.randn(4, 5)
    gelu = model_module.QuickGELU()
    ours = torch.func.grad(lambda x: torch.func.vmap(gelu)(x).sum())(x)
    y = x.clone().requires_grad_()
    assert_close(ours, torch.autograd.grad((y * torch.sigmoid(1.702 * y)).sum(), y)[0])


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and warns of every check of a shape
@torch.no_grad()
def test_traced_text_keeps_its_lengths():
    traced = torch.jit.trace(Verb(MODEL), (texts([2, 5, 3]),), check_trace=False)
    assert_close(traced(texts([14, 1, 1])), text_by_hand(MODEL, texts([14, 1, 1])), **TOLERANCE)
