"""Class folders in, shards out: the masks are of the class, and the words say more than its name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alpha_clip import zero_shot_classifier
from alpha_clip.evaluation import subjects
from alpha_clip.hashes import fingerprint
from alpha_clip.pipeline import ClipCaptioner, captioners
from alpha_clip.regions import embed_regions
from alpha_clip.scenes import draw_scene

EXTRA = 'pip install "alpha-clip[pipeline]"'
for needed in ("filelock", "pycocotools", "scipy"):
    pytest.importorskip(needed, reason=EXTRA)

NOUNS = ("apple", "boat", "car", "house", "star", "tree")


# --- the captioner of given texts ---


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> Path:
    """A file with what can be said of the drawings."""
    file = tmp_path_factory.mktemp("words") / "words.txt"
    file.write_text("".join(f" {noun} \n\n" for noun in NOUNS))
    return file


def crops(count: int) -> tuple[list[str], list[Image.Image]]:
    """Nouns, and pictures of them that differ in size."""
    nouns, images = [], []
    for seed in range(count):
        scene = draw_scene(seed, 96, objects=(1, 1), nouns=NOUNS)
        nouns.append(scene.regions[0].noun)
        images.append(Image.fromarray(scene.image).crop(scene.regions[0].box))
    return nouns, images


def test_a_clip_says_the_text_that_is_nearest_to_the_picture(words):
    captioner = captioners.find(f"words:{words}")
    nouns, images = crops(40)
    said = captioner(images)
    model = subjects.find("tiny", "cpu").model
    features = [embed_regions(model, image, np.ones(image.size[::-1], bool), "whole")[0] for image in images]
    weights = zero_shot_classifier(model, NOUNS, ["{}"])
    assert said == [NOUNS[int((weights @ feature).argmax())] for feature in features]
    assert np.mean([a == b for a, b in zip(said, nouns, strict=True)]) > 0.8
    assert captioner([]) == []


def test_its_identity_tells_models_and_texts_apart(words, tmp_path):
    first = captioners.find(f"words:{words}")
    assert first.identity.startswith(f"tiny {fingerprint(subjects.find('tiny').model)}, 6 texts ")
    assert captioners.find(f"words:{words}@tiny").identity == first.identity
    subject = subjects.find("tiny")
    assert ClipCaptioner(subject, NOUNS).identity == first.identity != ClipCaptioner(subject, NOUNS[::-1]).identity
    assert ClipCaptioner(subject.base, NOUNS).identity != first.identity


def test_the_model_behind_the_at_sign_may_have_one_too(words, monkeypatch):
    asked = []
    find = subjects.find
    monkeypatch.setattr(subjects, "find", lambda name, device: asked.append((name, device)) or find("tiny"))
    captioners.find(f"words:{words}@ViT-L/14@336px", "cpu")
    assert asked == [("ViT-L/14@336px", "cpu")]


@pytest.mark.parametrize("name", ["hf:", "words:", "words:@tiny", "words:file@", "blip2"])
def test_other_names_are_no_captioners(name):
    with pytest.raises(ValueError, match=f"the captioner is '{name}', expected 'hf:FOLDER', 'hf:USER/REPOSITORY'"):
        captioners.find(name)


def test_something_must_be_there_to_say(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.txt"):
        captioners.find(f"words:{tmp_path / 'none.txt'}")
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path / 'empty.txt'} holds no text, expected one on each line")
    ):
        captioners.find(f"words:{tmp_path / 'empty.txt'}")
    with pytest.raises(ValueError, match="texts is empty, expected what can be said"):
        ClipCaptioner(subjects.find("tiny"), [])
