"""Drawn pictures with their exact masks, in folders."""

from pathlib import Path

import numpy as np
from PIL import Image

from alpha_clip.scenes import Scene, draw_scene


def save_scene(folder: Path, name: str, seed: int = 0, **options) -> Scene:
    """A drawn picture with its exact masks beside it."""
    scene = draw_scene(9_900_000_000 + seed, 96, **{"objects": (2, 3), "overlap": 0.0} | options)
    folder.mkdir(exist_ok=True)
    Image.fromarray(scene.image).save(folder / f"{name}.png")
    masks = (255 * scene.masks).round().astype(np.uint8)
    np.savez(folder / f"{name}.masks.npz", masks=masks)
    return scene
