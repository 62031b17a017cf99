"""Training of other libraries' models, small and random: what is trained, how, and what comes back from the files."""

from __future__ import annotations

import copy
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from distributed_run import Uneven, settings
from PIL import Image
from safetensors.torch import load_file, save_file
from test_objective import assert_same_run, labels, torchrun, unit
from test_training import SIZE, WORDS, Halves, config, tiny_model
from torch import Tensor, nn

from alpha_clip import embed_regions
from alpha_clip.integrations import add_alpha, alpha_of, from_pretrained, open_tower
from alpha_clip.model import FOREGROUND, convert_weights
from alpha_clip.scenes import NOUNS, draw_scene
from alpha_clip.training import TrainConfig, finetune
from alpha_clip.training.__main__ import main
from alpha_clip.training.data import Item, collate
from alpha_clip.training.foreign import trainable
from alpha_clip.training.loss import sigmoid_sum
from alpha_clip.training.objective import Objective, _Counts
from alpha_clip.training.optim import make_optimizers

transformers = pytest.importorskip("transformers", reason='pip install "alpha-clip[test]"')
open_clip = pytest.importorskip("open_clip", reason='pip install "alpha-clip[test]"')

_SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
_VISION = _SIZES | {"num_hidden_layers": 3, "image_size": SIZE, "patch_size": 8}
_TEXT = _SIZES | {"num_hidden_layers": 1, "vocab_size": 8, "max_position_embeddings": 3, "eos_token_id": 7}
_IDS = {"bos_token_id": 5, "pad_token_id": 0}


def _siglip(**text) -> nn.Module:
    model = transformers.SiglipModel(transformers.SiglipConfig(vision_config=_VISION, text_config=_TEXT | _IDS | text))
    with torch.no_grad():  # transformers' own are zero
        model.logit_scale.fill_(np.log(10))
        model.logit_bias.fill_(-4)
    return model


def _clip(**text) -> nn.Module:
    sizes = {"vision_config": _VISION, "text_config": _TEXT | _IDS | text, "projection_dim": 32}
    return transformers.CLIPModel(transformers.CLIPConfig(**sizes))


def _open_clip(**options) -> nn.Module:
    vision = {"image_size": SIZE, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 3, "vocab_size": 8, "width": 32, "heads": 1, "layers": 1}
    return open_clip.CLIP(32, vision, text, **options)


def _open_siglip() -> nn.Module:
    return _open_clip(init_logit_scale=np.log(10), init_logit_bias=-4)


MODELS = {f.__name__[1:]: f for f in (_siglip, _clip, _open_clip, _open_siglip)}


LONG = ("clip", "open_siglip")  # what runs for long is shown by the others


def ids(texts: Sequence[str]) -> Tensor:
    """Start 5, one id for the word, end 7; as those of real tokenizers, it takes a text of nothing too."""
    return torch.tensor([[5, WORDS.index(t) + 1 if t else 0, 7] for t in texts])


every_model = pytest.mark.parametrize("name", MODELS)


def plain(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name](**options).eval()


def made(name: str) -> nn.Module:
    return add_alpha(plain(name))


def first_batch() -> tuple[Tensor, Tensor]:
    batch = collate([Item(i, i, str(i), Halves()[i]) for i in range(1000, 1050)])
    return batch.image, batch.alpha


def image_features(model: nn.Module, pixels: Tensor) -> Tensor:
    if hasattr(model, "encode_image"):
        return model.encode_image(pixels)
    found = model.get_image_features(pixel_values=pixels)
    return getattr(found, "pooler_output", found)


def seen(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return image_features(model.eval(), torch.cat(first_batch(), dim=1))


def accuracy(model: nn.Module) -> float:
    """On halves never trained on; without the mask, one half at best."""
    batch = collate([Item(i, i, str(i), Halves()[i]) for i in range(1000, 1050)])
    with torch.no_grad():
        text = F.normalize(trainable(model).encode_text(ids(batch.texts)), dim=-1)
    named = (F.normalize(seen(model), dim=-1) @ text.T).argmax(dim=1)
    return float((named == batch.text_index).float().mean())


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- the sigmoid loss ---


def sigmoid(image: Tensor, text: Tensor, of, scale: float = 10.0, bias: float = -3.0) -> Tensor:
    return sigmoid_sum(image, text, of, text, of, 0, torch.tensor(scale), torch.tensor(bias))


@torch.no_grad()
def test_without_exclusions_the_sigmoid_loss_is_transformers():
    model = plain("siglip")
    image, ids = torch.randn(6, 3, SIZE, SIZE), torch.randint(0, 8, (6, 3))
    found = model(input_ids=ids, pixel_values=image, return_loss=True)
    of = labels([0, 1, 2, 3, 4, 5])
    scale, bias = trainable(add_alpha(model)).temperature()
    ours = sigmoid_sum(found.image_embeds, found.text_embeds, of, found.text_embeds, of, 0, scale, bias)
    torch.testing.assert_close(ours / 6, found.loss)


def test_the_sigmoid_loss_leaves_out_what_is_no_negative_and_counts_by_weight():
    """Rows: sample 0 is graded, half "a", half its picture's caption; sample 1 is "a" too; 2 and 3 are other things."""
    image, table = unit(4, 8), unit(4, 8, seed=1)
    of = labels([0, 1, 0, 2, 3], [0, 0, 1, 1, 0], {1}, other=[1, 0, 0, 2, 3], weight=[0.6, 0.4, 1, 1, 1])
    v, t = image[[0, 0, 1, 2, 3]], table[[0, 1, 0, 2, 3]]
    negatives = {0: [3, 4], 1: [3], 2: [1, 3, 4], 3: [0, 1, 2, 4], 4: [0, 2, 3]}  # as of contrastive_sum
    total = 0.0
    for p in range(5):
        pairs = -F.logsigmoid(10 * v[p] @ t[p] - 3)
        others = [-of.weight[q] * F.logsigmoid(-(10 * v[p] @ t[q] - 3)) for q in negatives[p]]
        total += of.weight[p] * (pairs + sum(others))
    torch.testing.assert_close(sigmoid(v, t, of), total)


@pytest.mark.parametrize("b", [0.0, 1.0])
def test_a_graded_sample_ends_as_its_region_and_as_the_whole_picture(b):
    v, t = unit(3, 8), unit(4, 8, seed=1)
    two = labels([0, 1, 2, 3], [0, 0, 1, 1], {1}, other=[1, 0, 2, 3], weight=[1 - b, b, 1, 1])
    one = labels([int(b), 2, 3], [0, 1, 1], {0} if b else set())
    torch.testing.assert_close(sigmoid(v[[0, 0, 1, 2]], t, two), sigmoid(v, t[[int(b), 2, 3]], one))


def test_rows_of_a_part_against_all_sum_to_the_whole():
    image, text, every = unit(6, 8), unit(6, 8, seed=1), labels([0, 1, 2, 0, 3, 4], [0, 0, 1, 1, 2, 2], {1})
    parts, temperature = [], (torch.tensor(10.0), torch.tensor(-3.0))
    for rows in (slice(0, 2), slice(2, 6)):
        own = every.map(lambda x, rows=rows: x[rows])
        parts.append(sigmoid_sum(image[rows], text[rows], own, text, every, rows.start, *temperature))
    torch.testing.assert_close(sum(parts), sigmoid(image, text, every))


# --- what a step does ---


def gradients(name: str, tune: TrainConfig, cut: list[int]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of one step on the first 12 pictures, in parts that end at `cut`."""
    model = made(name)
    nn.init.normal_(alpha_of(model)[1].alpha, std=0.1)
    make_optimizers(model, tune)
    objective = Objective(model, tune, ids)
    with torch.no_grad():  # or nothing would have drifted
        for parameter in trainable(model).visual.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    items = [Item(i, i, str(i), Uneven()[i]) for i in range(12)]
    bounds = [0, *cut, 12]
    terms = objective.backward([collate(items[i:j], SIZE) for i, j in itertools.pairwise(bounds)])
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, terms


@every_model
@pytest.mark.parametrize("train_text", [True, False])
def test_gradients_in_parts_are_those_of_the_whole_batch(name, train_text):
    tune = config(train_text=train_text, same_image=0.7, distill=1.0, distill_tokens=0.5)
    whole, terms = gradients(name, tune, [])
    parts, in_parts = gradients(name, tune, [1, 5, 5, 11])  # and one of nothing
    assert terms == pytest.approx(in_parts, rel=1e-5, abs=1e-5) and all(value > 0 for value in terms.values())
    assert whole.keys() == parts.keys()
    assert {"logit_scale", "logit_bias"} & whole.keys() == {n for n in ("logit_scale", "logit_bias") if train_text} & {
        n for n, _ in made(name).named_parameters()
    }
    for key, gradient in whole.items():
        torch.testing.assert_close(parts[key], gradient, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize(("name", "loss"), [("siglip", "sigmoid"), ("clip", "contrastive")])
def test_the_loss_is_the_models_own(name, loss):
    """Of two pictures with one region each, by hand from the model's own features."""
    samples = [replace(s, text=WORDS[i]) for i, s in enumerate(Halves()[0])]
    model = made(name)
    batch = collate([Item(i, i, str(i), [s]) for i, s in enumerate(samples)])
    tune = config(same_image=0.0)
    make_optimizers(model, tune)
    terms = Objective(model, tune, ids).backward([batch])
    v = F.normalize(image_features(model, torch.cat([batch.image, batch.alpha], dim=1)), dim=-1)
    t = F.normalize(trainable(model).encode_text(ids(batch.texts)), dim=-1)
    logits = model.logit_scale.exp() * v @ t.T
    if loss == "sigmoid":
        signs = 2 * torch.eye(2) - 1
        expected = -F.logsigmoid(signs * (logits + model.logit_bias)).sum() / 2
    else:
        own = torch.arange(2)
        expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert terms["loss"] == pytest.approx(expected.item(), rel=1e-5)


# --- a run ---


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LONG)) for n in MODELS])
def test_a_model_learns_to_follow_the_mask(name, tmp_path):
    model = made(name)
    before = {n: p.clone() for n, p in model.named_parameters()}
    tune = config(steps=100, batch_size=16, lr=2e-3, alpha_lr=1e-2, train_text=True)
    assert finetune(model, Halves(), tune, tmp_path, tokenize=ids) is model
    assert not model.training
    assert lines(tmp_path)[-1]["loss"] < 0.5 * lines(tmp_path)[0]["loss"]
    assert accuracy(model) > 0.95
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters() if n != "attn_mask")


@every_model
def test_text_tower_and_temperature_stay_where_they_are_not_trained(name):
    model = made(name)
    before = {n: p.clone() for n, p in model.named_parameters()}
    finetune(model, Halves(20), config(alpha_lr=1e-2), tokenize=ids)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    begins = trainable(model).image_names
    assert moved == {n for n in before if n.startswith(begins)}
    assert alpha_of(model)[1].alpha.any()


@every_model
def test_whole_pictures_are_seen_as_before_when_training_begins(name):
    untouched, model = plain(name), made(name)
    image, _ = first_batch()
    found = trainable(model)
    whole = torch.full_like(image[:, :1], FOREGROUND)
    with torch.no_grad():
        expected = image_features(untouched, image)
        assert torch.equal(found.encode_image(found.visual, image, None), expected)
        assert torch.equal(found.encode_image(found.visual, image, whole), expected)


@every_model
@pytest.mark.parametrize("unlocked", [0, 1])
def test_the_last_blocks_alone_are_unlocked(name, unlocked):
    model = made(name)
    before = {n: p.clone() for n, p in model.named_parameters()}
    tune = config(alpha_lr=1e-2, unlock_blocks=unlocked, optimizer="muon" if unlocked else "adamw")
    if unlocked:
        finetune(model, Halves(20), tune, tokenize=ids)
    else:
        with pytest.warns(UserWarning, match="trains the alpha convolution alone"):
            finetune(model, Halves(20), tune, tokenize=ids)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    alpha = f"{alpha_of(model)[0]}.alpha"
    tail = {
        "siglip": ("vision_model.encoder.layers.2.", "vision_model.post_layernorm.", "vision_model.head."),
        "clip": ("vision_model.encoder.layers.2.", "vision_model.post_layernorm.", "visual_projection."),
    }.get(name, ("visual.transformer.resblocks.2.", "visual.ln_post.", "visual.proj"))
    assert moved == {alpha} | {n for n in before if unlocked and n.startswith(tail)}


@every_model
@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"checkpoint_activations": True}, {"accumulate": 4}])
def test_what_saves_memory_leaves_the_result_nearly_the_same(name, change):
    base = config(alpha_lr=1e-2, distill=1.0, distill_tokens=1.0)
    runs = [finetune(made(name), Halves(20), replace(base, **s), tokenize=ids) for s in ({}, change)]
    start, straight, other = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (made(name), *runs))
    assert (straight - other).norm() <= (0.5 if "precision" in change else 0.01) * (straight - start).norm()
    assert not any(getattr(m, "gradient_checkpointing", False) for m in runs[1].modules())
    assert not any(getattr(m, "grad_checkpointing", False) for m in runs[1].modules())


@every_model
def test_a_stopped_run_resumes_to_the_bit(name, tmp_path):
    settings = config(steps=6, save_every=100, distill=1.0, distill_tokens=0.5, train_text=True)
    straight = finetune(made(name), Halves(20), settings, tmp_path / "straight", tokenize=ids)
    calls = itertools.count()

    def terminated_in_step_2(texts):
        if next(calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        return ids(texts)

    with pytest.raises(SystemExit, match="stopped by a signal after step 2"):
        finetune(made(name), Halves(20), settings, tmp_path / "stopped", tokenize=terminated_in_step_2)
    resumed = finetune(made(name), Halves(20), settings, tmp_path / "stopped", tokenize=ids)
    for (key, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    assert [line["step"] for line in lines(tmp_path / "stopped")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip", "open_clip"])
def test_many_processes_are_as_one(name, tmp_path):
    done = torchrun(2, tmp_path / "two", "--accumulate", "2", "--tower", name)
    assert done.returncode == 0, done.stderr
    finetune(made(name), Uneven(30), settings(), tmp_path / "one", validation=Uneven(12), tokenize=ids)
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("name", ["siglip", "open_clip"])
def test_half_precision_comes_back_as_it_came_and_is_trained_in_float32(name):
    model, kinds = made(name).to(torch.bfloat16), set[torch.dtype]()
    alpha_of(model)[1].register_forward_hook(lambda m, i, o: kinds.add(m.weight.dtype))
    finetune(model, Halves(20), config(alpha_lr=1e-2), tokenize=ids)
    assert kinds == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_our_own_comes_back_as_it_came_where_all_of_it_was_half():
    model = tiny_model().half()
    finetune(model, Halves(20), config(), tokenize=ids)
    assert {p.dtype for p in model.parameters()} == {torch.float16}
    convert_weights(model)


def test_sigmoid_temperature_is_not_held_below_clip_s():
    for name, largest in (("siglip", 150.0), ("clip", 100.0)):
        model = made(name)
        model.logit_scale.data.fill_(np.log(150.0))
        finetune(model, Halves(20), config(steps=2, lr=0.0, train_text=True), tokenize=ids)
        assert model.logit_scale.exp().item() == pytest.approx(largest, rel=1e-5)


# --- files ---


@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_a_model_of_transformers_comes_back_from_its_folder(name, tmp_path):
    model = finetune(made(name), Halves(20), config(alpha_lr=1e-2), tmp_path, tokenize=ids)
    again = from_pretrained(type(model), tmp_path / "best")
    assert alpha_of(again)[1].alpha.any() and torch.equal(seen(again), seen(model))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "last.pt", "metrics.jsonl"]
    type(model).from_pretrained(tmp_path / "best")  # for whoever knows nothing of alpha
    remaining = json.loads((tmp_path / "best" / "config.json").read_text())
    assert remaining["model_type"] == name


@pytest.fixture(scope="module")
def small_open_clip(tmp_path_factory) -> str:
    """The name of a small model that open_clip knows from a file, as it knows its own."""
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}
    path = tmp_path_factory.mktemp("configs") / "small-for-tests.json"
    path.write_text(json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(path)
    return path.stem


def test_a_model_of_open_clip_comes_back_from_its_file(small_open_clip, tmp_path):
    _, words = open_tower(f"open_clip:{small_open_clip}", "cpu")
    assert words(["a dog"]).shape == (1, 16)
    half = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}  # as a tag of pretrained weights says it, and the name not
    model = open_clip.create_model(small_open_clip, force_preprocess_cfg=half, force_quick_gelu=True).eval()
    start = copy.deepcopy(add_alpha(model))
    finetune(model, Halves32(20), config(alpha_lr=1e-2), tmp_path, tokenize=words)
    again, _ = open_tower(f"open_clip:{small_open_clip}:{tmp_path / 'best.safetensors'}", "cpu")
    pixels = torch.randn(2, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.encode_image(pixels), model.encode_image(pixels))
        assert trainable(again).preprocess.transforms[-1].mean == half["mean"]
        assert not torch.equal(again.encode_image(pixels), start.encode_image(pixels))
    assert not again.training
    by_hand = add_alpha(open_clip.create_model(small_open_clip))
    by_hand.load_state_dict(load_file(tmp_path / "best.safetensors"))  # strictly


def test_weights_of_another_model_of_open_clip_are_refused_in_a_few_words(small_open_clip, tmp_path):
    other = open_clip.CLIP(32, {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8}, {"layers": 1})
    torch.save(other.state_dict(), tmp_path / "plain.pt")
    save_file(add_alpha(other).state_dict(), tmp_path / "alpha.safetensors")
    for file in ("plain.pt", "alpha.safetensors"):
        with pytest.raises(ValueError, match=rf"{file} does not fit {small_open_clip}, expected weights of it") as told:
            open_tower(f"open_clip:{small_open_clip}:{tmp_path / file}", "cpu")
        assert len(str(told.value)) < 600


def test_a_plain_file_of_open_clip_s_gives_an_alpha_of_zero(small_open_clip, tmp_path):
    plain_model = open_clip.create_model(small_open_clip)
    torch.save(plain_model.state_dict(), tmp_path / "plain.pt")
    model, _ = open_tower(f"open_clip:{small_open_clip}:{tmp_path / 'plain.pt'}", "cpu")
    assert not alpha_of(model)[1].alpha.any()
    assert torch.equal(model.token_embedding.weight, plain_model.token_embedding.weight)


class Halves32(Halves):
    """The same, larger."""

    def __getitem__(self, index):
        return [
            replace(s, image=F.interpolate(s.image[None], 32)[0], alpha=F.interpolate(s.alpha[None], 32)[0])
            for s in super().__getitem__(index)
        ]


# --- timm's image towers ---


def test_a_timm_tower_of_open_clip_is_trained_block_by_block():
    """As open_clip's SigLIPs are: attention pooling, no class token. timm makes them for 224 pixels only."""
    torch.manual_seed(0)
    vision = {"image_size": 224, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none"}
    text = {"context_length": 3, "vocab_size": 8, "width": 32, "heads": 1, "layers": 1}
    model = add_alpha(open_clip.CustomTextCLIP(192, vision, text, init_logit_bias=-4))
    tune = config(unlock_blocks=1, distill=1.0, distill_tokens=0.5)
    before = {n: p.clone() for n, p in model.named_parameters()}
    make_optimizers(model, tune)
    found = trainable(model)
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        features, tokens = found.encode_image_with_tokens(
            found.visual, pixels, torch.full((1, 1, 224, 224), -FOREGROUND)
        )
    assert tokens.shape == (1, 14 * 14, 192) and features.shape == (1, 192)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    expected = ("visual.trunk.blocks.11.", "visual.trunk.norm.", "visual.trunk.attn_pool.")
    assert trained == {"visual.trunk.patch_embed.proj.alpha"} | {n for n in before if n.startswith(expected)}
    assert found.is_sigmoid and len(found.temperature()) == 2


# --- the patch tokens ---


@pytest.mark.parametrize("name", ["siglip", "clip"])
@torch.no_grad()
def test_patch_tokens_are_the_last_hidden_states_but_one(name):
    model, (image, alpha) = made(name), first_batch()
    found = trainable(model)
    features, tokens = found.encode_image_with_tokens(found.visual, image, alpha)
    states = model.vision_model(torch.cat([image, alpha], dim=1), output_hidden_states=True).hidden_states
    assert torch.equal(tokens, states[-2][:, 1 if name == "clip" else 0 :])
    assert torch.equal(features, seen(model))


@torch.no_grad()
def test_patch_tokens_of_open_clip_come_as_ours_do():
    model, (image, alpha) = made("open_clip"), first_batch()
    found = trainable(model)
    features, tokens = found.encode_image_with_tokens(found.visual, image, alpha)
    expected = model.visual.forward_intermediates(
        torch.cat([image, alpha], dim=1),
        indices=[1],
        output_fmt="NLC",
        intermediates_only=True,
        normalize_intermediates=False,
    )["image_intermediates"][0]
    torch.testing.assert_close(tokens, expected)
    assert torch.equal(features, seen(model))


# --- the regions of a picture, once there is alpha ---


@every_model
def test_embed_regions_sees_through_the_mask(name):
    model = made(name)
    scene = draw_scene(3, 48, objects=(2, 2), overlap=0.0)
    masks = [region.mask for region in scene.regions]
    whole = embed_regions(model, scene.image, masks, "whole")
    torch.testing.assert_close(embed_regions(model, scene.image, masks, "alpha"), whole)
    with pytest.raises(TypeError, match="takes no mask"):
        embed_regions(plain(name), scene.image, masks, "alpha")
    nn.init.normal_(alpha_of(model)[1].alpha, std=0.1)
    found = embed_regions(model, scene.image, masks, "alpha")
    rgb, alpha = trainable(model).preprocess(Image.fromarray(scene.image), masks, geometry="pad")
    with torch.no_grad():
        expected = image_features(model, torch.cat([rgb.expand(2, -1, -1, -1), alpha], dim=1))
    torch.testing.assert_close(found, F.normalize(expected, dim=-1))


# --- the command ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A SigLIP and its tokenizer, of a word a token, as `save_pretrained` writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "a", "and", ",", *NOUNS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    at = tmp_path_factory.mktemp("siglip")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(at)
    plain("siglip", vocab_size=len(words), max_position_embeddings=8).save_pretrained(at)
    return at


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """24 drawn scenes as a folder with regions.jsonl."""
    at = tmp_path_factory.mktemp("my_regions")
    records = []
    for i in range(24):
        scene = draw_scene(i, 32, objects=(2, 2), nouns=NOUNS[:6])
        Image.fromarray(scene.image).save(at / f"{i}.png")
        for region in scene.regions:
            box = list(map(int, region.box))
            records.append({"image": f"{i}.png", "text": f"a {region.noun}", "caption": scene.caption, "mask": box})
    (at / "regions.jsonl").write_text("\n".join(map(json.dumps, records)))
    return at


SMOKE = ["--preset", "smoke", "--workers", "0", "--device", "cpu", "--steps", "4", "--batch-size", "8"]


def test_the_command_takes_a_folder_of_transformers_and_what_it_wrote_is_one(folder, data, tmp_path, capsys):
    out = tmp_path / "run"
    main(["--model", f"hf:{folder}", "--data", str(data), "--out", str(out), *SMOKE, "--hold-out", "4"])
    name = f"hf:{out / 'best'}"
    assert f"load it with alpha_clip.integrations.open_tower('{name}')" in capsys.readouterr().out
    assert "region_accuracy" in lines(out)[-1]
    model, words = open_tower(name, "cpu")
    assert alpha_of(model)[1].alpha.any() and words(["a cat and a dog"]).shape == (1, 8)
    main(["--model", name, "--data", str(data), "--out", str(tmp_path / "more"), *SMOKE, "--distill", "1"])
    assert len(lines(tmp_path / "more")) == 4


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_pixels_are_those_of_the_folder_s_own_processor_and_of_what_was_trained(file, folder, data, tmp_path):
    at, mean, std = tmp_path / "model", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    shutil.copytree(folder, at)
    assert trainable(open_tower(f"hf:{at}", "cpu")[0]).preprocess.transforms[-1].mean == (0.5, 0.5, 0.5)  # SigLIP's
    own = transformers.SiglipImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=mean, image_std=std)
    own.save_pretrained(at)
    if file == "processor_config.json":  # of transformers 5, which a processor of images and texts writes
        (at / file).write_text(json.dumps({"image_processor": own.to_dict()}))
        (at / "preprocessor_config.json").write_text("{}")
    main(["--model", f"hf:{at}", "--data", str(data), "--out", str(tmp_path / "run"), *SMOKE, "--hold-out", "0"])
    picture = Image.fromarray(draw_scene(1, 32).image).resize((SIZE, SIZE))
    expected = own(picture, return_tensors="pt")["pixel_values"]
    for name in (at, tmp_path / "run" / "best"):
        model, _ = open_tower(f"hf:{name}", "cpu")
        torch.testing.assert_close(trainable(model).preprocess(picture)[None], expected, rtol=0, atol=1e-5)
        whole = embed_regions(model, picture, [np.ones((SIZE, SIZE), bool)], "whole")
        with torch.no_grad():
            torch.testing.assert_close(whole, F.normalize(image_features(model, expected), dim=-1))


def test_a_processor_that_does_not_normalise_or_is_none(folder, tmp_path):
    at = tmp_path / "model"
    shutil.copytree(folder, at)
    file = at / "preprocessor_config.json"
    file.write_text('{"do_normalize": false, "image_mean": [0.5, 0.5, 0.5]}')
    preprocess = trainable(open_tower(f"hf:{at}", "cpu")[0]).preprocess
    white = preprocess(Image.new("RGB", (SIZE, SIZE), "white"))
    assert torch.equal(white, torch.ones_like(white))
    for content, message in (
        ("[1]", "preprocessor_config.json is not what an image processor's save_pretrained writes"),
        ("{", "is not what an image processor's save_pretrained writes: Expecting"),
        ('{"image_std": 0.5}', "is not what an image processor's save_pretrained writes: .*not iterable"),
        ('{"image_std": [0.5]}', r"image_std in .* is \[0.5\], expected 3 numbers, of RGB"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            open_tower(f"hf:{at}", "cpu")


def test_the_command_takes_a_model_of_open_clip_and_what_it_wrote(small_open_clip, data, tmp_path, capsys):
    model = f"open_clip:{small_open_clip}"
    main(["--model", model, "--data", str(data), "--out", str(tmp_path), *SMOKE, "--hold-out", "0"])
    name = f"{model}:{tmp_path / 'best.safetensors'}"
    assert f"load it with alpha_clip.integrations.open_tower('{name}')" in capsys.readouterr().out
    assert alpha_of(open_tower(name, "cpu")[0])[1].alpha.any()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("hf:nowhere", "nowhere is no folder, expected one that save_pretrained wrote"),
        ("hf:", "the model is 'hf:', expected hf:FOLDER, open_clip:NAME"),
        ("open_clip:ViT-Z-1", "expected one of open_clip.list_models(), such as ViT-"),
        (
            "open_clip:hf-hub:timm/ViT-B-16-SigLIP2",
            "SigLIP2' is no model that open_clip knows by itself",
        ),
        ("hf:vision", "'siglip_vision_model', expected a model of images and texts, CLIP or SigLIP"),
        ("hf:untold", "untold holds no tokenizer: put the model's there"),
    ],
)
def test_what_is_wrong_with_a_name_is_one_line(data, tmp_path, monkeypatch, capsys, model, message):
    monkeypatch.chdir(tmp_path)
    plain("siglip").save_pretrained("untold")
    transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**_VISION)).save_pretrained("vision")
    with pytest.raises(SystemExit) as ended:
        main(["--model", model, "--data", str(data), "--out", "run", *SMOKE])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and "error: " in said and message in said
    assert not Path("run").exists()


def test_alpha_weights_by_tag_are_for_our_own(folder, data, tmp_path, capsys):
    arguments = ["--model", f"hf:{folder}", "--data", str(data), "--out", str(tmp_path / "run"), "--alpha", "grit1m"]
    with pytest.raises(SystemExit):
        main([*arguments, *SMOKE])
    assert "--alpha is for models of this package" in capsys.readouterr().err


def test_a_setting_that_the_model_cannot_have_is_one_line(folder, data, tmp_path):
    arguments = ["--model", f"hf:{folder}", "--data", str(data), "--out", str(tmp_path / "run"), *SMOKE]
    with pytest.raises(SystemExit, match=r"error: TrainConfig\.unlock_blocks is 9, expected 0 to 3, the blocks there"):
        main([*arguments, "--unlock-blocks", "9"])


@pytest.mark.slow
def test_the_example_trains_measures_and_goes_on_where_it_was(tmp_path):
    command = [sys.executable, "-W", "error", "examples/siglip_alpha.py", "--quick", "--out", str(tmp_path)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    tables = []
    for _ in range(2):
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], env=env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        tables.append(done.stdout)
    assert tables[0] == tables[1]
    for row in ("base, crop", "tuned on crops, crop", "with alpha, mask", "mask less the base's crop"):
        assert re.search(rf"^\| {row} \| -?\d+\.\d% \[.*\] \| .* \| .* \|$", tables[0], re.M), row
    assert (tmp_path / "base" / "model.safetensors").exists() and (tmp_path / "alpha" / "best").is_dir()


# --- what is refused ---


def test_a_model_without_alpha_or_tokenizer_is_refused():
    with pytest.raises(ValueError, match="SiglipModel has no alpha channel: call add_alpha on it first"):
        finetune(plain("siglip"), Halves(20), config(), tokenize=ids)
    with pytest.raises(ValueError, match="SiglipModel does not come with its tokenizer: pass tokenize="):
        finetune(made("siglip"), Halves(20), config())
    with pytest.raises(TypeError, match="the model is Linear, expected one from"):
        finetune(nn.Linear(3, 3), Halves(20), config())


def test_packed_patches_are_refused():
    sizes = {"vision_config": {k: v for k, v in _VISION.items() if k != "image_size"}, "text_config": _TEXT | _IDS}
    model = transformers.Siglip2Model(transformers.Siglip2Config(**sizes))
    with pytest.raises(TypeError, match="the model is transformers' 'siglip2', expected one of 'clip', 'siglip'"):
        finetune(add_alpha(model), Halves(20), config(), tokenize=ids)


def test_a_text_decoder_is_refused():
    model = made("open_clip")
    model.visual.output_tokens = True
    with pytest.raises(TypeError, match="CLIP has a text decoder, expected a CLIP or SigLIP"):
        trainable(model)


@pytest.mark.parametrize("settings", [{"unlock_blocks": 1}, {"distill": 1.0, "distill_tokens": 1.0, "whole": 1.0}])
def test_a_tower_whose_blocks_are_not_known_has_no_such_settings(settings):
    model = made("open_clip")
    visual = model.visual
    model.visual = Unknown(visual)
    name = next(k for k in settings if k in ("unlock_blocks", "distill_tokens"))
    remedy = {"unlock_blocks": "leave it out", "distill_tokens": r"set it to 0 \(--distill-tokens 0\)"}[name]
    expected = (
        rf"TrainConfig\.{name} needs an image tower of transformer blocks, .*Unknown is not known to be: {remedy}$"
    )
    with pytest.raises(ValueError, match=expected):
        finetune(model, Halves(20), config(**settings), tokenize=ids)
    finetune(model, Halves(20), config(steps=2), tokenize=ids)


class Unknown(nn.Module):
    """A tower of another make."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.image_size = inner, SIZE

    def forward(self, pixels: Tensor) -> Tensor:
        return self.inner(pixels)


# --- dropout, batch norm ---


def with_dropout() -> nn.Module:
    torch.manual_seed(0)
    config_ = transformers.CLIPConfig(
        vision_config=_VISION | {"attention_dropout": 0.3}, text_config=_TEXT | _IDS | {"attention_dropout": 0.3}
    )
    model = add_alpha(transformers.CLIPModel(config_))
    nn.init.normal_(alpha_of(model)[1].alpha, std=0.1)
    return model


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stopped_run_with_dropout_resumes_to_the_bit(workers, tmp_path):
    settings = config(steps=6, workers=workers, evaluate_every=2, train_text=True)
    data = {"validation": Halves(4)}
    straight = finetune(with_dropout(), Halves(20), settings, tmp_path / "straight", tokenize=ids, **data)
    calls = itertools.count()

    def terminated_in_step_3(texts):
        if next(calls) == 3:  # the third is the evaluation's
            signal.raise_signal(signal.SIGTERM)
        return ids(texts)

    with pytest.raises(SystemExit, match="stopped by a signal after step 3"):
        finetune(with_dropout(), Halves(20), settings, tmp_path / "stopped", tokenize=terminated_in_step_3, **data)
    resumed = finetune(with_dropout(), Halves(20), settings, tmp_path / "stopped", tokenize=ids, **data)
    for (key, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def test_parts_are_run_again_with_the_same_dropout():
    model = with_dropout().train()
    tune = config(accumulate=2, same_image=0.0, train_text=True)
    make_optimizers(model, tune)
    objective = Objective(model, tune, ids)
    batches = [collate([Item(i, i, str(i), Uneven()[i]) for i in range(n, n + 6)], SIZE) for n in (0, 6)]
    torch.manual_seed(1)
    objective.backward(batches)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.manual_seed(1)
    parts = [objective._inputs(batch) for batch in batches]
    features = [objective.towers(part) for part in parts]
    named = sum(int((batch.first_text >= 0).sum()) for batch in batches)
    _, loss = objective._compare(parts, features, _Counts(sum(map(len, batches)), named, 0, 0))
    loss.backward()
    for name, gradient in found.items():
        torch.testing.assert_close(
            model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_batch_norm_is_not_cut_into_parts():
    model = made("open_clip")
    model.visual.norm = nn.BatchNorm2d(3)
    with pytest.raises(
        ValueError, match=r"TrainConfig\.accumulate is 2 and CLIP has batch norm, .*: set it to 1 \(--acc"
    ):
        finetune(model, Halves(20), config(accumulate=2), tokenize=ids)
    finetune(model, Halves(20), config(steps=2), tokenize=ids)


def test_the_model_comes_back_without_gradients_and_with_nothing_frozen():
    model = made("open_clip")
    model.logit_scale.requires_grad_(False)
    finetune(model, Halves(20), config(steps=2, unlock_blocks=1), tokenize=ids)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["logit_scale"]
    assert all(p.grad is None for p in model.parameters())
