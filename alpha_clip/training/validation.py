"""How well a model names regions, and how far it has drifted from the model it began as."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .config import SHARES, TrainConfig
from .data import Batch, Dataset, Positions, check_readable, collate, leave_signals, own_generator, reading
from .foreign import trainable
from .processes import gather_objects, rank_and_world, total
from .records import BadSample
from .trainable import Tokenize, Trainable

PICTURES = 16  # encoded at a time
TEXTS = 256  # encoded at a time


@torch.no_grad()
def evaluate(
    model: nn.Module,
    base: nn.Module,
    dataset: Dataset,
    tokenize: Tokenize,
    config: TrainConfig,
) -> dict[str, float]:
    """Score a model on a data set, with its masks as they are. Processes share the work, and all get the result.

    Raises:
        UnreadableData: more than 1% of at least 100 pictures cannot be read, or all of fewer.

    Returns:
        "region_accuracy": share of the regions whose own phrase is nearest, of all different phrases in the data set.
            At most 8 regions of a picture count, and none too small for the model's input. Missing if there are no
            regions.
        "validation_unreadable": pictures that could not be read.
        "drift": mean of 1 - cosine between the features of whole pictures now and those of `base`.
    """
    model.eval()
    adapter = trainable(model)
    encoded = _encode(adapter, base, dataset, config)
    texts = sorted(set(gather_objects(encoded.phrases)))
    right = _right(adapter, encoded, texts, tokenize)
    counts = (right, len(encoded.phrases), encoded.drift, encoded.pictures, len(encoded.bad))
    all_right, regions, drift, pictures, unreadable = total(*counts, device=adapter.device)
    check_readable(len(dataset), int(unreadable), encoded.bad[-3:])
    model.train()
    scores = {"drift": drift / max(pictures, 1), "validation_unreadable": unreadable}
    if regions:
        scores["region_accuracy"] = all_right / regions
    return scores


@dataclass
class _Encoded:
    """The share of a data set that this process has encoded."""

    features: list[Tensor] = field(default_factory=list)  # (R, D) of unit length, of the regions of a batch
    phrases: list[str] = field(default_factory=list)  # of all these regions, in order
    drift: float = 0.0  # sum over the pictures
    pictures: int = 0
    bad: list[BadSample] = field(default_factory=list)


def _encode(adapter: Trainable, base: nn.Module, dataset: Dataset, config: TrainConfig) -> _Encoded:
    """Encode regions and whole pictures, this process's share of them."""
    rank, world = rank_and_world()
    changes: dict[str, Any] = dict.fromkeys((*SHARES, "distill", "distill_tokens"), 0.0)
    plain = replace(config, **changes)
    loader: DataLoader[Batch] = DataLoader(
        Positions(dataset, plain, adapter.preprocess),  # type: ignore[arg-type]
        PICTURES,
        sampler=range(rank, len(dataset), world),
        num_workers=config.workers,
        collate_fn=collate,
        worker_init_fn=leave_signals,
        generator=own_generator(config),
    )
    visual, encoded = adapter.visual, _Encoded()
    with reading(loader) as batches:
        for batch in batches:
            encoded.bad += batch.bad
            if len(batch) == 0:
                continue
            image, alpha, regions = batch.image.to(adapter.device), batch.alpha.to(adapter.device), ~batch.whole
            first = torch.tensor([i for i, p in enumerate(batch.keys) if i == 0 or batch.keys[i - 1] != p])
            now, then = (_unit(adapter.encode_image(tower, image[first], None)) for tower in (visual, base))
            encoded.drift += float((1 - (now * then).sum(dim=-1)).sum())
            encoded.pictures += len(first)
            encoded.features.append(_unit(adapter.encode_image(visual, image[regions], alpha[regions])))
            encoded.phrases += [batch.texts[i] for i in batch.first_text[regions].tolist()]
    return encoded


def _right(adapter: Trainable, encoded: _Encoded, texts: list[str], tokenize: Tokenize) -> int:
    """How many of the regions encoded here are nearest to their own phrase among `texts`."""
    if not encoded.phrases:
        return 0
    ids = (tokenize(texts[i : i + TEXTS]).to(adapter.device) for i in range(0, len(texts), TEXTS))
    named = torch.cat([adapter.encode_text(part).float() for part in ids])
    nearest = (torch.cat(encoded.features) @ F.normalize(named, dim=-1).T).argmax(dim=1).tolist()
    return sum(texts[n] == phrase for n, phrase in zip(nearest, encoded.phrases, strict=True))


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
