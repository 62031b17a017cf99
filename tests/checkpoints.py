"""Small random checkpoints, for the tests of what reads them."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from alpha_clip.checkpoints import write
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
    write(packed_clip(), folder / "tiny.safetensors")
    write({k: v.half() for k, v in image_tower().items()}, folder / "tiny_alpha.safetensors")
    return folder


def torchscript(state: dict[str, Tensor], path: Path) -> Path:
    """An archive with these weights and code, as OpenAI's are."""
    root = torch.nn.Module()
    for name, tensor in state.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, torch.nn.Module())
            module = getattr(module, parent)
        module.register_parameter(leaf, torch.nn.Parameter(tensor))
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but OpenAI's files are made with it
        torch.jit.save(torch.jit.script(root), path)
    return path


def transformers_folder(folder: Path, **changes: object) -> Path:
    """What CLIPModel.save_pretrained writes, of the sizes of `clip`, with `changes` to both towers' configuration."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(3)
    vision = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 2, "intermediate_size": 256}
    vision |= {"image_size": SIZE, "patch_size": 8} | changes
    text = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 256}
    text |= {"vocab_size": 100, "max_position_embeddings": 77, "eos_token_id": 99} | changes
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=32))
    model.save_pretrained(folder)
    return folder


def blind_clip(seed: int = 0) -> dict[str, Tensor]:
    """Alpha weights that are all zero."""
    state = clip(seed)
    state["visual.conv1_alpha.weight"] = torch.zeros_like(state["visual.conv1_alpha.weight"])
    return state


def distinct(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` with noise, on biases and gains too, so that no two tensors can be mixed up unnoticed."""
    generator = torch.Generator().manual_seed(4)
    return {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in state.items()}
