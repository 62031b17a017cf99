"""Fine-tune a model on your own regions, on one GPU or, under torchrun, on many.

    python -m alpha_clip.training --model ViT-B/16 --data my_regions/ --out runs/first
    torchrun --nproc-per-node 8 -m alpha_clip.training --model ViT-B/16 --data "shards/{000..099}.tar" --out runs/first

The same command goes on with a run that was stopped. Then:

    alpha_clip.load("ViT-B/16", alpha_vision_ckpt_pth="runs/first/best.safetensors")
    alpha_clip.load("runs/first/best.safetensors")  # after --train-text

Models of other libraries get an alpha channel with --model hf:FOLDER or open_clip:NAME[:PRETRAINED], and come back as
integrations.open_tower("hf:runs/first/best") or open_tower("open_clip:NAME:runs/first/best.safetensors").
"""

from __future__ import annotations

import argparse
import os
import sys
import typing
import warnings
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from ..api import load
from ..errors import ZeroAlpha
from ..integrations import open_tower
from ..integrations.opening import KINDS
from .config import PRESETS, TrainConfig
from .data import Dataset
from .loop import finetune
from .pictures import open_data
from .records import UnreadableData
from .trainable import Tokenize


def main(arguments: Sequence[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(arguments)
    given = {f.name: getattr(args, f.name) for f in fields(TrainConfig) if getattr(args, f.name) is not None}
    try:
        config = TrainConfig(**(PRESETS[args.preset] | given))
        dataset: Dataset = open_data(args.data)
        validation: Dataset | None = None
        if args.validation:
            validation = open_data(args.validation)
        elif count := min(200, len(dataset) // 10) if args.hold_out is None else args.hold_out:
            dataset, validation = hold_out(dataset, count)
        model, tokenize = _opened(args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        parser.error(" ".join(str(error).split()))  # other libraries' have many lines
    try:
        finetune(
            model, dataset, config, args.out, validation=validation, tokenize=tokenize, tensorboard=args.tensorboard
        )
    except (ValueError, TypeError, OSError, ImportError, UnreadableData, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]  # the rest is about the allocator
        sys.exit(
            f"error: {reason}: raise --accumulate, {config.accumulate}, to cut the batch into smaller parts, or lower "
            f"--batch-size, {config.batch_size}"
        )
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"load it with {_how_to_load(args.model, args.out, config.train_text)}")  # noqa: T201


def _opened(args: argparse.Namespace) -> tuple[nn.Module, Tokenize | None]:
    """The model to train, and its tokenizer unless that is CLIP's."""
    if args.model.partition(":")[0] in KINDS:
        if args.alpha:
            raise ValueError(f"--alpha is for models of this package, and {args.model!r} is another's: leave it out")
        return open_tower(args.model, _device(args.device))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZeroAlpha)  # training begins with these
        return load(args.model, _device(args.device), alpha_vision_ckpt_pth=args.alpha, dtype=torch.float32)[0], None


def _how_to_load(model: str, out: str, with_text: bool) -> str:
    weights = os.path.join(out, "best.safetensors")
    kind, *rest = model.split(":")
    if kind not in KINDS and with_text:  # both towers are in the file, and the base's text tower is not its own
        return f"alpha_clip.load({weights!r})"
    if kind not in KINDS:
        return f"alpha_clip.load({model!r}, alpha_vision_ckpt_pth={weights!r})"
    name = f"hf:{os.path.join(out, 'best')}" if kind == "hf" else f"open_clip:{rest[0]}:{weights}"
    return f"alpha_clip.integrations.open_tower({name!r})"


def hold_out(dataset: Dataset, count: int) -> tuple[Dataset, Dataset]:
    """Split a data set into training and validation data, the latter of `count` pictures, the same at every call.

    Raises:
        ValueError: the data set has fewer than twice as many pictures, or `count` is negative.
    """
    if count < 0:
        raise ValueError(f"--hold-out is {count}, expected at least 0")
    if len(dataset) < 2 * count:
        raise ValueError(
            f"{len(dataset)} pictures are too few to hold {count} out for validation: hold out fewer, or pass "
            "--validation DATA"
        )
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    return Subset(dataset, sorted(order[count:])), Subset(dataset, sorted(order[:count]))  # type: ignore


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m alpha_clip.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="what alpha_clip.load or integrations.open_tower takes")
    parser.add_argument("--data", required=True, help="folder with regions.jsonl, or tar shards")
    parser.add_argument("--out", required=True, help="folder for the run; an unfinished run in it is resumed")
    parser.add_argument("--alpha", help="tag or file of the alpha weights to begin with; default: none, plain CLIP")
    evaluation = parser.add_mutually_exclusive_group()
    evaluation.add_argument("--validation", help="data to evaluate on, as --data")
    evaluation.add_argument(
        "--hold-out", type=int, help="evaluate on this many pictures of --data; default: a tenth, at most 200"
    )
    parser.add_argument("--device", help="default: CUDA if there is one, else MPS, else the CPU")
    parser.add_argument("--preset", choices=PRESETS, default="light", help="settings to begin with")
    parser.add_argument("--tensorboard", action="store_true", help="write metrics for TensorBoard too")
    settings = parser.add_argument_group("settings, which replace those of the preset; the rest have these defaults")
    kinds = typing.get_type_hints(TrainConfig)
    for setting in fields(TrainConfig):
        option = "--" + setting.name.replace("_", "-")
        default = "needed" if setting.default is MISSING else setting.default
        about = f"{setting.metadata['help']} [{default}]".replace("%", "%%")  # a percent sign would be argparse's
        settings.add_argument(option, help=about, **_argument(kinds[setting.name]))
    return parser


def _argument(kind: Any) -> dict[str, Any]:
    """Options of `add_argument` for a field of this type."""
    if typing.get_origin(kind) is typing.Literal:
        return {"choices": typing.get_args(kind)}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": next(t for t in (int, float) if t in (kind, *typing.get_args(kind)))}


def _device(given: str | None) -> str | None:
    """The device that was given; under torchrun, by default, the GPU of this process."""
    if given in (None, "cuda") and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return given


if __name__ == "__main__":
    main()
