"""The training sets of the bundled model: scenes drawn on the fly, item i as a pure function of (seed, i)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alpha_clip import masks
from alpha_clip.model import ALPHA_MEAN, ALPHA_STD
from alpha_clip.scenes import HELD_OUT, NOUNS, Region, Scene, draw_scene
from alpha_clip.tokenizer import tokenize
from alpha_clip.training import Sample
from alpha_clip.transforms import IMAGE_MEAN, IMAGE_STD, mask_box

SIZE = 48  # pixels a side, of the pictures and the model's input
CONTEXT_LENGTH = 40  # tokens of the longest caption; the model has CLIP's 77
WHOLE_SHARE = 0.1  # share of whole pictures in region training, as in the paper
RECOLOURED_SHARE = 0.3  # of all pictures
TEMPLATES = ("{}", "{}", "{}.", "a photo of {}", "a photo of {}.", "a drawing of {}", "a picture of {}")
_MEAN, _STD = np.array(IMAGE_MEAN, np.float32), np.array(IMAGE_STD, np.float32)


def image_tensor(image: np.ndarray) -> Tensor:
    """(n, n, 3) uint8 to (3, n, n), as `preprocess` does without resizing."""
    return torch.from_numpy((image.astype(np.float32) / 255 - _MEAN) / _STD).permute(2, 0, 1).contiguous()


def alpha_tensor(mask: np.ndarray) -> Tensor:
    """(n, n) in [0, 1] to (1, n, n), as `preprocess` does."""
    return torch.from_numpy((mask - ALPHA_MEAN) / ALPHA_STD).float()[None]


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


@dataclass(frozen=True)
class Captions:
    """Whole pictures with their captions, for training plain CLIP."""

    length: int
    seed: int
    objects: tuple[int, int] = (1, 4)
    scale: tuple[float, float] = (0.5, 0.95)
    attributes: float = 0.0
    alone: float = 1.0  # share of pictures of one object, whatever `objects` says
    close_ups: float = 0.3  # share of pictures that are cropped from a larger scene, as users crop theirs

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        seed, rng = self.seed + index, np.random.default_rng([self.seed, index])
        recoloured = rng.random() < RECOLOURED_SHARE
        if rng.random() < self.close_ups:
            picture, text = close_up(seed, rng)
        else:
            attributes = 0.0 if recoloured else self.attributes  # a caption must not name a colour that was changed
            alone = rng.random() < self.alone
            objects = (1, 1) if alone else self.objects
            scene = draw_scene(seed, SIZE, objects=objects, scale=self.scale, attributes=attributes)
            # A single spelling for an object: "a car" and "car" would be each other's negatives.
            picture, text = scene.image, with_article(scene.regions[0].phrase) if alone else scene.caption
        return Sample(image_tensor(recolour(picture, rng) if recoloured else picture), text)


def scene_captions(length: int, seed: int) -> Captions:
    """Pictures of a smaller object or of several objects, for the second part of stage 1."""
    return Captions(length, seed, scale=(0.25, 0.6), attributes=0.4, alone=0.6)


def close_up(seed: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """An enlarged object of a scene and its noun; half of the time without its surroundings."""
    scene = draw_scene(seed, SIZE, objects=(1, 4), scale=(0.3, 0.6))
    region = scene.regions[-1]  # the frontmost
    fill = int(rng.integers(256)) if rng.random() < 0.5 else None
    return crop(scene.image, region.mask, context=1 + 0.5 * rng.random(), fill=fill), with_article(region.noun)


def recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change colour and contrast, add noise, sometimes invert: the noun must be recognised by its form."""
    picture = image.astype(np.float32)
    grey = picture.mean(axis=2, keepdims=True)
    saturation = max(0.0, rng.uniform(-0.5, 1))
    picture = grey + saturation * (picture - grey)
    middle = picture.mean()
    picture = middle + rng.uniform(0.4, 1.3) * (picture - middle) + rng.uniform(-60, 60)
    picture += rng.normal(0, rng.uniform(0, 12), picture.shape)
    if rng.random() < 0.2:
        picture = 255 - picture
    return picture.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Regions:
    """Samples of all regions of a scene but those of held-out nouns, each under some mask, and of some whole pictures.

    The kinds keep the mask from telling what it covers: besides exact masks there are boxes, ellipses, jittered masks,
    silhouettes of other objects, and silhouettes over nothing but background.
    `use`: "alpha" trains the model; the controls are "phrases", without masks, and "crops", of the regions.
    """

    length: int
    seed: int
    use: str = "alpha"

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[Sample]:
        rng = np.random.default_rng([self.seed, index])
        recoloured = rng.random() < RECOLOURED_SHARE
        scene = draw_scene(
            self.seed + index,
            SIZE,
            objects=(1, 5),
            scale=(0.28, 0.6),
            overlap=0.3,
            attributes=0.0 if recoloured else 0.2,
        )
        if recoloured:
            scene = replace(scene, image=recolour(scene.image, rng))
        image = image_tensor(scene.image)
        samples = []
        if rng.random() < WHOLE_SHARE * 3:  # a scene has about 3 samples
            other = scene_captions(self.length, 3_500_000_000)
            samples.append(Sample(image, scene.caption) if rng.random() < 0.5 else other[index])
        for region in scene.regions:
            if region.noun not in HELD_OUT:
                samples.append(self._sample(scene, region, image, rng))
        if self.use == "alpha" and rng.random() < 0.5:
            samples += background_sample(scene, rng)
        return samples or [Sample(image, scene.caption)]

    def _sample(self, scene: Scene, region: Region, image: Tensor, rng: np.random.Generator) -> Sample:
        text = with_article(region.phrase)
        if self.use == "phrases":
            return Sample(image, text)
        if self.use == "crops":
            return Sample(image_tensor(crop(scene.image, region.mask)), text)
        return Sample(image, text, alpha_tensor(some_mask(scene, region, rng)))


def some_mask(scene: Scene, region: Region, rng: np.random.Generator) -> np.ndarray:
    """A mask of a random kind for `region`."""
    kind = rng.choice(["exact", "jitter", "box", "ellipse", "swap"], p=[0.3, 0.2, 0.15, 0.15, 0.2])
    if kind == "box":
        return masks.box(region.mask)
    if kind == "ellipse":
        return masks.ellipse(region.mask)
    if kind == "swap":
        return masks.lay_over(silhouette(rng), region.mask)
    return masks.jitter(region.mask, rng) if kind == "jitter" else region.mask


def silhouette(rng: np.random.Generator) -> np.ndarray:
    """The mask of a random object."""
    return draw_scene(int(rng.integers(2**40)), 32, objects=(1, 1), scale=(0.8, 0.9)).regions[0].mask


def background_sample(scene: Scene, rng: np.random.Generator) -> list[Sample]:
    """A silhouette where no object is, named after the background; none if there is no room.

    Half of the pictures are only the colour of the background, or its grey, so that only the outline is left to see.
    """
    free = 1 - scene.masks.max(axis=0)
    side = int(rng.integers(SIZE // 4, SIZE // 2))
    y, x = rng.integers(0, SIZE - side, size=2)
    place = np.zeros((SIZE, SIZE), np.float32)
    place[y : y + side, x : x + side] = 1
    mask = masks.lay_over(silhouette(rng), place)
    visible = mask * free
    if visible.sum() < 0.9 * mask.sum():
        return []
    picture = scene.image
    if rng.random() < 0.5:
        colour = picture[free > 0.99].mean(axis=0)
        picture = np.broadcast_to(colour if rng.random() < 0.5 else colour.mean(), picture.shape)
    return [Sample(image_tensor(picture), scene.background, alpha_tensor(visible))]


def crop(image: np.ndarray, mask: np.ndarray, context: float = 1.2, fill: int | None = None) -> np.ndarray:
    """Crop the square around the mask's box, `context` times its longer side, and resize it to the size of `image`.

    With `fill`, a cut-out: everything outside the mask gets this grey value first.
    """
    x0, y0, x1, y1 = mask_box(mask)
    if fill is not None:
        image = (image * mask[..., None] + fill * (1 - mask[..., None])).round().astype(np.uint8)
    half = context * max(x1 - x0, y1 - y0) / 2
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    h, w = mask.shape
    pad = int(np.ceil(max(0, half - cx, half - cy, cx + half - w, cy + half - h)))
    margins = ((pad, pad), (pad, pad), (0, 0))
    if fill is None:
        padded = np.pad(image, margins, "edge")
    else:
        padded = np.pad(image, margins, "constant", constant_values=fill)
    square = (cx - half + pad, cy - half + pad, cx + half + pad, cy + half + pad)
    picture = Image.fromarray(padded)
    return np.asarray(picture.resize((w, h), Image.Resampling.BICUBIC, box=square))


class Vocabulary:
    """Packs CLIP's token ids: 0 for all tokens not seen in training, then the seen ones in order.

    In this order end-of-text stays the highest id, where the text tower looks for it.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        seen = torch.cat([tokenize(t)[0] for t in texts]).unique()
        self.token_ids = seen[seen > 0]  # 0 is the padding; as a word it is "!", which is not seen
        self._packed = torch.zeros(49408, dtype=torch.int64)
        self._packed[self.token_ids.long()] = torch.arange(1, len(self.token_ids) + 1)

    def __len__(self) -> int:
        return 1 + len(self.token_ids)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N, CONTEXT_LENGTH) packed ids."""
        return self._packed[tokenize(texts, context_length=CONTEXT_LENGTH).long()]

    def varied(self, texts: Sequence[str]) -> Tensor:
        """Packed ids with a random template, and 5% of the words made unknown.

        The batch has one template, since "a car" and "a photo of a car" must not be each other's negatives. All
        randomness follows from the texts, so that a resumed run repeats it.
        """
        rng = np.random.default_rng(zlib.crc32("\n".join(texts).encode()))
        bare = rng.random() < 0.15
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        ids = self([t.removeprefix("a ").removeprefix("an ") if bare else template.format(t) for t in texts])
        start, end = self._packed[49406], self._packed[49407]
        dropped = torch.from_numpy(rng.random(ids.shape) < 0.05) & (ids != start) & (ids != end)
        return ids.masked_fill(dropped, 0)


def vocabulary() -> Vocabulary:
    """The vocabulary of the scenes' captions and phrases, and of the templates."""
    texts = {t.format("") for t in TEMPLATES} | set(NOUNS) | {"an"}
    for seed in range(4000):
        scene = draw_scene(seed, 32, objects=(1, 4), attributes=0.8)
        texts |= {scene.caption, scene.background, *(with_article(r.phrase) for r in scene.regions)}
    return Vocabulary(sorted(texts))
