"""CLIP whose image tower has a fourth input channel, alpha, that says where to look.

Parameter names, module names and call signatures are those of OpenAI's CLIP, so that code which reaches into it keeps
working; the one addition is ``visual.conv1_alpha`` (Alpha-CLIP, arXiv 2312.03818, section 3.2). Tensors only: no files,
no network, no PIL.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import MasksIgnored
from .inputs import ALPHA_MEAN as ALPHA_MEAN
from .inputs import ALPHA_STD as ALPHA_STD
from .inputs import FOREGROUND, as_alpha, as_image_batch, as_tokens, normalised_alpha, warn_if_not_normalised
from .transformer import LayerNorm, ResidualAttentionBlock, Transformer, is_changed, is_readable, is_watched, rows_of
from .transformer import QuickGELU as QuickGELU  # where OpenAI's clip has it too

HEAD_WIDTH = 64  # of every CLIP ViT that OpenAI released, and of all our own

# Text is encoded in one more part where that spares this many tokens: a part reads all the weights again.
_WORTH_A_PART = 64

BLIND = (
    "the alpha weights of this model are all zero: every mask is ignored, and the features are plain CLIP's. "
    "Load alpha weights (alpha_vision_ckpt_pth=), or train them."
)


class VisionTransformer(nn.Module):
    """CLIP's image tower with an alpha channel.

    ``proj`` may be set to None to get features before the projection.

    Args:
        input_resolution: height and width of the image, in pixels.
        patch_size: height and width of a patch, in pixels.
        width: of the tokens.
        layers: the number of blocks.
        heads: of the attention in each block.
        output_dim: length of the features.
    """

    proj: nn.Parameter | None

    def __init__(
        self, input_resolution: int, patch_size: int, width: int, layers: int, heads: int, output_dim: int
    ) -> None:
        super().__init__()
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.conv1_alpha = nn.Conv2d(1, width, kernel_size=patch_size, stride=patch_size, bias=False)
        nn.init.zeros_(self.conv1_alpha.weight)

        scale = width**-0.5
        self.class_embedding = _random(width, std=scale)
        self.positional_embedding = _random((input_resolution // patch_size) ** 2 + 1, width, std=scale)
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = LayerNorm(width)
        self.proj = _random(width, output_dim, std=scale)
        self._unseen = {"mask", "floating alpha"}  # what the one-time checks of `_check_alpha` have not seen yet

    def forward(self, image: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Return image features.

        Args:
            image: (B, 3, H, W) or (3, H, W), normalised as CLIP's `preprocess` does; H and W are multiples of the
                patch size, natively ``input_resolution``. Moved and cast to the weights' device and dtype.
            alpha: (B, 1, H, W), (B, H, W) or (H, W). Floating: already normalised, ``(mask - 0.5) / 0.26``, as
                `preprocess` returns it. Bool: a mask, True where to look. None: the whole image, +1.923 everywhere.
                A batch of 1 on either side is broadcast against K on the other.

        Returns:
            (B, output_dim), not normalised.

        Raises:
            TypeError: `image` is not a floating tensor, or `alpha` is neither floating nor bool.
            ValueError: the shapes do not fit.
        """
        x = self._embed(image, alpha)
        return self.project(rows_of(self.transformer, x))

    def tokens(self, image: Tensor, alpha: Tensor | None = None, layer: int = -1) -> Tensor:
        """Return the output of block `layer` before ``ln_post``, (B, 1 + N, width): class token, then patches by row.

        `layer` counts as a list index does: -1 is the last block, -2 is ``hidden_states[-2]`` of transformers' CLIP.
        Inputs and errors are those of `forward`; a `layer` that does not exist raises IndexError.
        """
        x = self.transformer.run(self._blocks(layer), self._embed(image, alpha))
        return x.permute(1, 0, 2)  # (L, B, width) -> (B, L, width)

    def project(self, tokens: Tensor) -> Tensor:
        """Apply ``ln_post`` and ``proj`` to what `tokens` returns: (..., width) -> (..., output_dim)."""
        tokens = self.ln_post(tokens)
        return tokens if self.proj is None else tokens @ self.proj

    def attention(self, image: Tensor, alpha: Tensor | None = None, layer: int = -1) -> Tensor:
        """Return the attention weights of block `layer`, (B, heads, 1 + N, 1 + N); rows sum to 1.

        Inputs and errors are those of `tokens`. ``[:, :, 0, 1:]`` is how the class token looks at the patches.
        """
        *before, block = self._blocks(layer)
        x = block.ln_1(self.transformer.run(before, self._embed(image, alpha)))
        return block.attn(x, x, x, need_weights=True, average_attn_weights=False)[1]

    def _blocks(self, layer: int) -> list[ResidualAttentionBlock]:
        blocks = self.transformer.blocks
        if not -len(blocks) <= layer < len(blocks):
            raise IndexError(f"layer {layer} of an image tower of {len(blocks)} blocks; use -{len(blocks)} to -1")
        return blocks[: layer % len(blocks) + 1]

    def _embed(self, image: Tensor, alpha: Tensor | None) -> Tensor:
        """Return the input of the first block, (1 + N, B, width)."""
        image, alpha = self._prepare(image, alpha)
        # Each convolution sees its own batch, so that K masks of one image cost one RGB convolution.
        x = self.conv1(image) + self.conv1_alpha(alpha)  # (B, width, h, w)
        h, w = x.shape[-2:]
        x = x.flatten(2).permute(0, 2, 1)  # (B, h * w, width)
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1) + self._positions(h, w).to(x.dtype)  # (B, 1 + h * w, width)
        return self.ln_pre(x).permute(1, 0, 2)

    def _positions(self, h: int, w: int) -> Tensor:
        """Return the positional embedding (1 + h * w, width), interpolated unless the size is native."""
        native = self.input_resolution // self.conv1.kernel_size[0]
        if (h, w) == (native, native):
            return self.positional_embedding
        cls, grid = self.positional_embedding[:1], self.positional_embedding[1:]
        grid = grid.to(torch.promote_types(grid.dtype, torch.float32))
        grid = grid.T.reshape(1, -1, native, native)
        grid = F.interpolate(grid, size=(h, w), mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([cls.to(grid.dtype), grid.flatten(2)[0].T])

    def _prepare(self, image: Tensor, alpha: Tensor | None) -> tuple[Tensor, Tensor]:
        """Check image and alpha; return (B, 3, H, W) and (B, 1, H, W) or (1, 1, patch, patch) in the weights' dtype."""
        image = as_image_batch(image)
        p = self.conv1.kernel_size[0]
        if any(n == 0 or n % p for n in image.shape[-2:]):
            raise ValueError(
                f"image is {tuple(image.shape)}: height and width must be multiples of the patch size {p}; "
                f"the native size is {self.input_resolution}, which `preprocess` gives"
            )
        weight = self.conv1.weight
        image = image.to(weight.device, weight.dtype)
        if alpha is None:  # one patch of foreground: the convolution gives a constant, added to every patch
            return image, image.new_full((1, 1, p, p), FOREGROUND)
        alpha = as_alpha(alpha, image)
        if self._unseen and is_readable(alpha):
            self._check_alpha(alpha)
        return image, normalised_alpha(alpha, weight.dtype).to(weight.device)

    def _check_alpha(self, alpha: Tensor) -> None:
        """Warn once of weights that ignore the mask, and once of a mask that was not normalised.

        Reading values back from a device waits for it, so that is done only on the first call it applies to; masks on
        the CPU are checked until one is wrong.
        """
        if "mask" in self._unseen and not self.training:  # in training, zero is where alpha weights start
            self._unseen.discard("mask")
            if not self.conv1_alpha.weight.any():
                warnings.warn(BLIND, MasksIgnored, stacklevel=2)
        if (
            "floating alpha" in self._unseen
            and alpha.is_floating_point()
            and (warn_if_not_normalised(alpha) or alpha.device.type != "cpu")
        ):
            self._unseen.discard("floating alpha")

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        conv1, conv1_alpha = f"{prefix}conv1.weight", f"{prefix}conv1_alpha.weight"
        if conv1 in state_dict and conv1_alpha not in state_dict:
            state_dict[conv1_alpha] = torch.zeros_like(state_dict[conv1][:, :1])
            text = f"no {conv1_alpha} in this state dict: filled with zeros. {BLIND}"
            warnings.warn(text, MasksIgnored, stacklevel=2)
        self._unseen = {"mask", "floating alpha"}
        super()._load_from_state_dict(state_dict, prefix, *args)


class CLIP(nn.Module):
    """CLIP: both towers, and the temperature between them.

    Args:
        embed_dim: length of the features.
        image_resolution: height and width of the image, in pixels.
        vision_layers: blocks of the image tower.
        vision_width: width of its tokens, a multiple of `HEAD_WIDTH`, which its heads have.
        vision_patch_size: height and width of a patch, in pixels.
        context_length: the most tokens of a text.
        vocab_size: the number of token ids.
        transformer_width: width of the text tower's tokens.
        transformer_heads: of the attention in each of its blocks.
        transformer_layers: its blocks.
    """

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: int,
        vision_width: int,
        vision_patch_size: int,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.visual = VisionTransformer(
            image_resolution, vision_patch_size, vision_width, vision_layers, vision_width // HEAD_WIDTH, embed_dim
        )
        self.transformer = Transformer(
            transformer_width, transformer_layers, transformer_heads, self.build_attention_mask()
        )
        # nn.Embedding's own values, by a way that draws none on the meta device.
        embedding = _random(vocab_size, transformer_width, std=1.0)
        self.token_embedding = nn.Embedding.from_pretrained(embedding, freeze=False)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, transformer_width))
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(torch.empty(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        # What weights alone do not tell: `load` sets these, and `save` stores them.
        self.confirmed = True  # that heads are HEAD_WIDTH wide and the activation is QuickGELU
        self.known_tokens: Tensor | None = None  # ids of a small vocabulary, see `vocabulary`; None: all of CLIP's
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        """Draw weights as in CLIP's paper (arXiv 2103.00020, section 2.4); only training from scratch needs them."""
        _normal_(self.token_embedding.weight, std=0.02)
        _normal_(self.positional_embedding, std=0.01)
        width, layers = self.transformer.width, self.transformer.layers
        proj_std = width**-0.5 * (2 * layers) ** -0.5
        for block in self.transformer.blocks:
            _normal_(block.attn.in_proj_weight, std=width**-0.5)
            _normal_(block.attn.out_proj.weight, std=proj_std)
            _normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            _normal_(block.mlp.c_proj.weight, std=proj_std)
        _normal_(self.text_projection, std=width**-0.5)

    def build_attention_mask(self) -> Tensor:
        """Return (L, L), -inf above the diagonal: a token sees itself and what came before it."""
        # It needs its values even when the model is built on the meta device: no checkpoint holds it.
        device = self.visual.conv1.weight.device
        device = torch.device("cpu") if device.type == "meta" else device
        return torch.full((self.context_length, self.context_length), -math.inf, device=device).triu_(1)

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    def encode_image(self, image: Tensor, alpha: Tensor | None = None, *, batch: int | None = None) -> Tensor:
        """Return image features (B, embed_dim), not normalised.

        Args:
            image: as in `VisionTransformer.forward`.
            alpha: likewise.
            batch: the most images, masks of one image, or pairs that go through the tower at a time, to bound the
                memory. None: all at once.

        Raises:
            TypeError: as in `VisionTransformer.forward`.
            ValueError: likewise, or `batch` is below 1.
        """
        if batch is None:
            return self.visual(image, alpha)
        if batch < 1:
            raise ValueError(f"batch is {batch}, expected 1 or more images or masks at a time, or None for all at once")
        image = as_image_batch(image)
        alphas = None if alpha is None else as_alpha(alpha, image)
        count = len(image) if alphas is None else max(len(image), len(alphas))
        features = []
        for start in range(0, max(1, count), batch):
            part = slice(start, start + batch)
            some = image if len(image) == 1 else image[part]
            their_alphas = alphas if alphas is None or len(alphas) == 1 else alphas[part]
            features.append(self.visual(some, their_alphas))
        return torch.cat(features)

    def encode_text(self, text: Tensor) -> Tensor:
        """Return text features (N, embed_dim), not normalised.

        Args:
            text: (N, L) integer token ids as `tokenize` returns them, L at most ``context_length``.

        Raises:
            TypeError: `text` is not an integer tensor.
            ValueError: `text` is not (N, L), or too long.
        """
        ends = as_tokens(text, self.context_length).argmax(dim=-1)  # the end-of-text token has the highest id of all
        if is_readable(text) and len(text) and self._is_cuttable():
            return self._encode_parts(text, ends)
        return self._encode(text, ends)

    def _encode(self, text: Tensor, ends: Tensor) -> Tensor:
        text, ends = text.to(self.positional_embedding.device), ends.to(self.positional_embedding.device)
        x = self.token_embedding(text).to(self.dtype)  # (N, L, D)
        x = x + self.positional_embedding[: text.shape[1]].to(self.dtype)
        x = x.permute(1, 0, 2)  # (L, N, D)
        if is_changed(self.ln_final):
            x = self.ln_final(self.transformer(x).permute(1, 0, 2))
            x = x[torch.arange(x.shape[0], device=x.device), ends]
        else:
            x = self.ln_final(rows_of(self.transformer, x, ends))
        return x @ self.text_projection

    def _is_cuttable(self) -> bool:
        """Whether padding after end-of-text may be skipped: every block is causal and no hook could observe it."""
        if is_watched(self.transformer, slice(None)) or is_changed(self.token_embedding, self.ln_final):
            return False
        return all(block.is_causal() for block in self.transformer.blocks)

    def _encode_parts(self, text: Tensor, ends: Tensor) -> Tensor:
        """Run `_encode` in groups of similar length, so that little padding is computed."""
        sizes, order = (ends + 1).sort()
        lengths = sizes.tolist()  # waits for the device that the tokens are on
        # Measured on CPUs alone; a GPU has work for all its cores in one part.
        parts = _parts(lengths) if self.positional_embedding.device.type == "cpu" else [lengths]
        if len(parts) == 1:
            return self._encode(text[:, : lengths[-1]], ends)
        members = order.split([len(part) for part in parts])
        features = [self._encode(text[i, : part[-1]], ends[i]) for i, part in zip(members, parts, strict=True)]
        return torch.cat(features)[order.argsort()]

    def forward(self, image: Tensor, text: Tensor, alpha: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return logits_per_image (B, N) and logits_per_text (N, B): cosines times ``logit_scale.exp()``."""
        image_features = F.normalize(self.encode_image(image, alpha), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        logits_per_image = self.logit_scale.exp().to(self.dtype) * image_features @ text_features.T
        return logits_per_image, logits_per_image.T

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name in ("input_resolution", "context_length", "vocab_size"):  # OpenAI's files carry them as tensors
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _parts(lengths: list[int]) -> list[list[int]]:
    """Split ascending lengths where that saves the most padding, and the halves again, as long as it is worth it."""
    longest = lengths[-1]
    spared, split = max(((i * (longest - lengths[i - 1]), i) for i in range(1, len(lengths))), default=(0, 0))
    if spared < _WORTH_A_PART:
        return [lengths]
    return _parts(lengths[:split]) + _parts(lengths[split:])


def _random(*shape: int, std: float) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(shape))
    _normal_(parameter, std)
    return parameter


def _normal_(parameter: Tensor, std: float) -> None:
    """Draw normally distributed values, but not on the meta device, where the first draw costs a second of imports."""
    if not parameter.is_meta:
        nn.init.normal_(parameter, std=std)


def build_model(state_dict: Mapping[str, Tensor]) -> CLIP:
    """Build a model in ``eval()`` that holds `state_dict`; all sizes are read off its shapes.

    Args:
        state_dict: OpenAI CLIP's names, with or without ``visual.conv1_alpha.weight`` (without: zeros, and a
            warning). The model takes over these tensors, in their dtypes, without a copy.

    Raises:
        ValueError: not a CLIP with a ViT image tower.
        RuntimeError: keys are missing or unexpected, all listed.
    """
    return fill(empty_model(state_dict), state_dict)


def empty_model(state_dict: Mapping[str, Tensor]) -> CLIP:
    """Build a model on the meta device, its sizes read off the shapes in `state_dict`; errors as in `build_model`."""
    if any(k.startswith("visual.layer1.") for k in state_dict):
        raise ValueError(
            "this is a CLIP with a ResNet image tower; alpha-clip's image towers are ViTs: load a ViT-B or ViT-L"
        )
    needed = ["visual.conv1.weight", "visual.positional_embedding"]
    needed += ["text_projection", "positional_embedding", "token_embedding.weight"]
    if missing := [k for k in needed if k not in state_dict]:
        raise ValueError(f"not the state dict of a CLIP in OpenAI's names: {', '.join(missing)} missing")

    def layers(prefix: str) -> int:
        return len({k.split(".resblocks.")[1].split(".")[0] for k in state_dict if k.startswith(prefix)})

    vision_width, _, patch_size, _ = state_dict["visual.conv1.weight"].shape
    grid = math.isqrt(len(state_dict["visual.positional_embedding"]) - 1)
    text_width, embed_dim = state_dict["text_projection"].shape
    with torch.device("meta"):  # no memory is filled only to be overwritten
        return CLIP(
            embed_dim=embed_dim,
            image_resolution=grid * patch_size,
            vision_layers=layers("visual.transformer.resblocks."),
            vision_width=vision_width,
            vision_patch_size=patch_size,
            context_length=len(state_dict["positional_embedding"]),
            vocab_size=len(state_dict["token_embedding.weight"]),
            transformer_width=text_width,
            transformer_heads=text_width // HEAD_WIDTH,
            transformer_layers=layers("transformer.resblocks."),
        )


def fill(model: CLIP, state_dict: Mapping[str, Tensor]) -> CLIP:
    """Give `model`, which is on the meta device, the tensors of `state_dict` as parameters; put it in ``eval()``."""
    model.load_state_dict(dict(state_dict), assign=True)
    if model.visual.conv1.weight.device.type != "cpu":
        model.to(model.visual.conv1.weight.device)  # the text tower's mask, which no state dict holds
    return model.eval()


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Cast the weights of matrix products to `dtype`, in place; layer norms and embeddings keep theirs, as in CLIP."""
    for parameter in matrices(model):
        parameter.data = parameter.data.to(dtype)


def matrices(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that CLIP keeps in half precision: of convolutions, linear layers and projections."""
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.MultiheadAttention)):
            yield from own.values()
        else:
            yield from (own[name] for name in ("proj", "text_projection") if name in own)
