"""The comparisons: each function measures lines of the tables, after asserting that all ways agree."""

from __future__ import annotations

import os
import random
import string
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import alpha_clip

from . import peers, roof
from .peers import Peer, assert_equal
from .tables import Line
from .timing import Call, in_turn

FLOAT32, SERVED, BFLOAT16 = 1e-5, 1e-4, 0.05  # largest distance of features, as a share of their norm
NAMES = ["cat", "traffic light", "acoustic guitar", "great white shark", "hen", "balloon", "bulletproof vest", "moon"]
NAMES += ["tree frog", "volcano", "school bus", "espresso", "lighthouse", "toilet paper", "fire truck", "mushroom"]
NAMES += ["sea lion", "coffee mug", "windsor tie", "dog"]


@dataclass(frozen=True)
class Scope:
    """How much is measured."""

    rounds: int
    batches: Sequence[int] = (1, 8)
    prompts: Sequence[int] = (1, 80)
    masks: int = 16
    photos: Sequence[tuple[int, int]] = ((480, 640), (3000, 4000))  # (H, W) of a web picture and of a phone's
    names: int = 20
    templates: int = 80
    texts: int = 1600  # for the tokenizers


def quick() -> Scope:
    return Scope(rounds=1, batches=(1,), prompts=(1, 8), masks=2, photos=((480, 640),), names=2, templates=4, texts=200)


def templates() -> list[str]:
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


def sentences(names: Sequence[str]) -> list[str]:
    return [template.replace("{}", name) for name in names for template in templates()]


def images(models: Sequence[Peer], scope: Scope, dtype: torch.dtype) -> Iterator[Line]:
    for peer in models:
        peer.cast(dtype)
    tolerance, aim = (FLOAT32, 1.07) if dtype == torch.float32 else (BFLOAT16, 1.03)
    for batch in scope.batches:
        image = torch.randn(batch, 3, 224, 224, dtype=dtype)
        ways: dict[str, Call] = {peer.name: partial(peer.image, image) for peer in models}
        check(ways, tolerance)
        roofs = roof.seconds(roof.image_flops(batch), 197 * batch, 768, dtype)
        title = f"image features, {str(dtype).removeprefix('torch.')}, batch {batch}"
        yield Line(title, in_turn(ways, scope.rounds), models[0].name, aim, roofs)


def texts(models: Sequence[Peer], scope: Scope) -> Iterator[Line]:
    for count in scope.prompts:
        prompts = sentences(["cat"])[:count] if count > 1 else ["a photo of a cat"]
        tokens = alpha_clip.tokenize(prompts).long()
        ways: dict[str, Call] = {peer.name: partial(peer.text, tokens) for peer in models}
        check(ways, FLOAT32)
        roofs = roof.seconds(roof.text_flops(count), 77 * count, 512, torch.float32)
        title, aim = ("one prompt", 4.0) if count == 1 else (f"{count} short prompts", 6.0)
        yield Line(f"text features, float32, {title}", in_turn(ways, scope.rounds), models[0].name, aim, roofs)


def masks(scope: Scope, height: int, width: int) -> Line:
    """PIL image and bool masks to features, by one call and by the loop that people write, with the same model."""
    model, preprocess = peers.ours(), alpha_clip.Preprocess(224)
    picture = Image.effect_noise((width, height), 64).convert("RGB")
    marked = np.zeros((scope.masks, height, width), dtype=bool)
    for i, mask in enumerate(marked):
        mask[height // 5 : height // 2 + i, width // 4 : width // 2 + 2 * i] = True

    def together() -> Tensor:
        return model.encode_image(*preprocess(picture, marked))

    def one_by_one() -> Tensor:
        pairs = (preprocess(picture, mask) for mask in marked)
        return torch.cat([model.encode_image(rgb[None], alpha[None]) for rgb, alpha in pairs])

    ways: dict[str, Call] = {"alpha_clip": together, "alpha_clip, a loop over masks": one_by_one}
    torch.nn.init.normal_(model.visual.conv1_alpha.weight, std=0.02)  # masks matter, for once
    try:
        check(ways, FLOAT32)
        times = in_turn(ways, scope.rounds)
    finally:
        torch.nn.init.zeros_(model.visual.conv1_alpha.weight)
    return Line(f"{scope.masks} masks of one {width} x {height} image, PIL to features", times, "alpha_clip", 1.5)


def tokenizers(models: Sequence[Peer], scope: Scope) -> Iterator[Line]:
    models = [peer for peer in models if peer.name != "transformers, eager"]  # it has the tokenizer of "sdpa"
    generator = random.Random(0)

    def word() -> str:
        return "".join(generator.choices(string.ascii_lowercase, k=generator.randint(3, 9)))

    batches = scope.rounds + 2  # one to check, one to warm up
    seen = [sentences(NAMES)[: scope.texts]] * batches
    unseen = [[" ".join(word() for _ in range(8)) for _ in range(scope.texts)] for _ in range(batches)]
    for title, aim, drawn in (("repeating words", 8.0, seen), ("words never seen", 1.3, unseen)):
        ways: dict[str, Call] = {peer.name: map(peer.tokenize, drawn).__next__ for peer in models}
        ids = {name: until_the_end(way()) for name, way in ways.items()}
        wrong = [name for name, others in ids.items() if not torch.equal(others, ids[models[0].name])]
        assert not wrong, f"{', '.join(wrong)}: other token ids"
        times = in_turn(ways, scope.rounds)
        yield Line(f"tokenizer, {scope.texts} texts, {title}", times, models[0].name, aim)


def until_the_end(ids: Tensor) -> Tensor:
    """Replace what follows the end of text by zeros; transformers repeats the end there."""
    ends = (ids == ids.max()).cumsum(dim=-1)
    return ids.long().masked_fill((ends > 1) | (ends == 1) & (ids != ids.max()), 0)


def imports(scope: Scope) -> Line:
    """Import and first call, each in a new process; ``import torch`` is a part of all."""
    programs = {
        "alpha_clip": "import alpha_clip; alpha_clip.tokenize('a cat')",
        "openai-clip": "import clip; clip.tokenize('a cat')",
        "open_clip": "import open_clip; open_clip.tokenize('a cat')",
    }
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(peers.SHIMS), str(Path(__file__).parents[1])])}
    run = partial(subprocess.run, check=True, env=env, stderr=subprocess.DEVNULL)
    ways: dict[str, Call] = {name: partial(run, [sys.executable, "-c", code]) for name, code in programs.items()}
    return Line("import and tokenize", in_turn(ways, scope.rounds), "alpha_clip", 2)


def zero_shot(models: Sequence[Peer], scope: Scope) -> Line:
    """Zero-shot weights of names by our function, by open_clip's, and by the loop over names in CLIP's notebook."""
    from open_clip import build_zero_shot_classifier, tokenize

    names, sentences = NAMES[: scope.names], templates()[: scope.templates]

    def loop(peer: Peer) -> Tensor:
        weights = []
        for name in names:
            features = peer.text(peer.tokenize([sentence.replace("{}", name) for sentence in sentences]))
            weights.append(F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1))
        return torch.stack(weights)

    ways: dict[str, Call] = {
        "alpha_clip": lambda: alpha_clip.zero_shot_classifier(peers.ours(), names, sentences),
        "open_clip": lambda: build_zero_shot_classifier(peers.open_clip_model(), tokenize, names, sentences).T,
    }
    ways |= {peer.name: partial(loop, peer) for peer in models if peer.name in ("transformers, sdpa", "openai-clip")}
    check(ways, FLOAT32)
    title = f"zero-shot classifier, {len(names)} names x {len(sentences)} templates"
    return Line(title, in_turn(ways, scope.rounds, warm_up=0), "alpha_clip", 6)  # the check was its warm-up


def check(ways: dict[str, Call], tolerance: float) -> None:
    assert_equal([way() for way in ways.values()], list(ways), tolerance)


def serving(models: Sequence[Peer], onnx: Sequence[Peer], scope: Scope) -> Iterator[Line]:
    """ONNX Runtime beside torch; our export is left out if this version has none."""
    served = [*onnx, *models]
    ours = next(peer.name for peer in served if peer.name.startswith("alpha_clip"))
    for batch in scope.batches:
        image = torch.randn(batch, 3, 224, 224)
        ways: dict[str, Call] = {peer.name: partial(peer.image, image) for peer in served}
        check(ways, SERVED)
        yield Line(f"CPU serving, image features, float32, batch {batch}", in_turn(ways, scope.rounds), ours, 1.05)
    for count in scope.prompts:
        tokens = alpha_clip.tokenize(sentences(["cat"])[:count]).long()
        ways = {peer.name: partial(peer.text, tokens) for peer in served}
        check(ways, SERVED)
        yield Line(f"CPU serving, text features, float32, {count} prompts", in_turn(ways, scope.rounds), ours)
