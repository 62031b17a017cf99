"""Pictures and masks of unusual sizes, models in half precision, and models that users bring themselves."""

from __future__ import annotations

import io
import json
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from grit_shards import contents, of_scene, write
from PIL import Image
from sams import ANYTHING, SAMS
from test_pipeline_ray import started

from alpha_clip import box_mask, rle
from alpha_clip.pipeline import (
    AnnotateClassification,
    AnnotateGrounding,
    Caption,
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
from alpha_clip.pipeline.given import check_can_be_sent
from alpha_clip.training.pictures import RegionShards

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


# --- models of the user's own ---


class Boxes:
    """A segmenter: the box is the mask."""

    def __init__(self, name: str = "boxes") -> None:
        self.identity = f"{name} 1"

    def __call__(self, image, boxes):
        for box in boxes:
            yield box_mask(box, image.size[::-1]) > 0.5


class Quarter:
    """A mask generator: the first quarter is the mask."""

    identity = "quarter"

    def __call__(self, image):
        mask = np.zeros(image.size[::-1], bool)
        mask[: len(mask) // 2, : image.width // 2] = True
        yield mask


class Thing:
    """A captioner that says the same of everything."""

    identity = "thing"

    def __call__(self, images):
        return ["a thing"] * len(images)


class Nameless:
    def __call__(self, image, boxes):
        raise AssertionError


def some_boxes() -> Boxes:
    return Boxes()


def settings(folder: Path) -> dict:
    return json.loads((folder / "settings.json").read_text())


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("own")
    return [write(folder / f"{k}.tar", map(of_scene, range(3 * k, 3 * k + 3))) for k in range(2)]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])  # two processes start
def test_a_segmenter_of_ones_own_as_an_object_or_a_function(workers, shards, tmp_path):
    run(AnnotateGrounding(Boxes()), shards, tmp_path / "object", workers)
    picture = RegionShards(tmp_path / "object")[0]
    assert (picture.regions[0].mask == np.concatenate([*Boxes()(picture.image, [box_of(shards[0])])])).all()
    assert settings(tmp_path / "object")["segmenter"] == "boxes 1"
    before = contents(tmp_path / "object")
    run(AnnotateGrounding(Boxes()), shards, tmp_path / "object")
    assert contents(tmp_path / "object") == before
    with pytest.raises(ValueError, match=r"another segmenter \(segmenter: boxes 1 there, others 1 now\): choose"):
        run(AnnotateGrounding(Boxes("others")), shards, tmp_path / "object")
    for name, make in (("some_boxes", some_boxes), ("Boxes", Boxes), ("Boxes", partial(Boxes, "boxes"))):
        folder = tmp_path / type(make).__name__
        run(AnnotateGrounding(make), shards, folder, workers)
        assert settings(folder)["segmenter"] == f"test_pipeline_pictures.{name}"
        assert json.loads((folder / "report.json").read_text())["models"] == ["segmenter: boxes 1"]
        assert {**contents(folder), "settings.json": ""} == {**before, "settings.json": ""}


def box_of(shard: Path) -> tuple[float, ...]:
    (first, *_) = of_scene(0)[2]["ref_exps"]
    return tuple(96 * share for share in first[2:6])


def test_a_mask_generator_and_a_captioner_of_ones_own(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.jpg").write_bytes(of_scene(0)[1])
    work = AnnotateClassification(Quarter(), Thing, score=-1.0)
    run(work, [tmp_path / "cat"], tmp_path / "out")
    assert RegionShards(tmp_path / "out")[0].caption == "a thing, probably cat"
    assert settings(tmp_path / "out")["segmenter"] == "quarter"
    assert settings(tmp_path / "out")["captioner"] == "test_pipeline_pictures.Thing"


def test_what_is_no_model_is_refused():
    expected = "expected a name, an object with an `identity`, or a function without arguments that makes such an"
    with pytest.raises(TypeError, match=rf"the segmenter is <.*Nameless.*, {expected}"):
        AnnotateGrounding(Nameless())
    with pytest.raises(TypeError, match=rf"the segmenter is 3, {expected}"):
        AnnotateClassification(3, "words:x")
    with pytest.raises(TypeError, match=rf"the captioner is None, {expected}"):
        AnnotateClassification("colour", None)
    message = r"the segmenter that test_pipeline_pictures.Nameless made is <.*, without an `identity`: add one"
    with pytest.raises(TypeError, match=message):
        AnnotateGrounding(Nameless).prepare()


def test_there_is_a_text_for_each_picture():
    class Mute(Thing):
        def __call__(self, images):
            return super().__call__(images)[1:]

    (masked,) = SegmentAll(Quarter(), "x")([sample()], Ledger())
    with pytest.raises(ValueError, match="the captioner gave 0 texts, expected one for each of 1 pictures"):
        Caption(Mute())([masked], Ledger())
    first, second = Caption(Thing())([masked, masked], Ledger())
    assert first.targets[0].phrase == second.targets[0].phrase == "a thing"


def test_what_workers_cannot_be_sent_is_refused(shards, tmp_path, monkeypatch):
    remedy = "define it at the top of a module, or pass a function there that makes it in each worker"
    with pytest.raises(TypeError, match=rf"a model of the work cannot be sent to workers \(.*lambda.*\): {remedy}"):
        run(AnnotateGrounding(lambda: Boxes()), shards, tmp_path / "out", workers=2)
    prompt = ModuleType("__main__")
    prompt.Typed = type("Typed", (Boxes,), {"__module__": "__main__"})
    work = AnnotateGrounding(prompt.Typed())
    monkeypatch.setitem(sys.modules, "__main__", prompt)
    with pytest.raises(TypeError, match=f"is of a notebook or prompt, where workers do not find it: {remedy}"):
        check_can_be_sent(work)
    prompt.__file__ = "script.py"
    check_can_be_sent(work)


def test_shards_and_folder_may_be_strings(shards, tmp_path):
    run(AnnotateGrounding("colour"), [str(shard) for shard in shards], str(tmp_path / "out"))
    assert (tmp_path / "out" / "1.tar").is_file()
    with pytest.raises(TypeError, match=r"shards is 'a.tar', expected a list of paths: pass \['a.tar'\]"):
        run(AnnotateGrounding("colour"), "a.tar", tmp_path / "out")


ON_RAY = """
import sys
from pathlib import Path

from alpha_clip import box_mask
from alpha_clip.pipeline import AnnotateGrounding, Cluster, run

out, *shards = map(Path, sys.argv[1:])


class Mine:
    identity = "boxes 1"

    def __call__(self, image, boxes):
        for box in boxes:
            yield box_mask(box, image.size[::-1]) > 0.5


class Locked(Mine):
    def __reduce__(self):
        raise TypeError("cannot pickle it")


run(AnnotateGrounding(Mine()), shards, out / "object", workers=2, cluster=Cluster())
try:
    run(AnnotateGrounding(Locked()), shards, out / "none", cluster=Cluster())
except TypeError as error:
    print(error)
"""


@pytest.mark.slow  # Ray starts
def test_a_segmenter_of_ones_own_on_ray(shards, tmp_path):
    pytest.importorskip("ray.data", reason=EXTRA)
    with started(ON_RAY, tmp_path, *shards) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    run(AnnotateGrounding(Boxes()), shards, tmp_path / "plain")
    assert contents(tmp_path / "object") == contents(tmp_path / "plain")
    assert "a model of the work cannot be sent to workers (cannot pickle it): define it at the top" in output
