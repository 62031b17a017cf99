"""Small random checkpoints, for the tests of what reads them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from alpha_clip.model import CLIP
from alpha_clip.tokenizer import tokenize

KNOWN_WORDS = "a dog, a cat."  # the vocabulary of the packed checkpoint
SIZE = 32  # pixels


def clip(seed: int = 0, *, vocab_size: int = 100, vision_width: int = 64, vision_layers: int = 2) -> dict[str, Tensor]:
    """The state dict of a CLIP with alpha weights that are not zero."""
    torch.manual_seed(seed)
    model = CLIP(
        embed_dim=32,
        image_resolution=SIZE,
        vision_layers=vision_layers,
        vision_width=vision_width,
        vision_patch_size=8,
        context_length=77,
        vocab_size=vocab_size,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=1,
    )
    torch.nn.init.normal_(model.visual.conv1_alpha.weight, std=0.1)
    return model.state_dict()


def plain_clip(seed: int = 0, **sizes: int) -> dict[str, Tensor]:
    """As OpenAI's: no alpha weights."""
    state = clip(seed, **sizes)
    del state["visual.conv1_alpha.weight"]
    return state


def image_tower(seed: int = 1, **sizes: int) -> dict[str, Tensor]:
    """An image tower alone, with alpha weights, in the names of nn.Module.state_dict()."""
    return {k.removeprefix("visual."): v for k, v in clip(seed, **sizes).items() if k.startswith("visual.")}


def authors_tower(seed: int = 1, **sizes: int) -> dict[str, Tensor]:
    """The same as the Alpha-CLIP authors' files name it."""
    return {k.replace("attn.in_proj_", "attn.in_proj."): v for k, v in image_tower(seed, **sizes).items()}


def packed_clip(seed: int = 0) -> dict[str, Tensor]:
    """A plain CLIP with rows for a few tokens only, as the bundled one is stored: halves, and `token_ids`."""
    ids = tokenize(KNOWN_WORDS).unique()
    ids = ids[ids > 0]
    state = {k: v.half() for k, v in plain_clip(seed, vocab_size=1 + len(ids)).items()}
    return state | {"token_ids": ids}


def write_tiny(folder: Path) -> Path:
    """A stand-in for the bundled model's two files."""
    save_file(packed_clip(), folder / "tiny.safetensors")
    save_file({k: v.half() for k, v in image_tower().items()}, folder / "tiny_alpha.safetensors")
    return folder
