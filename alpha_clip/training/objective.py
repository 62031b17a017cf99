"""The loss and gradients of one step, the same for any number of processes and of parts of the batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from .config import TrainConfig
from .data import Batch
from .foreign import trainable
from .loss import (
    Labels,
    contrastive_sum,
    distillation_sum,
    hard_negatives_sum,
    same_image_pairs,
    same_image_sum,
    sigmoid_sum,
    token_drift_sum,
)
from .processes import gather, rank_and_world, row_counts, total
from .records import CHECK, UnreadableData
from .trainable import Tokenize


@dataclass(frozen=True)
class Inputs:
    """A part of a batch. All but image, alpha and `whole` is on the device already; the towers move pixels there."""

    image: Tensor  # (B, 3, n, n)
    alpha: Tensor  # (B, 1, n, n)
    whole: Tensor  # (B,) bool, on the device of the pixels
    tokens: Tensor  # (U, L) ids of the different texts
    sample_index: Tensor  # (P,) which of the B
    text_index: Tensor  # (P,) which of the U
    labels: Labels
    mask: Tensor  # (P, g)
    first_text: Tensor  # (B,) which of the U is the sample's first text
    hard_negatives: Tensor  # (B, U) bool


class Features(NamedTuple):
    """The outputs of the towers for one part, of which the loss is computed."""

    image: Tensor  # (B, D), of unit length
    text: Tensor  # (U, D), of unit length; or (0, D)
    temperature: tuple[Tensor, ...]  # () scale, and for the sigmoid loss () bias
    patches: Tensor | None  # (W, N, width) patch tokens of the whole pictures, for `distill_tokens`


class Towers(nn.Module):
    """Everything that is trained, with one `forward`, which is what DistributedDataParallel takes."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.adapter = trainable(model)
        self.train_text = config.train_text
        self.want_tokens = bool(config.distill and config.distill_tokens)
        if self.want_tokens:
            self.adapter.blocks(self.adapter.visual, "distill_tokens")  # raises before any work if there are none
        self.autocast = config.precision == "bfloat16"

    def forward(self, part: Inputs, with_text: bool = True) -> Features:
        """Features of a part; without `with_text`, no text features."""
        with torch.autocast(self.adapter.device.type, torch.bfloat16, enabled=self.autocast):
            image, patches = self.encode_image(self.adapter.visual, part.image, part.alpha, part.whole)
            with torch.set_grad_enabled(self.train_text and torch.is_grad_enabled()):
                text = self.adapter.encode_text(part.tokens) if with_text else image.new_zeros(0, image.shape[1])
        image, text = (F.normalize(x.float(), dim=-1) for x in (image, text))
        return Features(image, text, self.adapter.temperature(), patches)

    @torch.no_grad()
    def leaves(self, part: Inputs, temperature: tuple[Tensor, ...]) -> Features:
        """Features as leaves of the graph: they take gradients, but nothing behind them does."""
        image, text, _, _ = self(part)
        return Features(image.requires_grad_(), text.requires_grad_(), temperature, None)

    def encode_image(
        self, visual: nn.Module, image: Tensor, alpha: Tensor | None, whole: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Image features, and for `distill_tokens` the penultimate block's patch tokens of the rows in `whole`."""
        if not self.want_tokens:
            return self.adapter.encode_image(visual, image, alpha), None
        features, tokens = self.adapter.encode_image_with_tokens(visual, image, alpha)
        return features, tokens[whole].float()


@dataclass(frozen=True)
class _Counts:
    """The divisors of a step's sums: numbers of samples over all processes."""

    samples: float
    named: float  # samples with a text
    whole: float
    with_hard_negatives: float


class Objective:
    """Computes the loss of a step, and adds its gradients to the model's parameters.

    With several parts, the features of all are computed first, without gradients. The loss is taken of these, and then
    each part runs again, with the same dropout, to carry the gradients of its features into the weights (GradCache,
    arXiv 2101.06983). The gradients are those of the whole batch; the memory is that of one part.

    Raises:
        ValueError: the batch has several parts, and the model has batch norm.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, tokenize: Tokenize) -> None:
        if config.accumulate > 1 and any(isinstance(m, _BatchNorm) for m in model.modules()):
            raise ValueError(
                f"TrainConfig.accumulate is {config.accumulate} and {type(model).__name__} has batch norm, which sees "
                "one part at a time, so that the gradients would not be the whole batch's: set it to 1 "
                "(--accumulate 1) with a smaller batch_size, or freeze batch norm first, as "
                "open_clip.utils.freeze_batch_norm_2d does"
            )
        self.config, self.tokenize = config, tokenize
        self.towers = Towers(model, config)
        adapter = self.towers.adapter
        self.device = adapter.device
        self.base = copy.deepcopy(adapter.visual).eval().requires_grad_(False)  # what distillation and drift refer to
        self.trained: nn.Module = self.towers
        self.rank, self.world = rank_and_world()

    def distribute(self) -> None:
        """Make `backward` average the gradients of all processes from now on."""
        if self.world > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self.trained = DistributedDataParallel(self.towers, device_ids=ids, broadcast_buffers=False)

    def backward(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Add the gradients of one step. Returns the loss and its unweighted terms, the same in all processes."""
        parts = [self._inputs(batch) for batch in batches]
        counts = _Counts(
            *total(
                sum(len(part.image) for part in parts),
                sum(int((batch.first_text >= 0).sum()) for batch in batches),
                sum(int(part.whole.sum()) for part in parts),
                sum(int(batch.hard_negatives.any(dim=1).sum()) for batch in batches),
                device=self.device,
            )
        )
        if not counts.samples:
            bad = [str(error) for batch in batches for error in batch.bad][:3]
            if small := sum(batch.too_small for batch in batches):
                bad.append(f"{small} regions are too small for the model's input")
            raise UnreadableData(f"nothing of a whole batch could be read: {'; '.join(bad)}. {CHECK}")
        if len(parts) == 1:
            features: Features = self.trained(parts[0])
            terms, loss = self._compare(parts, [features], counts)
            drift = self._drift(parts[0], features.image, features.patches, counts)
            (loss + drift).backward()
        else:
            temperature = tuple(x.detach().clone().requires_grad_() for x in self.towers.adapter.temperature())
            states, leaves = [], []
            for part in parts:
                states.append(self._random_state())
                leaves.append(self.towers.leaves(part, temperature))
            terms, loss = self._compare(parts, leaves, counts)
            loss.backward()
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                drift = self._replay(parts, leaves, states, counts)
        if self.config.distill:
            terms["distill"] = drift.detach() / self.config.distill
        values = total(*torch.stack(list(terms.values())).tolist(), device=self.device)
        means = {name: value / self.world for name, value in zip(terms, values, strict=True)}
        config = self.config
        weights = {
            "contrast": 1.0,
            "same_image": config.same_image,
            "hard_negatives": config.same_image,
            "distill": config.distill,
        }
        return {"loss": sum(value * weights[name] for name, value in means.items())} | means

    def _random_state(self) -> list[Tensor]:
        on_device = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *on_device]

    def _replay(
        self,
        parts: Sequence[Inputs],
        leaves: Sequence[Features],
        states: Sequence[Sequence[Tensor]],
        counts: _Counts,
    ) -> Tensor:
        """Run each part again from its random state, to carry its features' gradients on. Returns the drift."""
        drifts = []
        for part, leaf, (state, *on_device) in zip(parts, leaves, states, strict=True):
            torch.set_rng_state(state)
            for other in on_device:
                torch.cuda.set_rng_state(other, self.device)
            last = part is parts[-1]
            waits = not last and isinstance(self.trained, DistributedDataParallel)
            with self.trained.no_sync() if waits else nullcontext():  # type: ignore[operator]
                own: Features = self.trained(part, with_text=self.config.train_text)
                drift = self._drift(part, own.image, own.patches, counts)
                assert leaf.image.grad is not None
                carrier = (own.image * leaf.image.grad).sum() + drift
                if self.config.train_text:
                    assert leaf.text.grad is not None
                    carrier = carrier + (own.text * leaf.text.grad).sum()
                    if last:  # all parts share one temperature, whose gradient is that of the whole batch already
                        for own_value, value in zip(own.temperature, leaf.temperature, strict=True):
                            assert value.grad is not None
                            carrier = carrier + own_value * value.grad
                carrier.backward()
            drifts.append(drift.detach())
        return torch.stack(drifts).sum()

    def _compare(
        self, parts: Sequence[Inputs], features: Sequence[Features], counts: _Counts
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms that compare samples with each other, and the loss they add up to.

        Sums are multiplied by `world`, so that the mean over processes is the loss of the whole batch.
        """
        in_parts = list(zip(features, parts, strict=True))
        image = torch.cat([x.image[part.sample_index] for x, part in in_parts])  # (P, D)
        text = torch.cat([x.text[part.text_index] for x, part in in_parts])
        labels = Labels.join([part.labels for part in parts])
        rows = row_counts(len(labels.weight), self.device)
        all_text, all_labels, first = gather(text, rows), labels.map(lambda x: gather(x, rows)), sum(rows[: self.rank])
        scale, *bias = features[0].temperature
        if bias:
            contrast = sigmoid_sum(image, text, labels, all_text, all_labels, first, scale, *bias)
        else:
            contrast = contrastive_sum(image, text, labels, gather(image, rows), all_text, all_labels, first, scale)
        loss = contrast * self.world / max(counts.named, 1)
        terms = {"contrast": loss.detach()}
        if self.config.same_image:
            pairs = same_image_pairs(text.detach(), labels, torch.cat([part.mask for part in parts]))
            (count,) = total(int(pairs.any(dim=1).sum()), device=self.device)
            among = same_image_sum(image, text, pairs, scale) * self.world / max(count, 1)
            terms["same_image"] = among.detach()
            loss = loss + self.config.same_image * among
        if self.config.same_image and counts.with_hard_negatives:
            sums = [
                hard_negatives_sum(x.image, x.text, part.first_text, part.hard_negatives, scale) for x, part in in_parts
            ]
            apart = torch.stack(sums).sum() * self.world / counts.with_hard_negatives
            terms["hard_negatives"] = apart.detach()
            loss = loss + self.config.same_image * apart
        return terms, loss

    def _drift(self, part: Inputs, image: Tensor, patches: Tensor | None, counts: _Counts) -> Tensor:
        """`distill` times the distance of a part's whole pictures from their features in the starting model."""
        if not self.config.distill or not part.whole.any():
            return image.sum() * 0
        pixels = part.image[part.whole]
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.towers.autocast):
            all_rows = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
            target, target_patches = self.towers.encode_image(self.base, pixels, None, all_rows)
        drift = distillation_sum(image[part.whole], F.normalize(target.float(), dim=-1))
        if patches is not None and target_patches is not None:
            drift = drift + self.config.distill_tokens * token_drift_sum(patches, target_patches)
        return self.config.distill * drift * self.world / counts.whole

    def _inputs(self, batch: Batch) -> Inputs:
        return Inputs(
            image=batch.image,
            alpha=batch.alpha,
            whole=batch.whole,
            tokens=self.towers.adapter.token_ids(self.tokenize, batch.texts).to(self.device),
            sample_index=batch.sample_index.to(self.device),
            text_index=batch.text_index.to(self.device),
            labels=batch.labels.map(lambda x: x.to(self.device)),
            mask=batch.mask[batch.sample_index].to(self.device),
            first_text=batch.first_text.to(self.device),
            hard_negatives=batch.hard_negatives.to(self.device),
        )
