"""Break the bundled model in many ways and degrees, and print what the doctor says of each.

    python examples/tiny/broken.py

The thresholds of `alpha_clip.evaluation.doctor` were chosen between these figures.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from alpha_clip import tokenize
from alpha_clip.evaluation import Subject, find
from alpha_clip.evaluation.doctor import examine
from alpha_clip.evaluation.probes.attention import CHANGES
from alpha_clip.model import CLIP

Break = Callable[[CLIP], object]
SHOWN = {  # figures and their columns
    "... by the mask": "mask",
    "... by what is under the mask": "under it",
    "kept of plain CLIP's features": "kept",
    "related to plain CLIP's features": "related",
    "cut-outs whose nearest has the same name": "nearest",
    "cut-outs named by texts": "named",
    "attention follows the mask": "follows",
}


def faint_alpha(strength: float) -> Break:
    return lambda model: model.visual.conv1_alpha.weight.mul_(strength)


def faint_picture(strength: float) -> Break:
    return lambda model: model.visual.conv1.weight.mul_(strength)


def noise(strength: float) -> Break:
    """Add noise to all matrices of the image tower, `strength` times the deviation of each."""

    def add(model: CLIP) -> None:
        random = torch.Generator().manual_seed(0)
        for weight in model.visual.parameters():
            if weight.ndim > 1:
                weight.add_(strength * weight.std() * torch.randn(weight.shape, generator=random))

    return add


def shuffled(modules: Callable[[CLIP], nn.Module]) -> Break:
    """Shuffle the numbers of each parameter."""

    def shuffle(model: CLIP) -> None:
        random = torch.Generator().manual_seed(0)
        for weight in modules(model).parameters():
            weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=random)].view(weight.shape))

    return shuffle


def other_space(projection: Callable[[CLIP], Tensor | None]) -> Break:
    """Permute the features: as good as before, but of another space, like those of a CLIP trained from another seed."""

    def turn(model: CLIP) -> None:
        weight = projection(model)
        assert weight is not None
        weight.copy_(weight[:, torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))])

    return turn


def heads(count: int) -> Break:
    def set_heads(model: CLIP) -> None:
        for block in model.visual.transformer.blocks:
            block.attn.num_heads, block.attn.head_dim = count, block.attn.embed_dim // count

    return set_heads


def mask_comes(change: str) -> Break:
    """Apply one of the doctor's `CHANGES` to every mask before the tower sees it."""

    def watch(model: CLIP) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
            (alpha,) = args
            return (CHANGES[change](alpha) if alpha.shape[-1] > model.visual.conv1.kernel_size[0] else alpha,)

        model.visual.conv1_alpha.register_forward_pre_hook(hook)

    return watch


BROKEN: dict[str, tuple[str, Break]] = {  # name: what the doctor should say, and how to break the model
    "as it is": ("healthy", lambda model: None),
    "alpha weights of a third": ("healthy", faint_alpha(0.3)),
    "alpha weights of a twentieth": ("mask-blind", faint_alpha(0.05)),
    "alpha weights of 0": ("mask-blind", faint_alpha(0)),
    "colours of a tenth": ("silhouette reader", faint_picture(0.1)),
    "no picture": ("silhouette reader", faint_picture(0)),
    "noise of 0.2": ("healthy", noise(0.2)),
    "noise of 0.4": ("global drift", noise(0.4)),
    "noise of 0.6": ("global drift", noise(0.6)),
    "noise of 1": ("incompatible tower", noise(1)),
    "blocks shuffled": ("incompatible tower", shuffled(lambda model: model.visual.transformer)),
    "image features of another space": ("incompatible tower", other_space(lambda model: model.visual.proj)),
    "4 heads for 2": ("incompatible tower", heads(4)),
    "text features of another space": ("incompatible tower", other_space(lambda model: model.text_projection)),
    "text tower shuffled": ("incompatible tower", shuffled(lambda model: model.transformer)),
} | {f"mask {change}": ("misaligned mask", mask_comes(change)) for change in CHANGES if change != "as it is"}


@torch.no_grad()
def broken(name: str, whole: Subject) -> Subject:
    """The subject, broken in the way `name`, with the base of the whole one."""
    model = copy.deepcopy(whole.model)
    assert isinstance(model, CLIP)
    BROKEN[name][1](model)
    return replace(whole, model=model, encode=_encoder(model), _seen={})


def _encoder(model: CLIP) -> Callable[[list[str]], Tensor]:
    return lambda texts: model.encode_text(tokenize(texts, model.context_length, truncate=True))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    whole = find("tiny", "cpu")
    print(f"| tiny | {' | '.join(SHOWN.values())} | the doctor says |\n|---{'|---' * len(SHOWN)}|---|")
    for name in BROKEN:
        diagnosis = examine(broken(name, whole))
        cells = [f"{diagnosis.figures[key]:.2f}" if key in diagnosis.figures else "" for key in SHOWN]
        print(f"| {name} | {' | '.join(cells)} | {diagnosis.name} |", flush=True)


if __name__ == "__main__":
    main()
