"""Load LLaVA, LLaVA-Next or BLIP-2 with an alpha channel, and ask them about a picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import region
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from alpha_clip.errors import IncompatibleCheckpoint
from alpha_clip.integrations import ProcessorWithMask, from_pretrained, load_alpha_weights, processor_with_mask
from alpha_clip.transforms import RegionLost

NOT_ASKED = "not asked"  # begins what stands in place of an answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a model on the Hub or in a folder [a small one with random weights]")
    parser.add_argument("--alpha", help="a tag of alpha weights [those in the folder of --model]")
    parser.add_argument("--weights", default="ViT-L/14@336px", help="the model that --alpha is a tag of")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=region.count, default=12, help="the most tokens of an answer")


def load(args: argparse.Namespace, small: Callable[[], tuple[Any, Any]]) -> tuple[Any, ProcessorWithMask]:
    """Load the model, or else the small one, with alpha weights, and its processor, which takes masks."""
    if args.model is None:
        print(region.NONSENSE)
        made, plain_processor = small()
        return load_alpha_weights(made, "tiny", "scenes"), processor_with_mask(plain_processor)
    if args.alpha is None:
        model: Any = from_pretrained(AutoModelForImageTextToText, args.model, dtype="auto")
        region.check_alpha(model, args.model)
        model.to(args.device).eval()
    else:
        model = plain(args)
        swap(model, args.weights, args.alpha)
    return model, processor(args)


def plain(args: argparse.Namespace) -> Any:
    return AutoModelForImageTextToText.from_pretrained(args.model, dtype="auto").to(args.device).eval()


def processor(args: argparse.Namespace) -> ProcessorWithMask:
    return processor_with_mask(AutoProcessor.from_pretrained(args.model))


def swap(model: Any, weights: str, alpha: str) -> None:
    """Give the model Alpha-CLIP's image tower, or exit with the reason why it does not fit."""
    try:
        load_alpha_weights(model, weights, alpha)
    except IncompatibleCheckpoint as error:
        raise SystemExit(f"{weights} {alpha} does not fit {type(model).__name__}: {error}") from None


def question(prepare: ProcessorWithMask, text: str) -> str:
    """The question as a prompt with a picture, in the model's chat format if it has one; BLIP-2 has none."""
    if getattr(prepare, "chat_template", None) is None:
        return text
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return str(prepare.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


@torch.no_grad()
def say(
    model: Any, prepare: ProcessorWithMask, image: Image.Image, mask: np.ndarray | None, text: str, tokens: int
) -> tuple[str, Tensor]:
    """Return the model's answer, and its logits for the first word of it, (V,)."""
    inputs = prepare(image, mask, text=text).to(model.device, model.dtype)
    first = model(**inputs).logits[0, -1]
    said = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)[0]
    asked = inputs["input_ids"][0]
    if torch.equal(said[: len(asked)], asked):  # all but BLIP-2 with T5 repeat the question
        said = said[len(asked) :]
    return prepare.tokenizer.decode(said, skip_special_tokens=True).strip(), first


def answers(
    model: Any, prepare: ProcessorWithMask, image: Image.Image, mask: np.ndarray, text: str, tokens: int
) -> Iterator[tuple[str, str]]:
    """Yield what the model looks at, and its answer."""
    yield "whole picture", say(model, prepare, image, None, text, tokens)[0]
    for name, where in (("the region", mask), ("all but it", region.rest(mask))):
        if where is None:
            yield name, f"{NOT_ASKED}: the region is the whole picture"
            continue
        try:
            yield name, say(model, prepare, image, where, text, tokens)[0]
        except RegionLost as error:
            yield name, f"{NOT_ASKED}: {error}"
