"""Train the bundled model `tiny` from scratch, on drawn scenes, in two stages as in the paper.

    python examples/tiny/train.py --out runs/tiny

1. Plain CLIP: single large objects and their nouns, then whole scenes and their captions.
2. Alpha-CLIP: zero alpha weights in, text tower frozen, region phrases with a tenth of whole pictures.

A stopped run resumes when the same command is given again. For comparison, `--control phrases` and `--control crops`
repeat stage 2 from the same base without masks, and on crops instead of masks. `--base FILE` skips stage 1.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from data import SIZE, Captions, Regions, Vocabulary, scene_captions, vocabulary
from safetensors.torch import load_file
from torch import Tensor

from alpha_clip.checkpoints import write
from alpha_clip.model import CLIP, build_model
from alpha_clip.training import TrainConfig, finetune

SHAPE = {
    "embed_dim": 128,
    "image_resolution": SIZE,
    "vision_layers": 4,
    "vision_width": 128,
    "vision_patch_size": 8,
    "context_length": 77,
    "transformer_width": 128,
    "transformer_heads": 2,
    "transformer_layers": 2,
}
BATCH = 64  # pictures; a model this small learns more from many steps than from large batches
STEPS = {"objects": 1800, "scenes": 2200, "regions": 6400}


def train_base(out: Path, words: Vocabulary, device: str) -> CLIP:
    """Stage 1: CLIP from scratch. Contrastive training starts with a plateau, which single objects shorten."""
    torch.manual_seed(0)
    model = CLIP(**SHAPE, vocab_size=len(words)).to(device)
    settings = partial(
        TrainConfig, batch_size=BATCH, optimizer="muon", lr=1.5e-3, alpha_lr=0.0, weight_decay=0.05, train_text=True,
        same_image=0.0,
    )  # fmt: skip
    steps = STEPS["objects"]
    objects = Captions(steps * BATCH, 1_000_000_000)
    finetune(model, objects, settings(steps, seed=1), out / "objects", tokenize=words.varied, description="1a objects")
    steps = STEPS["scenes"]
    scenes = scene_captions(steps * BATCH, 2_000_000_000)
    return finetune(
        model, scenes, settings(steps, seed=2), out / "scenes", tokenize=words.varied, description="1b scenes"
    )


def train_regions(model: CLIP, out: Path, words: Vocabulary, use: str) -> CLIP:
    """Stage 2: the image tower learns to look where alpha is 1."""
    steps = STEPS["regions"]
    config = TrainConfig(
        steps, batch_size=BATCH // 3, optimizer="muon", lr=1e-3, alpha_lr=3e-3, weight_decay=0.05, distill=3.0, seed=3
    )
    regions = Regions(steps * config.batch_size, 3_000_000_000, use)
    return finetune(model, regions, config, out / use, tokenize=words.varied, description=f"2 {use}")


def read_base(path: Path) -> CLIP:
    """Read what `save_base` wrote."""
    state = {k: v.float() for k, v in load_file(path).items() if k != "token_ids"}
    state["visual.conv1_alpha.weight"] = torch.zeros_like(state["visual.conv1.weight"][:, :1])
    return build_model(state)


def save_base(model: CLIP, words: Vocabulary, path: Path) -> None:
    """Save both towers of plain CLIP, and the ids of the tokens that its embedding has rows for."""
    state = {k: v for k, v in model.state_dict().items() if k != "visual.conv1_alpha.weight"}
    save(state | {"token_ids": words.token_ids}, path)


def save(state: dict[str, Tensor], path: Path) -> None:
    """Save weights in half precision."""
    write({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder for checkpoints and the results")
    parser.add_argument("--control", choices=["phrases", "crops"], help="train this control instead of the model")
    parser.add_argument("--base", type=Path, help="base.safetensors of an earlier run, instead of stage 1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    words = vocabulary()
    model = read_base(args.base).to(args.device) if args.base else train_base(args.out, words, args.device)
    save_base(model, words, args.out / "base.safetensors")
    use = args.control or "alpha"
    train_regions(model, args.out, words, use)
    save(model.visual.state_dict(), args.out / f"{use}.safetensors")
    print(f"wrote {args.out}/base.safetensors and {args.out}/{use}.safetensors")


if __name__ == "__main__":
    main()
