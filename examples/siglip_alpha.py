"""Train a small SigLIP from scratch on drawn scenes, give it an alpha channel, and measure it.

    python examples/siglip_alpha.py --out runs/siglip    # some 40 minutes on two CPU cores
    python examples/siglip_alpha.py --quick --out runs/quick    # to see that it runs

1. A SiglipModel of transformers learns pictures and captions by the sigmoid loss, as in stage 1 of examples/tiny. It is
   saved in OUT/base.
2. It gets an alpha channel, and its image tower is tuned on region phrases; OUT/alpha/best is the result.
3. The base is tuned as long on crops of the same regions, without masks: OUT/crops/best.
4. All three name the regions of unseen scenes, by the mask and by crops.

The same command resumes a stopped run. It needs `pip install transformers`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import SiglipConfig, SiglipModel

sys.path.insert(0, str(Path(__file__).with_name("tiny")))
from data import CONTEXT_LENGTH, SIZE, Captions, Regions, Vocabulary, scene_captions, vocabulary, with_article
from evaluate import FIRST_SEED, NUMBER, interval

from alpha_clip import embed_regions, masks
from alpha_clip.integrations import add_alpha, from_pretrained, remove_alpha
from alpha_clip.scenes import HELD_OUT, NOUNS, STYLES, Scene, draw_scene
from alpha_clip.training import Sample, TrainConfig, finetune
from alpha_clip.transforms import IMAGE_MEAN, IMAGE_STD

BLOCK = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2}
BATCH = 64  # pictures
STEPS = {"objects": 1400, "scenes": 1200, "regions": 2000}
QUICK = {"objects": 8, "scenes": 8, "regions": 16}

# Row of the table: the model, the method of `embed_regions`, and its options.
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "base, whole picture": ("base", "whole", {}),
    "base, crop": ("base", "crop", {"context": 1.2}),
    "base, masked crop": ("base", "masked_crop", {}),
    "base, red circle": ("base", "red_circle", {}),
    "tuned on crops, crop": ("crops", "crop", {"context": 1.2}),
    "with alpha, whole picture": ("alpha", "whole", {}),
    "with alpha, mask": ("alpha", "alpha", {}),
    "with alpha, box": ("alpha", "alpha", {}),
}


@dataclass(frozen=True)
class AsSiglipSees:
    """Samples of examples/tiny, normalised to [-1, 1] instead of with CLIP's mean and deviation."""

    samples: Captions | Regions

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> list[Sample]:
        item = self.samples[index]
        mean, std = (torch.tensor(x)[:, None, None] for x in (IMAGE_MEAN, IMAGE_STD))
        samples = [item] if isinstance(item, Sample) else item
        return [replace(sample, image=2 * (sample.image * std + mean) - 1) for sample in samples]


def small_siglip(words: Vocabulary) -> SiglipModel:
    """A SigLIP with random weights, and SigLIP's initial temperature."""
    torch.manual_seed(0)
    vision = BLOCK | {"num_hidden_layers": 4, "image_size": SIZE, "patch_size": 8}
    text: dict[str, Any] = BLOCK | {
        "num_hidden_layers": 2,
        "vocab_size": len(words),
        "max_position_embeddings": CONTEXT_LENGTH,
    }
    text |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}  # the defaults are of another vocabulary
    model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-math.log(BATCH))  # the odds of a pair; for batches of 32,768 this is the paper's -10
    return model


def train_base(out: Path, words: Vocabulary, steps: dict[str, int], device: str) -> None:
    """Stage 1, saved in OUT/base. The trainer needs an alpha channel, which stays zero and is removed again."""
    model: Any = add_alpha(small_siglip(words))
    model.to(device)
    for stage, seed in (("objects", 1), ("scenes", 2)):
        length = steps[stage] * BATCH
        samples = Captions(length, 1_000_000_000) if stage == "objects" else scene_captions(length, 2_000_000_000)
        config = TrainConfig(
            steps[stage], batch_size=BATCH, optimizer="muon", lr=1.5e-3, alpha_lr=0.0, weight_decay=0.05,
            train_text=True, same_image=0.0, seed=seed,
        )  # fmt: skip
        finetune(model, AsSiglipSees(samples), config, out / stage, tokenize=words.varied, description=f"1 {stage}")
    remove_alpha(model).save_pretrained(out / "base")


def tuned(out: Path, words: Vocabulary, steps: int, use: str, device: str) -> nn.Module:
    """Stage 2, from the base with the settings of examples/tiny; `use`, "alpha" or "crops", is that of `Regions`."""
    model: Any = from_pretrained(SiglipModel, out / "base")
    model.to(device)
    config = TrainConfig(
        steps, batch_size=BATCH // 3, optimizer="muon", lr=1e-3, alpha_lr=3e-3, weight_decay=0.05, distill=3.0, seed=3
    )
    regions = AsSiglipSees(Regions(steps * config.batch_size, 3_000_000_000, use))
    return finetune(model, regions, config, out / use, tokenize=words.varied, description=f"2 {use}").eval()


# --- the results ---


@torch.no_grad()
def noun_features(model: Any, words: Vocabulary) -> Tensor:
    """Features (58, D) of the nouns, of unit length."""
    ids = words([with_article(noun) for noun in NOUNS]).to(model.device)
    output = model.get_text_features(input_ids=ids)
    return F.normalize(getattr(output, "pooler_output", output), dim=-1)


def named(models: dict[str, nn.Module], row: str, scenes: Sequence[Scene], texts: Tensor) -> np.ndarray:
    """(R,) the noun nearest to each region of the scenes, encoded as `row` says."""
    who, method, options = ROWS[row]
    nouns = []
    for scene in scenes:
        shown = [masks.box(r.mask) if row.endswith("box") else r.mask for r in scene.regions]
        features = embed_regions(models[who], scene.image, shown, method, **options)
        nouns.append((features @ texts.T).argmax(dim=1).cpu().numpy())
    return np.concatenate(nouns)


def column(models: dict[str, nn.Module], texts: Tensor, style: str, count: int) -> dict[str, str]:
    scenes = [draw_scene(FIRST_SEED + i, SIZE, objects=(2, 4), style=style) for i in range(count)]
    of = np.repeat(np.arange(count), [len(scene.regions) for scene in scenes])
    noun = np.array([NUMBER[region.noun] for scene in scenes for region in scene.regions])
    held_out = np.isin(noun, [NUMBER[n] for n in HELD_OUT])
    hits = {row: (named(models, row, scenes, texts) == noun).astype(float) for row in tqdm(ROWS, style)}
    table = {"regions": f"{len(noun)} in {count} scenes"} | {row: interval(hit, of) for row, hit in hits.items()}
    crop, mask = hits["base, crop"], hits["with alpha, mask"]
    table["mask less the base's crop"] = interval(mask - crop, of)
    table["mask less the tuned one's crop"] = interval(mask - hits["tuned on crops, crop"], of)
    table["nouns never in a region phrase: base, crop"] = interval(crop[held_out], of[held_out])
    table["nouns never in a region phrase: with alpha, mask"] = interval(mask[held_out], of[held_out])
    before, after = (
        torch.cat([embed_regions(models[who], s.image, s.masks[:1], "whole") for s in scenes])
        for who in ("base", "alpha")
    )
    table["cosine of whole pictures to the base"] = f"{(before * after).sum(dim=1).mean():.3f}"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/siglip"), help="folder for checkpoints and models")
    parser.add_argument("--scenes", type=int, default=500, help="scenes of each style to measure on")
    parser.add_argument("--quick", action="store_true", help="few steps and scenes; the figures then mean nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    steps, count = (QUICK, 10) if args.quick else (STEPS, args.scenes)

    words = vocabulary()
    if not (args.out / "base").is_dir():
        train_base(args.out, words, steps, args.device)
    base = SiglipModel.from_pretrained(args.out / "base").to(args.device).eval()
    models = {"base": base}
    for use in ("alpha", "crops"):
        models[use] = tuned(args.out, words, steps["regions"], use, args.device)
    texts = noun_features(base, words)
    columns = {style: column(models, texts, style, count) for style in STYLES}
    print(f"\n| 58 nouns | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for row in columns[STYLES[0]]:
        print(f"| {row} | " + " | ".join(c[row] for c in columns.values()) + " |")


if __name__ == "__main__":
    main()
