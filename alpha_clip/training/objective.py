"""One step's loss and gradients, whatever the number of processes and of parts that the batch is cut into."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..model import CLIP, VisionTransformer
from .config import TrainConfig
from .data import Batch
from .loss import (
    Labels,
    contrastive_sum,
    distillation_sum,
    rivals_sum,
    same_image_pairs,
    same_image_sum,
    token_drift_sum,
)
from .processes import gather, rank_and_world, row_counts, total


@dataclass(frozen=True)
class Inputs:
    """A part of a batch; all but the pixels is on the device already, and those go there where they are used."""

    image: Tensor
    alpha: Tensor
    whole: Tensor  # (B,) bool, where the pixels are
    tokens: Tensor  # (U, L) ids of the different texts
    sample: Tensor  # (P,) which of the B
    text: Tensor  # (P,) which of the U
    labels: Labels
    mask: Tensor  # (P, g)
    first: Tensor  # (B,) which of the U is the sample's first text
    rivals: Tensor  # (B, U) bool


class Towers(nn.Module):
    """Everything that is trained behind one `forward`, as DistributedDataParallel wants it."""

    def __init__(self, model: CLIP, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.train_text = config.train_text
        self.want_tokens = bool(config.distill and config.distill_tokens)
        self.autocast = config.precision == "bfloat16"

    def forward(self, part: Inputs, read: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(B, D) image features, (U, D) text features, () scale, and patch tokens (W, N, width) of whole pictures.

        Without `read` the text features are left out, as (0, D).
        """
        device_type = self.model.logit_scale.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=self.autocast):
            image, patches = self.see(self.model.visual, part.image, part.alpha, part.whole)
            with torch.set_grad_enabled(self.train_text and torch.is_grad_enabled()):
                text = self.model.encode_text(part.tokens) if read else image.new_zeros(0, image.shape[1])
        image, text = (F.normalize(x.float(), dim=-1) for x in (image, text))
        return image, text, self.model.logit_scale.exp(), patches

    def see(
        self, visual: VisionTransformer, image: Tensor, alpha: Tensor | None, whole: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Image features, and the penultimate block's patch tokens of the rows in `whole` if they are wanted."""
        if not self.want_tokens:
            return visual(image, alpha), None
        tokens = visual.tokens(image, alpha, layer=-2)  # (B, 1 + N, width)
        last = visual.transformer.run([visual.transformer.blocks[-1].first], tokens.permute(1, 0, 2))[0]
        return visual.project(last), tokens[whole, 1:].float()


@dataclass(frozen=True)
class _Counts:
    """What the sums of a step are divided by, over all processes."""

    samples: float
    named: float  # of those, with a text
    whole: float
    rivalled: float


class Objective:
    """The loss of a step, its gradients left in the model's parameters.

    With several parts, features of all are worked out first without gradients, the loss is taken on them, and each
    part is run again to carry the features' gradients into the weights (GradCache, arXiv 2101.06983): the gradients
    are those of the whole batch, the memory is that of a part.
    """

    def __init__(self, model: CLIP, config: TrainConfig, tokenize: Callable[[Sequence[str]], Tensor]) -> None:
        self.config, self.tokenize = config, tokenize
        self.device = model.logit_scale.device
        self.towers = Towers(model, config)
        self.base = copy.deepcopy(model.visual).eval().requires_grad_(False)  # what distillation and drift refer to
        self.trained: nn.Module = self.towers
        self.rank, self.world = rank_and_world()

    def distribute(self) -> None:
        """From here on, `backward` averages the gradients of all processes."""
        if self.world > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self.trained = DistributedDataParallel(self.towers, device_ids=ids, broadcast_buffers=False)

    def backward(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Add the gradients of one step. Returns its loss and its terms, unweighted, the same in all processes."""
        parts = [self._inputs(batch) for batch in batches]
        counts = _Counts(
            *total(
                sum(len(part.image) for part in parts),
                sum(int((batch.first >= 0).sum()) for batch in batches),
                sum(int(part.whole.sum()) for part in parts),
                sum(int(batch.rivals.any(dim=1).sum()) for batch in batches),
                device=self.device,
            )
        )
        if not counts.samples:
            bad = [str(error) for batch in batches for error in batch.bad]
            raise RuntimeError(f"nothing of a whole batch could be read: {'; '.join(bad[:3])}")
        if len(parts) == 1:
            image, text, scale, patches = self.trained(parts[0])
            terms, loss = self._compare(parts, [image], [text], scale, counts)
            drift = self._drift(parts[0], image, patches, counts)
            (loss + drift).backward()
        else:
            with torch.no_grad():
                seen = [self.towers(part)[:3] for part in parts]
            images, texts = ([s[i].requires_grad_() for s in seen] for i in (0, 1))
            scale = seen[0][2].clone().requires_grad_()
            terms, loss = self._compare(parts, images, texts, scale, counts)
            loss.backward()
            drift = self._replay(parts, images, texts, scale, counts)
        if self.config.distill:
            terms["distill"] = drift.detach() / self.config.distill
        values = total(*torch.stack(list(terms.values())).tolist(), device=self.device)
        means = {name: value / self.world for name, value in zip(terms, values, strict=True)}
        weights = {"contrast": 1.0, "rivals": self.config.same_image} | vars(self.config)
        return {"loss": sum(value * weights[name] for name, value in means.items())} | means

    def _replay(
        self, parts: Sequence[Inputs], images: list[Tensor], texts: list[Tensor], scale: Tensor, counts: _Counts
    ) -> Tensor:
        """Run each part again, and carry the gradients of its features into the weights."""
        drifts = []
        for part, image, text in zip(parts, images, texts, strict=True):
            last = part is parts[-1]
            waits = not last and isinstance(self.trained, DistributedDataParallel)
            with self.trained.no_sync() if waits else nullcontext():  # type: ignore[operator]
                own_image, own_text, own_scale, patches = self.trained(part, read=self.config.train_text)
                drift = self._drift(part, own_image, patches, counts)
                assert image.grad is not None
                carrier = (own_image * image.grad).sum() + drift
                if self.config.train_text:
                    assert text.grad is not None and scale.grad is not None
                    carrier = carrier + (own_text * text.grad).sum() + own_scale * scale.grad * last
                carrier.backward()
            drifts.append(drift.detach())
        return torch.stack(drifts).sum()

    def _compare(
        self, parts: Sequence[Inputs], images: list[Tensor], texts: list[Tensor], scale: Tensor, counts: _Counts
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms that compare samples with each other; `world` makes the processes' mean the whole's loss."""
        image = torch.cat([x[part.sample] for x, part in zip(images, parts, strict=True)])  # (P, D)
        text = torch.cat([x[part.text] for x, part in zip(texts, parts, strict=True)])
        labels = Labels.join([part.labels for part in parts])
        rows = row_counts(len(labels.weight), self.device)
        all_image, all_text, every = gather(image, rows), gather(text, rows), labels.map(lambda x: gather(x, rows))
        first = sum(rows[: self.rank])
        contrast = contrastive_sum(image, text, labels, all_image, all_text, every, first, scale)
        loss = contrast * self.world / max(counts.named, 1)
        terms = {"contrast": loss.detach()}
        if self.config.same_image:
            pairs = same_image_pairs(text.detach(), labels, torch.cat([part.mask for part in parts]))
            (count,) = total(int(pairs.any(dim=1).sum()), device=self.device)
            among = same_image_sum(image, text, pairs, scale) * self.world / max(count, 1)
            terms["same_image"] = among.detach()
            loss = loss + self.config.same_image * among
        if self.config.same_image and counts.rivalled:
            sums = [
                rivals_sum(x, y, part.first, part.rivals, scale)
                for x, y, part in zip(images, texts, parts, strict=True)
            ]
            apart = torch.stack(sums).sum() * self.world / counts.rivalled
            terms["rivals"] = apart.detach()
            loss = loss + self.config.same_image * apart
        return terms, loss

    def _drift(self, part: Inputs, image: Tensor, patches: Tensor | None, counts: _Counts) -> Tensor:
        """`distill` times how far the whole pictures of a part are from where the base puts them."""
        if not self.config.distill or not part.whole.any():
            return image.sum() * 0
        pixels = part.image[part.whole]
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.towers.autocast):
            every = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
            target, target_patches = self.towers.see(self.base, pixels, None, every)
        drift = distillation_sum(image[part.whole], F.normalize(target.float(), dim=-1))
        if patches is not None and target_patches is not None:
            drift = drift + self.config.distill_tokens * token_drift_sum(patches, target_patches)
        return self.config.distill * drift * self.world / counts.whole

    def _inputs(self, batch: Batch) -> Inputs:
        tokens = torch.zeros(0, 1, dtype=torch.int64)
        if batch.texts:
            tokens = self.tokenize(batch.texts)
            tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]  # the tower is causal: padding is idle
        return Inputs(
            batch.image,
            batch.alpha,
            batch.whole,
            tokens.to(self.device),
            batch.sample.to(self.device),
            batch.text.to(self.device),
            batch.labels.map(lambda x: x.to(self.device)),
            batch.mask[batch.sample].to(self.device),
            batch.first.to(self.device),
            batch.rivals.to(self.device),
        )
