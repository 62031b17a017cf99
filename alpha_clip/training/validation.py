"""How well a model names regions, and how far it is from the CLIP it began as."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from .config import SHARES, TrainConfig
from .data import Batch, Dataset, Positions, check_readable, collate, leave_signals, own_generator, reading
from .foreign import trainable
from .processes import gather_objects, rank_and_world, total
from .records import BadSample
from .trainable import Tokenize

PICTURES = 16  # at a time
TEXTS = 256


@torch.no_grad()
def evaluate(
    model: nn.Module,
    base: nn.Module,
    dataset: Dataset,
    tokenize: Tokenize,
    config: TrainConfig,
) -> dict[str, float]:
    """Scores on a data set, its masks as they are; processes share the work, and all get the result.

    Raises:
        UnreadableData: more than 1% of the pictures cannot be read, or all.

    Returns:
        "region_accuracy": share of the regions whose own phrase, of all different ones in the data set, is nearest;
            of a picture that has more than 8, 8 count, and none too small for the model's input. Not there if
            there are no regions.
        "validation_unreadable": pictures that could not be read.
        "drift": mean of 1 - cosine between the features of whole pictures now and those of `base`.
    """
    model.eval()
    seen = trainable(model)
    device = seen.device
    rank, world = rank_and_world()
    changes: dict[str, Any] = dict.fromkeys((*SHARES, "distill", "distill_tokens"), 0.0)
    plain = replace(config, **changes)
    loader: DataLoader[Batch] = DataLoader(
        Positions(dataset, plain, seen.preprocess),  # type: ignore[arg-type]
        PICTURES,
        sampler=range(rank, len(dataset), world),
        num_workers=config.workers,
        collate_fn=collate,
        worker_init_fn=leave_signals,
        generator=own_generator(config),
    )
    features, own = [], []
    drift, pictures, bad = 0.0, 0, list[BadSample]()
    with reading(loader) as batches:
        for batch in batches:
            bad += batch.bad
            if len(batch) == 0:
                continue
            image, regions = batch.image.to(device), ~batch.whole
            first = torch.tensor([i for i, p in enumerate(batch.keys) if i == 0 or batch.keys[i - 1] != p])
            now, then = (F.normalize(seen.see(v, image[first], None).float(), dim=-1) for v in (seen.visual, base))
            drift += float((1 - (now * then).sum(dim=-1)).sum())
            pictures += len(first)
            alpha = batch.alpha.to(device)
            features.append(F.normalize(seen.see(seen.visual, image[regions], alpha[regions]).float(), dim=-1))
            own += [batch.texts[i] for i in batch.first[regions].tolist()]
    texts = sorted(set(gather_objects(own)))
    right = 0
    if own:
        ids = (tokenize(texts[i : i + TEXTS]).to(device) for i in range(0, len(texts), TEXTS))
        encoded = [seen.read(part).float() for part in ids]
        named = (torch.cat(features) @ F.normalize(torch.cat(encoded), dim=-1).T).argmax(dim=1).tolist()
        right = sum(texts[n] == text for n, text in zip(named, own, strict=True))
    counts = total(right, len(own), drift, pictures, len(bad), device=device)
    rights, regions_, drifts, all_pictures, unreadable = counts
    check_readable(len(dataset), int(unreadable), bad[-3:])
    model.train()
    scores = {"drift": drifts / max(all_pictures, 1), "validation_unreadable": unreadable}
    return scores | ({"region_accuracy": rights / regions_} if regions_ else {})
