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
from .loss import Labels, contrastive_sum, distillation_sum, same_image_pairs, same_image_sum, token_drift_sum
from .processes import gather, rank_and_world, total

MASK_GRID = 32  # masks are compared at this size


@dataclass(frozen=True)
class Inputs:
    """A part of a batch on the device."""

    image: Tensor
    alpha: Tensor
    tokens: Tensor  # (U, L) ids of the different texts
    text_of: Tensor
    labels: Labels


class Towers(nn.Module):
    """Everything that is trained behind one `forward`, as DistributedDataParallel wants it."""

    def __init__(self, model: CLIP, config: TrainConfig) -> None:
        super().__init__()
        self.model = model
        self.train_text = config.train_text
        self.want_tokens = bool(config.distill and config.distill_tokens)
        self.autocast = config.precision == "bfloat16"

    def forward(self, part: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(B, D) image features, (B, D) text features, () scale, and patch tokens (W, N, width) of whole pictures."""
        device_type = part.image.device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=self.autocast):
            image, patches = self.see(self.model.visual, part.image, part.alpha, part.labels.whole)
            with torch.set_grad_enabled(self.train_text and torch.is_grad_enabled()):
                text = self.model.encode_text(part.tokens)
        text = F.normalize(text.float(), dim=-1)[part.text_of]
        return F.normalize(image.float(), dim=-1), text, self.model.logit_scale.exp(), patches

    def see(
        self, visual: VisionTransformer, image: Tensor, alpha: Tensor | None, whole: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Image features, and the penultimate block's patch tokens of the rows in `whole` if they are wanted."""
        if not self.want_tokens:
            return visual(image, alpha), None
        tokens = visual.tokens(image, alpha, layer=-2)  # (B, 1 + N, width)
        last = visual.transformer.run([visual.transformer.blocks[-1].first], tokens.permute(1, 0, 2))[0]
        return visual.project(last), tokens[whole, 1:].float()


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
        self.world = rank_and_world()[1]

    def distribute(self) -> None:
        """From here on, `backward` averages the gradients of all processes."""
        if self.world > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self.trained = DistributedDataParallel(self.towers, device_ids=ids, broadcast_buffers=False)

    def backward(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Add the gradients of one step. Returns the terms of its loss, and "loss", the same in every process."""
        parts = [self._inputs(batch) for batch in batches]
        samples, whole = total(
            sum(len(p.image) for p in parts), sum(int(p.labels.whole.sum()) for p in parts), device=self.device
        )
        if not samples:
            bad = [str(error) for batch in batches for error in batch.bad]
            raise RuntimeError(f"nothing of a whole batch could be read: {'; '.join(bad[:3])}")
        if len(parts) == 1:
            image, text, scale, patches = self.trained(parts[0])
            terms, loss = self._contrast(parts, image, text, scale, samples)
            drift = self._drift(parts[0], image, patches, whole)
            (loss + drift).backward()
        else:
            with torch.no_grad():
                cached = [self.towers(part)[:3] for part in parts]
            image, text = (torch.cat([c[i] for c in cached]).requires_grad_() for i in (0, 1))
            scale = cached[0][2].clone().requires_grad_()
            terms, loss = self._contrast(parts, image, text, scale, samples)
            loss.backward()
            drift = self._replay(parts, image, text, scale, whole)
        terms |= {"distill": float(drift.detach())} if self.config.distill else {}
        names = list(terms)
        values = total(*terms.values(), device=self.device)
        terms = {name: value / self.world for name, value in zip(names, values, strict=True)}
        weights = {"same_image": self.config.same_image}
        return {"loss": sum(v * weights.get(k, 1.0) for k, v in terms.items())} | terms

    def _replay(self, parts: Sequence[Inputs], image: Tensor, text: Tensor, scale: Tensor, whole: float) -> Tensor:
        """Run each part again, and carry the gradients of its features into the weights."""
        assert image.grad is not None
        drifts, begin = [], 0
        for i, part in enumerate(parts):
            rows = slice(begin, begin + len(part.image))
            begin = rows.stop
            last = i == len(parts) - 1
            waits = not last and isinstance(self.trained, DistributedDataParallel)
            with self.trained.no_sync() if waits else nullcontext():  # type: ignore[operator]
                own_image, own_text, own_scale, patches = self.trained(part)
                drift = self._drift(part, own_image, patches, whole)
                carrier = (own_image * image.grad[rows]).sum() + drift
                if self.config.train_text:
                    assert text.grad is not None and scale.grad is not None
                    carrier = carrier + (own_text * text.grad[rows]).sum() + own_scale * scale.grad * last
                carrier.backward()
            drifts.append(drift.detach())
        return torch.stack(drifts).sum()

    def _contrast(
        self, parts: Sequence[Inputs], image: Tensor, text: Tensor, scale: Tensor, samples: float
    ) -> tuple[dict[str, float], Tensor]:
        """The terms that compare samples with each other; `world` makes the processes' mean the whole's loss."""
        labels = Labels.join([part.labels for part in parts])
        (all_image, first), (all_text, _) = gather(image), gather(text)
        every = labels.map(lambda x: gather(x)[0])
        loss = contrastive_sum(image, text, labels, all_image, all_text, every, first, scale) * self.world / samples
        terms = {"contrast": float(loss.detach())}
        if self.config.same_image:
            pairs = same_image_pairs(text.detach(), labels)
            (count,) = total(int(pairs.any(dim=1).sum()), device=self.device)
            among = same_image_sum(image, text, pairs, scale) * self.world / max(count, 1)
            terms["same_image"] = float(among.detach())
            loss = loss + self.config.same_image * among
        return terms, loss

    def _drift(self, part: Inputs, image: Tensor, patches: Tensor | None, whole: float) -> Tensor:
        """`distill` times how far the whole pictures of a part are from where the base puts them."""
        rows = part.labels.whole
        if not self.config.distill or not rows.any():
            return image.sum() * 0
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.towers.autocast):
            every = torch.ones(int(rows.sum()), dtype=torch.bool, device=self.device)
            target, target_patches = self.towers.see(self.base, part.image[rows], None, every)
        drift = distillation_sum(image[rows], F.normalize(target.float(), dim=-1))
        if patches is not None and target_patches is not None:
            drift = drift + self.config.distill_tokens * token_drift_sum(patches, target_patches)
        return self.config.distill * drift * self.world / whole

    def _inputs(self, batch: Batch) -> Inputs:
        tokens = torch.zeros(0, 1, dtype=torch.int64, device=self.device)
        if batch.texts:
            tokens = self.tokenize(batch.texts).to(self.device)
            tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]  # the tower is causal: padding is idle
        alpha = batch.alpha.to(self.device)
        mask = F.adaptive_avg_pool2d((alpha > 0).float(), min(MASK_GRID, alpha.shape[-1])).flatten(1)
        text_id, picture, whole = (x.to(self.device) for x in (batch.text_id, batch.picture, batch.whole))
        labels = Labels(text_id, picture, whole, mask)
        return Inputs(batch.image.to(self.device), alpha, tokens, batch.text_of.to(self.device), labels)
