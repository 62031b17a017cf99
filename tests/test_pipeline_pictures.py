"""Pictures and masks of unusual sizes, models in half precision, and models that users bring themselves."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from grit_shards import of_scene, write
from PIL import Image
from sams import ANYTHING, SAMS

from alpha_clip import rle
from alpha_clip.pipeline import (
    AnnotateGrounding,
    Embed,
    Ledger,
    SamMaskGenerator,
    Sample,
    SamSegmenter,
    Segment,
    SegmentAll,
    Target,
    embedding,
    grit,
    run,
    segmenters,
)

EXTRA = 'pip install "alpha-clip[pipeline]"'
for needed in ("filelock", "pycocotools", "transformers", "webdataset"):
    pytest.importorskip(needed, reason=EXTRA)
parquet = pytest.importorskip("pyarrow.parquet", reason=EXTRA)


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def rejects(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "rejects.jsonl").read_text().splitlines()
    return [(reject["key"], reject["problem"]) for reject in map(json.loads, lines)]


def rows(folder: Path) -> dict:
    with (folder / "0.parquet").open("rb") as file:
        found: dict = parquet.read_table(file).to_pydict()
    return found


def annotated(mask: np.ndarray, count: int = 1) -> dict:
    return {"caption": "x", "regions": [{"phrase": "x", "mask": rle.encode(mask)}] * count}


# --- sizes of pictures ---


@pytest.mark.parametrize("size", [(1_000_000, 1), (1, 40_000)])
def test_a_long_thin_picture_is_rejected_and_the_run_goes_on(size, tmp_path):
    good, picture, record = of_scene(0)
    thin, mask = png(*size), np.ones(size[::-1], bool)
    boxes = record | {"ref_exps": [[0, 5, 0, 0, 1, 1, 0.9]]}
    regions = write(tmp_path / "regions" / "0.tar", [("thin", thin, annotated(mask)), (good, picture, record)])
    boxed = write(tmp_path / "boxes" / "0.tar", [("thin", thin, boxes), (good, picture, record)])
    SAMS["SamModel"](tmp_path / "sam")
    masks = AnnotateGrounding(f"hf:{tmp_path / 'sam'}", area=(0, 1), iou=0)
    for name, work, shard in (("a", Embed(), regions), ("b", Embed(of="images"), regions), ("c", masks, boxed)):
        run(work, [shard], tmp_path / name)
        assert rejects(tmp_path / name)[0] == ("thin", "picture too long and thin")
        assert json.loads((tmp_path / name / "report.json").read_text())["pictures"]["read"] == 2
    reason = f"is {size[0]} x {size[1]}, too long and thin: expected sides of 1000 to 1 at most"
    assert reason in (tmp_path / "a" / "rejects.jsonl").read_text()


def test_a_picture_as_thin_as_may_be_goes_through(tmp_path):
    mask = np.zeros((2, 2000), bool)
    mask[:, 500:600] = True
    shard = write(tmp_path / "0.tar", [("a", png(2000, 2), annotated(mask))])
    for method in ("alpha", "whole", "crop"):
        run(Embed(method=method), [shard], tmp_path / method)
        assert np.isfinite(rows(tmp_path / method)["vector"]).all() and rejects(tmp_path / method) == []
    assert grit.decoded("a", png(1000, 1))[0].size == (1000, 1)


@pytest.mark.parametrize("of", ["regions", "images"])
def test_a_picture_with_too_many_pixels_is_rejected_whatever_is_embedded(of, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 100)  # Pillow warns from here on, and refuses twice as much
    samples = [(f"{side}", png(side, side), annotated(np.ones((side, side), bool))) for side in (100, 110, 150)]
    run(Embed(of=of), [write(tmp_path / "in" / "0.tar", samples)], tmp_path / "out")
    assert rows(tmp_path / "out")["image_id"] == ["100"]
    assert rejects(tmp_path / "out") == [("110", "picture too large"), ("150", "picture too large")]


@pytest.mark.parametrize("method", ["alpha", "crop"])
def test_masks_are_decoded_some_at_a_time(method, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).random((7, 40, 50)) > 0.5
    regions = [{"phrase": "x", "mask": rle.encode(mask)} for mask in pixels]
    lying = [*regions[:6], {"phrase": "x", "mask": rle.encode(pixels[0, :20])}]
    samples = [("a", png(50, 40), {"caption": "x", "regions": regions})]
    samples += [("b", png(50, 40), {"caption": "x", "regions": lying}), ("c", *samples[0][1:])]
    shard = write(tmp_path / "in" / "0.tar", samples)
    run(Embed(method=method), [shard], tmp_path / "all")
    sizes, masks = [], embedding._Picture.masks
    monkeypatch.setattr(embedding, "_PIXELS", 3 * 40 * 50)
    monkeypatch.setattr(
        embedding._Picture, "masks", lambda picture: (sizes.append(len(some)) or some for some in masks(picture))
    )
    run(Embed(method=method), [shard], tmp_path / "some")
    assert sizes == [3, 3, 1, 3, 3, 3, 3, 1]
    some, together = rows(tmp_path / "some"), rows(tmp_path / "all")
    assert some["mask_id"] == together["mask_id"] == [*range(7)] * 2 and some["image_id"] == ["a"] * 7 + ["c"] * 7
    np.testing.assert_allclose(some["vector"], together["vector"], atol=1e-6)
    assert rejects(tmp_path / "some") == rejects(tmp_path / "all") == [("b", "mask of another size")]


def test_one_mask_at_a_time_fits_in_memory_however_large_the_picture(monkeypatch):
    picture = embedding._Picture("a", Image.new("L", (9000, 9000)), (9000, 9000), [{}] * 5)
    region = type("Region", (), {"mask": None})
    monkeypatch.setattr(embedding, "make_region", lambda *arguments: region)
    assert [len(some) for some in picture.masks()] == [1] * 5


# --- SAM ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", SAMS)
def test_sam_in_half_precision(kind, dtype, tmp_path):
    import transformers

    SAMS[kind](tmp_path)
    model = getattr(transformers, kind).from_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    boxes = [(1.0, 2.0, 30.0, 40.0), (3.0, 4.0, 60.0, 45.5)]
    exact = np.stack(list(segmenters.find(f"hf:{tmp_path}", "cpu")(image, boxes)))
    model.to(dtype).save_pretrained(tmp_path)
    segmenter = segmenters.find(f"hf:{tmp_path}", "cpu")
    assert segmenter.model.dtype == dtype
    found = np.stack(list(segmenter(image, boxes)))
    assert found.shape == (2, 50, 70) and (found == exact).mean() > 0.9
    generator = SamMaskGenerator(str(tmp_path), "cpu", 2, **ANYTHING)
    masks = list(generator(image))
    assert masks and all(mask.shape == (50, 70) for mask in masks)


@pytest.mark.parametrize("kind", SAMS)
def test_sam_enlarges_its_masks_one_by_one_to_the_same_bits(kind, tmp_path, monkeypatch):
    SAMS[kind](tmp_path)
    segmenter = SamSegmenter.from_pretrained(str(tmp_path), "cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 203, 3), dtype=np.uint8))
    boxes = [(float(x), 2.0 * x, x + 90.0, x + 155.5) for x in range(0, 100, 20)]
    enlarge, shapes = segmenter.processor.post_process_masks, []

    def counted(masks, *sizes):
        shapes.append(tuple(masks.shape[:3]))
        return enlarge(masks, *sizes)

    monkeypatch.setattr(segmenter.processor, "post_process_masks", counted)
    found = np.stack(list(segmenter(image, boxes)))
    assert shapes == [(1, 1, 1)] * 5 and 0 < found.mean() < 1
    inputs = segmenter.processor(images=image, input_boxes=[[list(box) for box in boxes]], return_tensors="pt")
    sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
    with torch.no_grad():
        out = segmenter.model(inputs["pixel_values"], input_boxes=inputs["input_boxes"], multimask_output=False)
    (together,) = enlarge(out.pred_masks, *sizes)
    assert (together[:, 0].numpy() == found).all()


# --- masks that do not fit ---


class Gives:
    """A segmenter and mask generator that gives these masks, whatever it is asked."""

    identity = "given"

    def __init__(self, *masks: np.ndarray) -> None:
        self.masks = masks

    def __call__(self, image, boxes=()):
        yield from self.masks


def sample(*boxes) -> Sample:
    return Sample("k", b"", "png", Image.new("RGB", (50, 40)), "c", tuple(Target("x", box) for box in boxes))


def test_masks_of_another_size_than_the_picture_are_refused():
    half, box = np.ones((20, 25), bool), (0, 0, 9, 9)
    expected = r"gave a mask of shape \(20, 25\), expected \(40, 50\), the picture's height and width: resize its masks"
    with pytest.raises(ValueError, match=rf"^k: the segmenter {expected}"):
        Segment(Gives(half))([sample(box)], Ledger())
    with pytest.raises(ValueError, match=rf"^k: the mask generator {expected}"):
        SegmentAll(Gives(half), "x")([sample()], Ledger())


def test_there_is_a_mask_for_each_box():
    mask, box = np.ones((40, 50), bool), (0, 0, 9, 9)
    with pytest.raises(ValueError, match="k: the segmenter gave 1 masks, expected one for each of the 2 boxes"):
        Segment(Gives(mask))([sample(box, box)], Ledger())
    with pytest.raises(ValueError, match="k: the segmenter gave too many masks, expected one for each of the 1 boxes"):
        Segment(Gives(mask, mask))([sample(box)], Ledger())


def test_without_boxes_the_model_is_not_asked(tmp_path):
    SAMS["Sam2Model"](tmp_path)
    ledger = Ledger()
    assert Segment(segmenters.find(f"hf:{tmp_path}", "cpu"))([sample()], ledger) == []
    assert ledger.pictures["no region left"] == 1
