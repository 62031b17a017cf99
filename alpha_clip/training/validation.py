"""How well a model names regions, and how far it is from the CLIP it began as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from ..model import CLIP, VisionTransformer
from ..transforms import Preprocess
from .config import TrainConfig
from .data import Batch, Dataset, Positions, collate, leave_sigterm
from .processes import gather_objects, rank_and_world, total

PICTURES = 16  # at a time
TEXTS = 256


@torch.no_grad()
def evaluate(
    model: CLIP,
    base: VisionTransformer,
    dataset: Dataset,
    preprocess: Preprocess,
    tokenize: Callable[[Sequence[str]], Tensor],
    config: TrainConfig,
) -> dict[str, float]:
    """Scores on a data set, its masks as they are; processes share the work, and all get the result.

    Returns:
        "region_accuracy": share of the regions whose own phrase, of all different ones in the data set, is nearest;
            not there if it has no regions.
        "drift": mean of 1 - cosine between the features of whole pictures now and those of `base`.
    """
    model.eval()
    device = model.logit_scale.device
    rank, world = rank_and_world()
    plain = replace(config, whole=0.0, box=0.0, ellipse=0.0, jitter=0.0, graded=0.0, weighted=0.0, union=0.0)
    loader: DataLoader[Batch] = DataLoader(
        Positions(dataset, plain, preprocess),  # type: ignore[arg-type]
        PICTURES,
        sampler=range(rank, len(dataset), world),
        num_workers=config.workers,
        collate_fn=collate,
        worker_init_fn=leave_sigterm,
    )
    features, own = [], []
    drift, pictures = 0.0, 0
    for batch in loader:
        if len(batch) == 0:
            continue
        image, regions = batch.image.to(device), ~batch.whole
        first = torch.tensor([i for i, p in enumerate(batch.index) if i == 0 or batch.index[i - 1] != p])
        now, then = (F.normalize(tower(image[first]).float(), dim=-1) for tower in (model.visual, base))
        drift += float((1 - (now * then).sum(dim=-1)).sum())
        pictures += len(first)
        alpha = batch.alpha.to(device)
        features.append(F.normalize(model.visual(image[regions], alpha[regions]).float(), dim=-1))
        own += [batch.texts[i] for i in batch.text[batch.first_row[regions]].tolist()]
    texts = sorted(set(gather_objects(own)))
    right = 0
    if own:
        encoded = [model.encode_text(tokenize(texts[i : i + TEXTS])).float() for i in range(0, len(texts), TEXTS)]
        named = (torch.cat(features) @ F.normalize(torch.cat(encoded), dim=-1).T).argmax(dim=1).tolist()
        right = sum(texts[n] == text for n, text in zip(named, own, strict=True))
    rights, regions_, drifts, all_pictures = total(right, len(own), drift, pictures, device=device)
    model.train()
    scores = {"drift": drifts / max(all_pictures, 1)}
    return scores | ({"region_accuracy": rights / regions_} if regions_ else {})
