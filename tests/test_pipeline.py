"""Shards in, shards and features out: what comes out is right, whole and the same, whatever comes in or happens."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
import weakref
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from grit_shards import SIDE, contents, jpg, of_scene, write
from PIL import Image
from sams import SAMS

import alpha_clip
from alpha_clip import rle
from alpha_clip.hashes import fingerprint
from alpha_clip.pipeline import (
    AnnotateGrounding,
    Caption,
    ColourSegmenter,
    Deduplicate,
    Distinct,
    Embed,
    Fitting,
    Ledger,
    Named,
    Sample,
    SamSegmenter,
    Segment,
    Sourced,
    Target,
    TransformersCaptioner,
    grit,
    inspect,
    run,
    segmenters,
)
from alpha_clip.pipeline import run as run_function
from alpha_clip.pipeline.__main__ import main
from alpha_clip.pipeline.alike import NEAR, MarkSet, looks, marked, words
from alpha_clip.pipeline.filters import box_iou
from alpha_clip.pipeline.packing import packed
from alpha_clip.pipeline.samples import Mask, batches
from alpha_clip.regions import embed_regions
from alpha_clip.scenes import draw_scene
from alpha_clip.training import TrainConfig, finetune, open_data
from alpha_clip.training.check import check
from alpha_clip.training.pictures import BadSample, RegionShards

EXTRA = 'pip install "alpha-clip[pipeline]"'
for needed in ("filelock", "pycocotools", "pyarrow"):
    pytest.importorskip(needed, reason=EXTRA)

ROOT = Path(__file__).parent.parent


def lossless(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def grit_shards(tmp_path_factory) -> list[Path]:
    """3 shards of 8 scenes."""
    folder = tmp_path_factory.mktemp("grit")
    return [write(folder / f"{k:05d}.tar", map(of_scene, range(8 * k, 8 * k + 8))) for k in range(3)]


@pytest.fixture(scope="session")
def finished(grit_shards, tmp_path_factory) -> Path:
    """What an uninterrupted run makes of them."""
    folder = tmp_path_factory.mktemp("finished")
    run(AnnotateGrounding("colour"), grit_shards, folder)
    return folder


def rejects(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def annotated(samples, folder: Path, **settings) -> Path:
    """The output folder of a run over one shard."""
    run(AnnotateGrounding("colour", **settings), [write(folder / "in" / "00000.tar", samples)], folder / "out")
    return folder / "out"


def assert_all_are_counted(folder: Path) -> None:
    for counts in (report(folder)["pictures"], report(folder)["regions"]):
        assert counts["read"] == sum(counts.values()) - counts["read"]


# --- what comes out is right ---


def test_masks_of_the_colour_segmenter_are_nearly_those_of_the_scenes(grit_shards, finished):
    overlaps, boxes = [], []
    for picture in RegionShards(finished):
        scene = draw_scene(int(picture.key), SIDE)
        exact = {region.phrase: region for region in scene.regions}
        for region in picture.regions:
            true, made = exact[region.phrase].mask > 0.5, region.mask > 0.5
            x0, y0, x1, y1 = exact[region.phrase].box
            overlaps.append((true & made).sum() / (true | made).sum())
            boxes.append(true.sum() / ((x1 - x0) * (y1 - y0)))
    assert len(overlaps) == report(finished)["regions"]["written"] > 80
    assert np.mean(overlaps) > 0.85 > 0.6 > np.mean(boxes)


@pytest.mark.filterwarnings("ignore:this model has never read")
def test_checker_and_trainer_read_the_shards_as_they_are(finished, tmp_path):
    found = check(open_data(finished))
    assert found.problems == {} and found.samples == found.read == 24
    model, _ = alpha_clip.load("tiny", device="cpu")
    finetune(model, open_data(finished), TrainConfig(steps=2, batch_size=8, workers=0), tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all() and len(losses) >= 2


def test_records_keep_pictures_captions_scores_boxes_and_sources(grit_shards, finished):
    before = [of_scene(seed) for seed in range(8)]
    with tarfile.open(finished / "00000.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    assert sorted(files) == sorted(f"{key}.{suffix}" for key, *_ in before for suffix in ("jpg", "json"))
    for key, picture, record in before:
        assert files[f"{key}.jpg"] == picture
        made = json.loads(files[f"{key}.json"])
        assert (made["caption"], made["url"]) == (record["caption"], record["url"])
        spans = {record["caption"][s:e]: (corners, score) for s, e, *corners, score in record["ref_exps"]}
        for region in made["regions"]:
            corners, score = spans[region["phrase"]]
            assert region["score"] == score
            assert region["box"] == pytest.approx([SIDE * corner for corner in corners], abs=0.01)


def test_a_picture_with_an_orientation_is_masked_as_it_is_seen(tmp_path):
    key, _, record = of_scene(3)
    stored = Image.fromarray(draw_scene(3, SIDE).image).transpose(Image.Transpose.ROTATE_90).resize((SIDE, SIDE + 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    file = io.BytesIO()
    stored.save(file, "JPEG", exif=exif, quality=95)
    out = annotated([(key, file.getvalue(), record)], tmp_path)
    (picture,) = RegionShards(out)
    assert picture.image.size == (SIDE + 16, SIDE) and len(picture.regions) == len(record["ref_exps"])


def test_of_a_jpeg_with_two_pictures_the_first_is_masked_and_the_file_stays(tmp_path):
    key, _, record = of_scene(3)
    first, second = (Image.fromarray(draw_scene(seed, SIDE).image) for seed in (3, 4))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    file = io.BytesIO()
    first.rotate(180).save(file, "MPO", save_all=True, append_images=[second], quality=95, exif=exif)
    out = annotated([(key, file.getvalue(), record)], tmp_path)
    (picture,) = RegionShards(out)
    assert abs(np.asarray(picture.image, np.int16) - np.asarray(first)).mean() < 5
    assert len(picture.regions) == len(record["ref_exps"])
    with tarfile.open(out / "00000.tar") as tar:
        assert tar.extractfile(f"{key}.jpg").read() == file.getvalue()


def test_grey_of_16_bits_stays_grey(tmp_path):
    key, _, record = of_scene(3)
    grey = np.asarray(Image.fromarray(draw_scene(3, SIDE).image).convert("L"))
    deep = lossless(grey.astype(np.uint16) * 257)
    assert Image.open(io.BytesIO(deep)).mode == "I;16"
    assert (np.asarray(grit.decoded("0", deep)[0]) == grey[..., None]).all()
    (picture,) = RegionShards(annotated([(key, deep, record)], tmp_path, area=(0, 1), iou=0))
    assert (np.asarray(picture.image) == grey[..., None]).all()


@pytest.mark.parametrize("kind", SAMS)
def test_sam_gives_each_box_its_mask_and_encodes_the_picture_once(kind, tmp_path):
    SAMS[kind](tmp_path)
    segmenter = segmenters.find(f"hf:{tmp_path}")
    assert segmenter.identity == f"{kind} {fingerprint(segmenter.model)}"
    segmenter.chunk = 2
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    boxes = [(1.0, 2.0, 30.0, 40.0), (3.0, 4.0, 60.0, 45.5), (0.0, 0.0, 70.0, 50.0)]
    calls = []
    embed = segmenter.model.get_image_embeddings
    segmenter.model.get_image_embeddings = lambda pixels: calls.append(len(pixels)) or embed(pixels)
    found = np.stack(list(segmenter(image, boxes)))
    assert calls == [1] and found.shape == (3, 50, 70) and found.dtype == bool
    for mask, box in zip(found, boxes, strict=True):  # against a forward pass of each box from pixels on
        inputs = segmenter.processor(images=image, input_boxes=[[list(box)]], return_tensors="pt")
        sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        with torch.no_grad():
            out = segmenter.model(inputs["pixel_values"], input_boxes=inputs["input_boxes"], multimask_output=False)
        (alone,) = segmenter.processor.post_process_masks(out.pred_masks, *sizes)
        assert (alone[0, 0].numpy() == mask).mean() > 0.999
    assert (found[0] != found[1]).any()


def test_sam_in_the_whole_pipeline(tmp_path, grit_shards):
    SAMS["SamModel"](tmp_path / "sam")
    work = AnnotateGrounding(f"hf:{tmp_path / 'sam'}", area=(0, 1), iou=0)
    run(work, grit_shards[:1], tmp_path / "out")
    assert check(open_data(tmp_path / "out")).read == report(tmp_path / "out")["pictures"]["written"] > 0
    assert_all_are_counted(tmp_path / "out")
    assert report(tmp_path / "out")["models"][0].startswith("segmenter: SamModel ")


def test_other_models_are_no_segmenters(tmp_path):
    for name in ("color", "hf:", "sam"):
        with pytest.raises(ValueError, match=f"the segmenter is '{name}', expected 'colour', 'hf:FOLDER'"):
            segmenters.find(name)
    from transformers import SamHQConfig, SamHQModel

    config = SamHQConfig(vision_config={"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1})
    with torch.device("meta"):
        model = SamHQModel(config)
    model.to_empty(device="cpu").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a SamHQModel, expected one of SamModel, Sam2Model, Sam3TrackerModel"):
        SamSegmenter.from_pretrained(str(tmp_path))


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'SAM needs transformers: pip install "alpha-clip\[pipeline\]"'):
        segmenters.find("hf:somewhere")
    with pytest.raises(ImportError, match=r'captions need transformers: pip install "alpha-clip\[pipeline\]"'):
        TransformersCaptioner.from_pretrained("somewhere")


def test_without_webdataset_the_error_says_what_to_install(monkeypatch, grit_shards, tmp_path):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ImportError, match=r'writing shards needs webdataset: pip install "alpha-clip\[pipeline\]"'):
        run(AnnotateGrounding("colour"), grit_shards, tmp_path)


def test_the_colour_segmenter_finds_a_rectangle_exactly_and_nothing_in_one_colour():
    pixels = np.full((40, 60, 3), 200, np.uint8)
    pixels[10:30, 20:45] = (200, 30, 30)
    (mask,) = ColourSegmenter()(Image.fromarray(pixels), [(17, 8, 50, 33)])
    expected = np.zeros((40, 60), bool)
    expected[10:30, 20:45] = True
    assert (mask == expected).all()
    (nothing,) = ColourSegmenter()(Image.fromarray(pixels), [(0, 0, 15, 40)])
    assert not nothing.any()
    (centre,) = ColourSegmenter()(Image.fromarray(pixels), [(0, 0, 60, 40)])  # there is nothing outside of the box
    assert (centre == expected).all()


# --- words ---


def blip2(folder: Path) -> None:
    """A BLIP-2 with random weights that knows a dozen words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
        PreTrainedTokenizerFast,
    )

    known = ["<pad>", "</s>", "<unk>", "<image>", "a", "cat", "dog", "red", "tree", "on", "the", "of"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **special)
    fast.padding_side = "left"
    both = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    # Its default initialisation is so small that the picture would not matter.
    vision = both | {"intermediate_size": 32, "image_size": 32, "patch_size": 8, "initializer_range": 0.5}
    query = both | {"intermediate_size": 32, "encoder_hidden_size": 16, "vocab_size": 12, "initializer_range": 0.5}
    text = both | {"model_type": "opt", "ffn_dim": 32, "vocab_size": 12, "max_position_embeddings": 64, "init_std": 1.0}
    text |= {"word_embed_proj_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config=vision, qformer_config=query, text_config=text, num_query_tokens=4, image_token_index=3
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    Blip2Processor(images, fast, num_query_tokens=4).save_pretrained(folder)


def test_blip2_says_of_each_picture_what_it_says_of_it_alone(tmp_path):
    blip2(tmp_path)
    captioner = TransformersCaptioner.from_pretrained(str(tmp_path))
    assert captioner.identity.startswith("Blip2ForConditionalGeneration ")
    pictures = [Image.fromarray(draw_scene(seed, 64).image) for seed in range(4)]
    said = captioner(pictures)
    assert len(set(said)) > 1 and all("image" not in text for text in said)
    for picture, text in zip(pictures, said, strict=True):
        inputs = captioner.processor(images=picture, text="", return_tensors="pt")
        ids = captioner.model.generate(**inputs, max_new_tokens=30, do_sample=False)
        assert captioner.processor.batch_decode(ids, skip_special_tokens=True)[0].strip() == text


def test_models_that_chat_are_asked(monkeypatch):
    asked = []

    class Processor:
        chat_template = "..."

        def apply_chat_template(self, talks, **settings):
            asked.append((talks, settings))

    captioner = object.__new__(TransformersCaptioner)
    captioner.processor = Processor()
    image = Image.new("RGB", (4, 4))
    captioner._asked([image, image])
    (((first, second), settings),) = asked
    assert first == second and first[0]["content"][0] == {"type": "image", "image": image}
    assert "few words" in first[0]["content"][1]["text"] and settings["padding"] and settings["add_generation_prompt"]


class Says:
    """Notes what it is shown, and says something of it, if it is not all white."""

    identity = "test"

    def __init__(self) -> None:
        self.shown: list[Image.Image] = []

    def __call__(self, images):
        self.shown += images
        return [f" {image.width} x {image.height} " if np.asarray(image).min() < 255 else " " for image in images]


@pytest.mark.parametrize("background", ["white", "kept"])
def test_regions_are_named_by_what_the_captioner_says_of_their_crops(background):
    pixels = np.full((40, 60, 3), 90, np.uint8)
    pixels[10:20, 20:40] = (200, 30, 30)
    pixels[30:35, 5:15] = 255
    red, white = (pixels == (200, 30, 30)).all(-1), (pixels == 255).all(-1)
    targets = (
        Target("", (20, 10, 40, 20), mask=Mask.of(red)),
        Target("", (5, 30, 15, 35), mask=Mask.of(white), number=1),
    )
    before = Sample("0", b"", "png", Image.fromarray(pixels), None, targets)
    ledger, captioner = Ledger(), Says()
    (after,) = Caption(captioner, background, context=1.0 if background == "white" else 2.0)([before], ledger)
    first = np.asarray(captioner.shown[0])
    if background == "white":
        assert first.shape == (20, 20, 3) and (first[5:15] == (200, 30, 30)).all()
        assert (first[[*range(5), *range(15, 20)]] == 255).all()
        assert [target.phrase for target in after.targets] == ["20 x 20"]
        assert [(reject.problem, reject.region) for reject in ledger.rejects] == [("empty text", 1)]
        assert "said nothing of the region" in ledger.rejects[0].reason
    else:
        assert (first == pixels[5:25, 10:50]).all()
        assert [target.phrase for target in after.targets] == ["40 x 20", "20 x 10"]
    with pytest.raises(ValueError, match="0, 'a cat': there is no mask yet: put `Segment` before"):
        Caption(captioner)([sample("0", targets=[Target("a cat", (0, 0, 9, 9))])], ledger)


# --- bad input ---

PICTURE = jpg(draw_scene(0, SIDE).image)
GOOD = of_scene(0)[2]


def png(side: int) -> bytes:
    """Many pixels, few bytes."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(file, "GIF")
    return file.getvalue()


def expression(*numbers) -> dict:
    return GOOD | {"ref_exps": [*GOOD["ref_exps"], list(numbers)]}


NO_FORMAT = "the picture cannot be read: its file begins as none of JPEG, PNG, WEBP"
BAD_PICTURES = {
    "broken jpg": (PICTURE[:200], GOOD, "unreadable picture", "the picture cannot be read"),
    "cut jpg": (PICTURE[:-1000], GOOD, "unreadable picture", "truncated"),
    "no picture": (b"<html>not found</html>", GOOD, "unreadable picture", NO_FORMAT),
    "gif": (gif(), GOOD, "unreadable picture", NO_FORMAT),
    "100 megapixels": (png(10_000), GOOD, "picture too large", "100000000 pixels"),
    "300 megapixels": (png(17_400), GOOD, "picture too large", "302760000 pixels"),
    "no json": (PICTURE, b"{'caption'", "malformed record", "is not JSON"),
    "a list": (PICTURE, b"[1]", "malformed record", "expected a record"),
    "no caption": (PICTURE, GOOD | {"caption": None}, "empty text", "its caption is None, expected words"),
    "half a character": (PICTURE, GOOD | {"caption": "a cat \ud83d"}, "malformed record", "half a character"),
    "padded": (
        PICTURE,
        GOOD | {"original_width": 1024, "original_height": 693},
        "picture of another shape",
        "is 96 x 96 and was 1024 x 693, so that its boxes are elsewhere: fetch it with --resize_mode keep_ratio",
    ),
    "no list": (PICTURE, {"caption": "a cat"}, "malformed record", '"ref_exps" is None, expected a list'),
    "no expressions": (PICTURE, GOOD | {"ref_exps": []}, "no expressions", '"ref_exps" is empty, expected [start, end'),
}
BAD_EXPRESSIONS = {
    "span after the end": ((0, 1000, 0.1, 0.1, 0.5, 0.5, 0.9), "span out of range", "the span is 0 to 1000"),
    "span before": ((-3, 2, 0.1, 0.1, 0.5, 0.5, 0.9), "span out of range", "the span is -3 to 2"),
    "span turned round": ((3, 2, 0.1, 0.1, 0.5, 0.5, 0.9), "span out of range", "the span is 3 to 2"),
    "a box without words": ((0, 0, 0.1, 0.1, 0.5, 0.5, 0.9), "empty text", "the span 0 to 0 holds no words"),
    "half a character": ((0.5, 2, 0.1, 0.1, 0.5, 0.5, 0.9), "span out of range", "the span is 0.5 to 2"),
    "box in pixels": ((0, 2, 10, 10, 50, 50, 0.9), "absurd box", "expected shares of width and height"),
    "box turned round": ((0, 2, 0.5, 0.5, 0.1, 0.1, 0.9), "absurd box", "expected x0 < x1 and y0 < y1"),
    "no box": ((0, 2, 0.5, 0.5, 0.5, 0.5, 0.9), "absurd box", "a pixel of 96 x 96 or more"),
    "nan": ((0, 2, 0.1, float("nan"), 0.5, 0.5, 0.9), "malformed expression", "nan"),
    "infinite": ((0, 2, 0.1, 0.1, float("inf"), 0.5, 0.9), "malformed expression", "inf"),
    "huge": ((0, 10**400, 0.1, 0.1, 0.5, 0.5, 0.9), "malformed expression", "expected [start, end"),
    "no score": ((0, 2, 0.1, 0.1, 0.5, 0.5), "malformed expression", "expected [start, end"),
    "words": (("0", 2, 0.1, 0.1, 0.5, 0.5, 0.9), "malformed expression", "expected [start, end"),
    "true": ((True, 2, 0.1, 0.1, 0.5, 0.5, 0.9), "malformed expression", "expected [start, end"),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_sample_is_rejected_with_the_reason_and_the_run_goes_on(name, tmp_path):
    picture, record, problem, reason = BAD_PICTURES[name]
    out = annotated([("0", picture, record), of_scene(1)], tmp_path)
    (found,) = rejects(out)
    assert (found["shard"], found["key"], found["problem"], found["region"]) == ("00000.tar", "0", problem, None)
    assert reason in found["reason"]
    assert RegionShards(out).keys == ["000000001"]
    assert report(out)["pictures"] == {"read": 2, f"rejected: {problem}": 1, "written": 1}
    assert_all_are_counted(out)


@pytest.mark.parametrize("name", BAD_EXPRESSIONS)
def test_a_bad_expression_is_rejected_and_the_others_are_kept(name, tmp_path):
    numbers, problem, reason = BAD_EXPRESSIONS[name]
    out = annotated([("0", PICTURE, expression(*numbers))], tmp_path)
    (found,) = rejects(out)
    assert (found["key"], found["problem"]) == ("0", problem)
    assert found["region"] == len(GOOD["ref_exps"]) and reason in found["reason"]
    assert len(RegionShards(out)[0].regions) == len(GOOD["ref_exps"])
    assert_all_are_counted(out)


def test_a_span_of_spaces_holds_no_words(tmp_path):
    record = GOOD | {"caption": "  " + GOOD["caption"], "ref_exps": [[0, 2, 0.1, 0.1, 0.5, 0.5, 0.9]]}
    out = annotated([("0", PICTURE, record)], tmp_path)
    assert rejects(out)[0]["reason"] == "the span 0 to 2 holds no words"
    assert report(out)["pictures"] == {"no region left": 1, "read": 1, "written": 0}


def test_a_box_slightly_outside_is_cut(tmp_path):
    sample = grit.make_sample("0", PICTURE, json.dumps(expression(0, 2, -0.009, 0, 1.009, 1, 0.9)).encode(), Ledger())
    assert sample.targets[-1].box == (0, 0, SIDE, SIDE)


@pytest.mark.parametrize("size", [(960, 960), (97, 96), (None, 5), ("9", 5), (0, 5)])
def test_pictures_that_were_made_smaller_or_say_nothing_of_it_are_used(size):
    record = GOOD | {"original_width": size[0], "original_height": size[1]}
    assert grit.make_sample("0", PICTURE, json.dumps(record).encode(), Ledger()).targets


def test_an_empty_mask_is_rejected_under_the_number_it_had(tmp_path):
    pixels = np.full((SIDE, SIDE, 3), 200, np.uint8)
    pixels[30:60, 30:60] = (200, 30, 30)
    expressions = [[0, 99, 0, 0, 1, 1, 0.9], [0, 3, 0, 0, 0.2, 0.2, 0.9], [4, 7, 0.29, 0.29, 0.65, 0.65, 0.9]]
    out = annotated([("0", lossless(pixels), {"caption": "sky red", "ref_exps": expressions})], tmp_path)
    first, second = rejects(out)
    assert (first["problem"], first["region"]) == ("span out of range", 0)
    assert (second["problem"], second["region"]) == ("empty mask", 1)
    assert "the segmenter found nothing in the box" in second["reason"]
    assert [region.phrase for region in RegionShards(out)[0].regions] == ["red"]
    with tarfile.open(out / "00000.tar") as tar:
        assert tar.getnames() == ["0.json", "0.png"]
    assert_all_are_counted(out)


def test_of_a_truncated_shard_what_is_whole_is_used(tmp_path):
    shard = write(tmp_path / "in" / "00000.tar", map(of_scene, range(4)), cut=12_000)
    run(AnnotateGrounding("colour"), [shard], tmp_path / "out")
    assert 1 <= report(tmp_path / "out")["pictures"]["written"] < 4
    found = rejects(tmp_path / "out")
    assert {reject["problem"] for reject in found} == {"malformed shard"}
    assert any("cut off at byte" in reject["reason"] for reject in found)
    assert check(open_data(tmp_path / "out")).problems == {}
    assert_all_are_counted(tmp_path / "out")


def test_a_name_that_is_not_in_utf_8_is_rejected(tmp_path):
    shard = write(tmp_path / "in" / "00000.tar", [of_scene(0), ("cafX", *of_scene(1)[1:])])
    data = io.BytesIO()
    with tarfile.open(shard) as source, tarfile.open(fileobj=data, mode="w", encoding="latin-1") as target:
        target.format = tarfile.GNU_FORMAT
        for member in source:
            content = source.extractfile(member)
            member.name = member.name.replace("X", "\xe9")
            target.addfile(member, content)
    shard.write_bytes(data.getvalue())
    run(AnnotateGrounding("colour"), [shard], tmp_path / "out")
    (found,) = rejects(tmp_path / "out")
    assert (found["key"], found["problem"]) == (r"caf\xe9", "malformed name")
    assert found["reason"] == "its name is not in UTF-8: rename its files"
    assert RegionShards(tmp_path / "out").keys == ["000000000"]
    assert_all_are_counted(tmp_path / "out")


def test_a_shard_with_nothing_usable_becomes_an_empty_one(tmp_path, grit_shards):
    bad = write(tmp_path / "in" / "bad.tar", [("0", b"", GOOD)])
    (tmp_path / "in" / "empty.tar").write_bytes(b"")
    run(AnnotateGrounding("colour"), [bad, tmp_path / "in" / "empty.tar", grit_shards[0]], tmp_path / "out")
    assert len(RegionShards(tmp_path / "out")) == 8
    assert [reject["problem"] for reject in rejects(tmp_path / "out")] == ["unreadable picture", "malformed shard"]
    alone = json.loads((tmp_path / "out" / "manifests" / "bad.json").read_text())
    assert alone["pictures"] == {"read": 1, "rejected: unreadable picture": 1, "written": 0}
    assert alone["regions"] == {"read": 0, "written": 0}


# --- filters ---


def sample(key: str, seed: int = 0, caption: str = "a cat", targets=(), **fields) -> Sample:
    data = jpg(draw_scene(seed, SIDE).image)
    return Sample(key, data, "jpg", Image.open(io.BytesIO(data)).convert("RGB"), caption, tuple(targets), fields)


def keys(samples) -> str:
    return "".join(sample.key for sample in samples)


def test_scores_and_phrase_lengths():
    ledger = Ledger()
    targets = [
        Target("a cat", (0, 0, 9, 9), 0.7),
        Target("cat", (0, 0, 9, 9), 0.9),
        Target("a b c d", (0, 0, 9, 9), 0.8),
    ]
    targets.append(Target("a dog", (0, 0, 9, 9)))  # without a score
    (kept,) = Named(0.75, (2, 3))([sample("a", targets=targets), sample("b", targets=targets[:1])], ledger)
    assert [target.phrase for target in kept.targets] == ["a dog"]
    assert ledger.regions == {"score below 0.75": 2, "phrase not of 2 to 3 words": 2}
    assert ledger.pictures == {"no region left": 1}
    assert sum(ledger.histograms["score"]["counts"]) == 4 and sum(ledger.histograms["words in a phrase"]["counts"]) == 5
    assert ledger.histograms["words in a phrase"]["counts"][:5] == [0, 1, 3, 0, 1]


def test_mask_area_and_overlap_with_the_box():
    def target(rows: int, box=(0, 0, 10, 10)) -> Target:
        mask = np.zeros((SIDE, SIDE), bool)
        mask[:rows, :10] = True
        return Target(f"{rows}", box, mask=Mask.of(mask))

    ledger = Ledger()
    targets = [target(10), target(1), target(4), target(5), target(10, (50, 50, 60, 60))]
    (kept,) = Fitting((11 / SIDE**2, 1), 0.5)([sample("a", targets=targets)], ledger)
    assert [target.phrase for target in kept.targets] == ["10", "5"]
    assert ledger.regions == {"mask area not 0.00119358 to 1 of the picture": 1, "IoU of box and mask below 0.5": 2}
    with pytest.raises(ValueError, match="a, 'a cat': there is no mask yet: put `Segment` before"):
        Fitting()([sample("a", targets=[Target("a cat", (0, 0, 9, 9))])], ledger)


def test_box_iou_by_hand():
    assert box_iou((0, 0, 10, 10), (5, 5, 15, 15)) == pytest.approx(25 / 175)
    assert box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0


@pytest.mark.parametrize(("by", "kept"), [("both", "abc"), ("picture", "ab"), ("caption", "ac"), ("keep", "abcd")])
def test_duplicates(by, kept):
    target = [Target("a cat", (0, 0, 9, 9))]
    samples = [sample("a", 0, "a cat", target), sample("b", 1, "A  cat ", target)]
    samples += [sample("c", 0, "a dog", target), sample("d", 0, "a cat", target)]
    expected = kept if by != "caption" else "ac"
    ledger, stage = Ledger(), Distinct(by)
    found = stage(samples[:2], ledger) + stage(samples[2:], ledger)
    assert keys(found) == expected
    assert ledger.pictures["duplicate"] == ledger.regions["of pictures left out"] == 4 - len(expected)


def test_only_what_comes_out_of_the_later_stages_makes_a_duplicate():
    class Odd:
        def __call__(self, samples, ledger):
            return [sample for sample in samples if sample.key not in "ac"]

    samples = [sample(key, seed) for key, seed in zip("abcdef", (0, 1, 2, 0, 2, 0), strict=True)]
    for size in (1, 2, 6):
        ledger, stage = Ledger(), Distinct("picture", [Odd()])
        found = [kept for batch in batches(samples, size) for kept in stage(batch, ledger)]
        assert keys(found) == "bde" and ledger.pictures == {"duplicate": 1}


def test_a_sample_like_one_that_was_left_out_is_written(tmp_path):
    _, picture, record = of_scene(0)
    bad = record | {"ref_exps": [[*expression[:6], 0.1] for expression in record["ref_exps"]]}
    for batch in (1, 8):
        out = annotated([("a", picture, bad), ("b", picture, record), ("c", picture, record)], tmp_path / f"{batch}",
                        score=0.5, batch=batch)  # fmt: skip
        assert RegionShards(out).keys == ["b"]
        assert report(out)["pictures"] == {"duplicate": 1, "no region left": 1, "read": 3, "written": 1}
        assert_all_are_counted(out)


def stored(picture: Image.Image, quality: int, scale: float = 1) -> Image.Image:
    """A copy in another size and quality."""
    file = io.BytesIO()
    picture.resize((round(scale * picture.width), round(scale * picture.height))).save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def discs(count: int) -> list[Image.Image]:
    """On white, of different colours and sizes, as `annotate-classification` cuts objects out."""
    random, side = np.random.default_rng(0), 160
    rows, columns = np.mgrid[:side, :side] - side / 2 + 0.5
    pictures = []
    for number in range(count):
        pixels = np.full((side, side, 3), 255, np.uint8)
        pixels[np.hypot(rows, columns) < 35 + 20 * number / count] = random.integers(0, 230, 3)
        pictures.append(Image.fromarray(pixels))
    return pictures


@pytest.mark.parametrize("kind", ["scenes", "discs"])
def test_other_pictures_are_no_duplicates_and_copies_in_another_size_or_quality_are(kind):
    pictures = [Image.fromarray(draw_scene(seed, 192).image) for seed in range(100)] if kind == "scenes" else discs(100)
    seen = MarkSet("picture")
    for picture in pictures:
        assert not seen.holds(marked(picture, None))
        seen.add(marked(picture, None))
    for quality, scale in ((50, 1), (80, 2 / 3), (90, 0.5), (75, 0.5)):
        found = [seen.holds(marked(stored(picture, quality, scale), None)) for picture in pictures]
        assert np.mean(found) >= 0.97, (quality, scale)


def test_a_look_is_near_by_the_root_mean_square_of_its_colours():
    assert looks(Image.new("RGB", (50, 30), (1, 2, 3))) == bytes([1, 2, 3]) * 64
    for by in ("both", "picture"):
        seen = MarkSet(by)
        seen.add(marked(Image.new("RGB", (8, 8), (100, 100, 100)), "a cat"))
        for levels in range(5):
            picture = Image.new("RGB", (80, 80), (100 - levels,) * 3)
            assert seen.holds(marked(picture, "A cat")) == (levels <= NEAR)
            assert seen.holds(marked(picture, "a dog")) == (levels <= NEAR and by == "picture")
    assert words("A  cat\n") == words("a cat") != words("a dog")


def test_pictures_without_a_source_are_dropped_on_request(tmp_path):
    licensed = [of_scene(0), of_scene(1)]
    licensed[1][2]["license"] = "CC0"
    licensed[1][2]["holder"] = {"name": "x"}
    out = annotated(licensed, tmp_path, require=("license", "holder"))
    assert RegionShards(out).keys == ["000000001"]
    assert report(out)["pictures"] == {"read": 2, "without license": 1, "written": 1}
    assert_all_are_counted(out)
    with tarfile.open(out / "00000.tar") as tar:
        record = json.loads(tar.extractfile("000000001.json").read())
    assert (record["license"], record["holder"]) == ("CC0", {"name": "x"})
    assert keys(Sourced(())([sample("a")], Ledger())) == "a"


NOTHING = (None, "", "   ", float("nan"), "nan", "NaN", "null", " None\n", [], {}, False, 0, 4, ["CC0"])


def test_what_states_no_licence_is_none(tmp_path):
    samples = [
        (f"{i}", picture, record | {"license": value, "id": 10**20 + i})
        for i, (value, (_, picture, record)) in enumerate((value, of_scene(0)) for value in (*NOTHING, " CC0 "))
    ]
    out = annotated(samples, tmp_path, require=("license", "id"), duplicates="keep")
    assert report(out)["pictures"] == {"read": len(samples), "without license": len(NOTHING), "written": 1}
    with tarfile.open(out / "00000.tar") as tar:
        record = json.loads(tar.extractfile(f"{len(NOTHING)}.json").read())
    assert (record["license"], record["id"]) == (" CC0 ", 10**20 + len(NOTHING))


def test_fields_that_say_nothing_are_left_out_and_the_rest_is_json(tmp_path):
    nan = float("nan")
    _, picture, record = of_scene(0)
    record |= {"url": nan, "id": nan, "author": "null", "license": nan, "width": 0, "height": nan, "tags": [nan]}
    out = annotated([("a", picture, record)], tmp_path, require=("width",))
    assert report(out)["pictures"]["written"] == 1
    with tarfile.open(out / "00000.tar") as tar:
        text = tar.extractfile("a.json").read()
    assert b"NaN" not in text and set(json.loads(text)) == {"width", "caption", "regions"}
    out = annotated([("a", picture, record)], tmp_path / "more", require=("height", "tags"))
    assert report(out)["pictures"] == {"read": 1, "without height": 1, "written": 0}


def test_a_record_that_is_no_json_is_not_written():
    with pytest.raises(ValueError, match=r"the record of a cannot be written as JSON .*: expected finite numbers"):
        packed(sample("a", width=float("nan")))


def test_filters_are_settings_of_the_run_and_counted_in_its_report(tmp_path):
    samples = [*map(of_scene, range(6)), ("again", *of_scene(0)[1:])]
    out = annotated(samples, tmp_path, score=0.5, words=(1, 2), area=(0.02, 0.5), iou=0.9)
    counts = report(out)
    assert counts["pictures"]["duplicate"] == 1
    assert {"phrase not of 1 to 2 words", "mask area not 0.02 to 0.5 of the picture"} < counts["regions"].keys()
    assert "IoU of box and mask below 0.9" in counts["regions"]
    assert_all_are_counted(out)
    for picture in RegionShards(out):
        assert all(0.02 <= (r.mask > 0.5).mean() <= 0.5 and len(r.phrase.split()) <= 2 for r in picture.regions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": (5, 1)}, "words is (5, 1), expected the least and the most"),
        ({"area": (-0.1, 1)}, "area is (-0.1, 1), expected the least and the most, neither below 0"),
        ({"iou": 1.1}, "iou is 1.1, expected 0 to 1"),
        ({"duplicates": "none"}, "duplicates is 'none', expected one of both, picture, caption, keep"),
        ({"batch": 0}, "batch is 0, expected at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AnnotateGrounding("colour", **settings)


# --- shard by shard ---


def test_the_manifest_tells_what_is_there(grit_shards, finished):
    manifest = json.loads((finished / "manifests" / "00001.json").read_text())
    shard = (finished / "00001.tar").read_bytes()
    assert manifest["files"]["00001.tar"] == {"bytes": len(shard), "sha256": hashlib.sha256(shard).hexdigest()}
    read = grit_shards[1].read_bytes()
    digest = hashlib.sha256(read).hexdigest()
    assert manifest["input"] == {"name": "00001.tar", "bytes": len(read), "sha256": digest}
    assert manifest["pictures"]["read"] == 8
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert manifest["models"] == {"segmenter": ColourSegmenter().identity}


def test_batches_and_workers_leave_the_same_bytes(grit_shards, finished, tmp_path):
    run(AnnotateGrounding("colour", batch=3), grit_shards, tmp_path / "batches")
    assert contents(tmp_path / "batches") == contents(finished)
    run(AnnotateGrounding("colour"), grit_shards, tmp_path / "workers", workers=2)
    assert contents(tmp_path / "workers") == contents(finished)


def test_a_rerun_does_only_what_is_missing(grit_shards, finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(AnnotateGrounding("colour"), grit_shards, out)
    done = []
    original = run_function.__globals__["make"]
    monkeypatch.setitem(run_function.__globals__, "make", lambda s, *rest: done.append(s.stem) or original(s, *rest))
    run(AnnotateGrounding("colour"), grit_shards, out)
    assert done == []
    (out / "00000.tar").write_bytes(b"")  # cut
    (out / "rejects" / "00001.jsonl").unlink()
    (out / "manifests" / "00002.json").unlink()
    (out / ".00002.tar.123.part").write_bytes(b"half")
    (out / "manifests" / ".00002.json.123.part").write_text("{")
    run(AnnotateGrounding("colour"), grit_shards, out)
    assert done == ["00000", "00001", "00002"]
    assert contents(out) == contents(finished)


@pytest.mark.parametrize("damaged", [b"", b'{"version": 3, "inp', b"[]", b"\xff\x00", b"{}"])
def test_a_shard_whose_manifest_is_damaged_is_done_again(damaged, tmp_path):
    shards = [write(tmp_path / f"{number}.tar", [of_scene(number)]) for number in range(2)]
    work, out = AnnotateGrounding("colour"), tmp_path / "out"
    run(work, shards, out)
    whole = contents(out)
    (out / "manifests" / "0.json").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a report of 2 shards, and 1 hashes, \d manifests: run annotate-"):
        Deduplicate(out).shards()
    run(work, shards, out)
    assert contents(out) == whole
    (out / "manifests" / "0.json").write_bytes(damaged)
    run(work, shards[1:], out)
    assert report(out)["shards"] == 1


@pytest.mark.filterwarnings("default:the shards in")
def test_shards_made_with_different_versions_are_named(tmp_path, capsys):
    shards = [write(tmp_path / f"{number}.tar", [of_scene(number)]) for number in range(2)]
    command = ["annotate-grounding", "--input", *map(str, shards), "--segmenter", "colour"]
    command += ["--output", str(tmp_path / "out")]
    main(command)
    assert "mixed_versions" not in report(tmp_path / "out") and not capsys.readouterr().err
    path = tmp_path / "out" / "manifests" / "1.json"
    manifest = json.loads(path.read_text())
    for name in ("torch", "transformers", "webdataset", "pyarrow", "ray"):
        assert manifest["versions"].get(name) == (version(name) if find_spec(name) else None)
    now = manifest["versions"]["torch"]
    manifest["versions"]["torch"] = "1.9"
    del manifest["versions"]["numpy"]
    path.write_text(json.dumps(manifest))
    main(command)
    assert report(tmp_path / "out")["mixed_versions"] == {"torch": ["1.9", now]}
    said = f"warning: the shards in {tmp_path / 'out'} were made with different versions (torch 1.9 and {now}): where"
    assert capsys.readouterr().err.startswith(said)
    with pytest.warns(UserWarning, match="were made with different versions"):
        run(AnnotateGrounding("colour"), shards, tmp_path / "out")


def test_hidden_files_are_no_shards_for_the_pipeline_and_the_trainer(tmp_path, capsys):
    write(tmp_path / "in" / "00000.tar", [of_scene(0)])
    (tmp_path / "in" / "._00000.tar").write_bytes(b"\0\5\x16\7" + bytes(4092))  # as macOS leaves them
    main(["annotate-grounding", "--input", f"{tmp_path / 'in'}", "--output", f"{tmp_path / 'out'}", "--segmenter",
          "colour"])  # fmt: skip
    assert report(tmp_path / "out")["shards"] == 1 and rejects(tmp_path / "out") == []
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["00000.tar"]
    (tmp_path / "out" / "._00000.tar").write_bytes(bytes(4096))
    assert open_data(tmp_path / "out").keys == ["000000000"]
    (tmp_path / "out" / "00000.tar").unlink()
    with pytest.raises(FileNotFoundError, match="there is no shard in"):
        RegionShards(tmp_path / "out")


def test_a_shard_that_changed_is_done_again(tmp_path):
    shard = write(tmp_path / "00000.tar", [of_scene(0)])
    run(AnnotateGrounding("colour"), [shard], tmp_path / "out")
    write(shard, [of_scene(0), of_scene(1)])
    run(AnnotateGrounding("colour"), [shard], tmp_path / "out")
    assert report(tmp_path / "out")["pictures"]["written"] == 2


KILLED = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from alpha_clip.pipeline import AnnotateGrounding, ColourSegmenter, run, segmenters, tasks

point, out, *shards = sys.argv[1:]
calls = 0

class Stops(ColourSegmenter):
    def __call__(self, image, boxes):
        global calls
        calls += 1
        if point == "in the middle of a shard" and calls == 13:
            Path(out, "waiting").touch()
            time.sleep(600)
        return super().__call__(image, boxes)

segmenters.find = lambda name, device=None: Stops()
if point == "before the manifest":
    tasks.atomic = SimpleNamespace(write_text=lambda path, text: os.kill(os.getpid(), signal.SIGKILL))
run(AnnotateGrounding("colour", batch=2), [Path(shard) for shard in shards], Path(out))
"""


@pytest.mark.slow
@pytest.mark.parametrize("point", ["in the middle of a shard", "before the manifest"])
def test_after_kill_9_the_rerun_leaves_the_files_of_an_uninterrupted_run(point, grit_shards, finished, tmp_path):
    arguments = [sys.executable, "-c", KILLED, point, str(tmp_path), *map(str, grit_shards)]
    process = subprocess.Popen(arguments, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    if point == "in the middle of a shard":
        wait_for(lambda: (tmp_path / "waiting").exists(), process)
        process.kill()
        (tmp_path / "waiting").unlink()
    assert process.wait() == -signal.SIGKILL
    if point == "in the middle of a shard":
        assert [path.name for path in (tmp_path / "manifests").iterdir()] == ["00000.json"]
        assert len(list(tmp_path.glob(".00001.tar.*.part"))) == 1
    else:
        assert (tmp_path / "00000.tar").exists() and not any((tmp_path / "manifests").iterdir())
    run(AnnotateGrounding("colour"), grit_shards, tmp_path)
    assert contents(tmp_path) == contents(finished)


@pytest.mark.slow
def test_workers_end_when_their_run_is_killed_and_the_rerun_completes_it(tmp_path):
    samples = [range(10), range(10, 110), range(110, 210)]  # when the first is done, the others are not
    shards = [write(tmp_path / "in" / f"{k}.tar", map(of_scene, seeds)) for k, seeds in enumerate(samples)]
    command = ["annotate-grounding", "--input", *map(str, shards), "--segmenter", "colour", "--workers", "2"]
    arguments = [sys.executable, "-m", "alpha_clip.pipeline", *command, "--output", str(tmp_path / "out")]
    process = subprocess.Popen(arguments, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_for(lambda: any((tmp_path / "out" / "manifests").glob("*.json")), process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_for(lambda: not any(alive(int(child)) for child in children))
    main([*command[:-2], "--output", str(tmp_path / "out")])
    run(AnnotateGrounding("colour"), shards, tmp_path / "at once")
    assert contents(tmp_path / "out") == contents(tmp_path / "at once")


INTERRUPTED = """
import sys, time
from pathlib import Path
from alpha_clip.pipeline import ColourSegmenter, segmenters
from alpha_clip.pipeline.__main__ import main

started, *arguments = sys.argv[1:]

class Waits(ColourSegmenter):
    def __call__(self, image, boxes):
        Path(started).touch()
        time.sleep(600)

segmenters.find = lambda name, device=None: Waits()
main(arguments)
"""


@pytest.mark.slow
def test_ctrl_c_leaves_no_part_and_no_traceback(grit_shards, tmp_path):
    command = ["annotate-grounding", "--input", str(grit_shards[0]), "--output", str(tmp_path / "out")]
    arguments = [sys.executable, "-c", INTERRUPTED, str(tmp_path / "started"), *command, "--segmenter", "colour"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for((tmp_path / "started").exists, process)
    assert list((tmp_path / "out").rglob("*.part"))
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == "\nstopped: the same command goes on from what is done\n"
    assert process.returncode == 130 and not list((tmp_path / "out").rglob("*.part"))


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(happened, process: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + 300  # so that what never happens is a failure
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        assert process is None or process.poll() is None, "it ended"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_worker_is_an_error_that_says_what_to_do(tmp_path, grit_shards):
    with pytest.raises(RuntimeError, match="a worker was killed, perhaps for want of memory: run the same command"):
        run(Suicidal(), grit_shards[:1], tmp_path, workers=2)


class Suicidal:
    """Work that ends its process."""

    def settings(self) -> dict:
        return {}

    def prepare(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_is_refused_where_it_would_spoil_something(grit_shards, tmp_path):
    work = AnnotateGrounding("colour")
    run(work, grit_shards[:1], tmp_path)
    both = r"\(iou: 0\.5 there, 0\.1 now; words: \[1, 30\] there, \[1, 5\] now\)"
    with pytest.raises(ValueError, match=f"with another iou, words {both}: choose another folder, or delete this one"):
        run(AnnotateGrounding("colour", iou=0.1, words=(1, 5)), grit_shards, tmp_path)
    with pytest.raises(ValueError, match=r"another command \(command: annotate-grounding there, embed now\): choose"):
        run(Embed(), grit_shards, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file, expected a folder, or a name for a new one"):
        run(work, grit_shards, tmp_path / "file")
    with pytest.raises(ValueError, match=r"would both become 00000: rename one of them"):
        run(work, [grit_shards[0], tmp_path / "elsewhere" / "00000.tar"], tmp_path)
    with pytest.raises(ValueError, match="workers is 0, expected at least 1"):
        run(work, grit_shards, tmp_path, workers=0)
    from filelock import FileLock

    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(RuntimeError, match=r"another run is at work in .*: wait for its end"),
    ):
        run(work, grit_shards, tmp_path)


def test_a_full_disk_is_an_error_that_says_what_to_do_and_leaves_what_is_done(grit_shards, finished, tmp_path):
    resource = pytest.importorskip("resource", reason="limits of a process are Unix's")
    large = write(tmp_path / "large.tar", map(of_scene, range(100, 130)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (large.stat().st_size // 2, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: free some space for .*out, and run the same command again"):
            run(AnnotateGrounding("colour"), [*grit_shards, large], tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "out").rglob("*.part"))
    run(AnnotateGrounding("colour"), grit_shards, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(finished)


def test_settings_under_which_nothing_was_done_are_forgotten(grit_shards, finished, tmp_path):
    with pytest.raises(ValueError, match="Unrecognized model"):
        run(AnnotateGrounding(f"hf:{grit_shards[0].parent}", score=0.5), grit_shards, tmp_path)
    assert json.loads((tmp_path / "settings.json").read_text())["score"] == 0.5
    run(AnnotateGrounding("colour"), grit_shards, tmp_path)
    assert contents(tmp_path) == contents(finished)


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path, monkeypatch):
    alive, peaks = [0], []
    original = grit.make_sample

    def counted(*arguments) -> Sample:
        made = original(*arguments)
        alive[0] += 1
        peaks.append(alive[0])
        weakref.finalize(made.image, lambda: alive.__setitem__(0, alive[0] - 1))
        return made

    monkeypatch.setattr(grit, "make_sample", counted)
    found = []
    for count, shards in ((10, 1), (40, 1), (10, 4)):
        paths = [write(tmp_path / f"{count}-{k}.tar", map(of_scene, range(count))) for k in range(shards)]
        peaks.clear()
        run(AnnotateGrounding("colour", batch=3), paths, tmp_path / f"out-{count}-{shards}")
        found.append(max(peaks))
    assert found[0] == found[1] == found[2] <= 2 * 3
    with pytest.raises(ValueError, match="the batch is 0 pictures, expected at least 1"):
        list(batches([], 0))


# --- features ---


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_are_those_of_embed_regions(dtype, finished, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason=EXTRA)
    shards = [finished / "00000.tar"]
    run(Embed(dtype=dtype), shards, tmp_path)
    model, _ = alpha_clip.load("tiny", device="cpu")
    expected = [
        ((picture.key, number), embed_regions(model, picture.image, region.mask)[0])
        for picture in RegionShards(shards[0])
        for number, region in enumerate(picture.regions)
    ]
    table = parquet.read_table(tmp_path / "00000.parquet")
    assert (
        str(table.schema.field("vector").type) == f"fixed_size_list<element: {table.schema.types[2].value_type}>[128]"
    )
    assert table.schema.types[2].value_type == {"float32": "float", "float16": "halffloat"}[dtype]
    rows = table.to_pydict()
    assert list(zip(rows["image_id"], rows["mask_id"], strict=True)) == [ids for ids, _ in expected]
    tolerance = {"float32": 1e-5, "float16": 5e-4}[dtype]
    np.testing.assert_allclose(rows["vector"], torch.stack([v for _, v in expected]), atol=tolerance)
    assert set(rows["model"]) == {fingerprint(model)}
    assert report(tmp_path)["regions"] == {"read": len(expected), "written": len(expected)}


def test_features_of_whole_pictures(finished, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason=EXTRA)
    shards = [finished / "00001.tar"]
    run(Embed(of="images"), shards, tmp_path / "one")
    run(Embed(of="images"), shards, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    rows = parquet.read_table(tmp_path / "one" / "00001.parquet").to_pydict()
    model, preprocess = alpha_clip.load("tiny", device="cpu")
    picture = RegionShards(shards[0])[0]
    with torch.no_grad():
        feature = model.encode_image(preprocess(picture.image)[None])[0]
    assert rows["mask_id"] == [-1] * 8 and rows["image_id"][0] == picture.key
    np.testing.assert_allclose(rows["vector"][0], feature / feature.norm(), atol=1e-5)


def test_lying_masks_and_broken_pictures_are_rejected_when_embedding(finished, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason=EXTRA)
    mask = rle.encode(np.ones((SIDE, SIDE), bool))
    lies = {
        "size": {"size": [100_000, 100_000], "counts": mask["counts"]},
        "short": mask | {"counts": mask["counts"][:-1]},
        "empty": rle.encode(np.zeros((SIDE, SIDE), bool)),
    }
    bad = [(name, PICTURE, {"caption": "x", "regions": [{"phrase": "x", "mask": lie}]}) for name, lie in lies.items()]
    bad.append(("broken", PICTURE[:300], {"caption": "x", "regions": []}))
    good = ("good", PICTURE, {"caption": "x", "regions": [{"phrase": "x", "mask": mask}]})
    captioned = ("caption", PICTURE, {"caption": "x", "regions": []})
    shard = write(tmp_path / "in" / "0.tar", [*bad, good, captioned])
    (tmp_path / "in" / "1.tar").write_bytes(b"")
    run(Embed(), [shard, tmp_path / "in" / "1.tar"], tmp_path / "out")
    problems = {reject["key"]: reject["problem"] for reject in rejects(tmp_path / "out")}
    assert problems.pop("1.tar") == "malformed shard"
    expected = {"size": "mask of another size", "short": "unusable mask", "empty": "empty mask"}
    assert problems == expected | {"broken": "unreadable picture"}
    assert parquet.read_table(tmp_path / "out" / "0.parquet").to_pydict()["image_id"] == ["good"]
    empty = parquet.read_table(tmp_path / "out" / "1.parquet")
    assert empty.num_rows == 0 and empty.schema.names == ["image_id", "mask_id", "vector", "model"]
    assert_all_are_counted(tmp_path / "out")


def test_embedding_refuses_what_it_cannot_do(monkeypatch, tmp_path, finished):
    with pytest.raises(ValueError, match="method is 'alfa', expected one of alpha, whole"):
        Embed(method="alfa")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'Parquet files need pyarrow: pip install "alpha-clip\[pipeline\]"'):
        run(Embed(), [finished / "00000.tar"], tmp_path)


# --- the page ---


def test_the_page_shows_samples_counts_and_histograms_and_asks_nobody_for_anything(finished, tmp_path):
    shards = [write(tmp_path / "in" / "0.tar", [of_scene(0), evil()])]
    run(AnnotateGrounding("colour"), shards, tmp_path / "out")
    page = inspect(tmp_path / "out", samples=5).read_text()
    assert page.count("<img src='data:image/jpeg;base64,") == 2 and page.count("<svg") == 4
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert not re.search(r"https?://|src=(?!'data:)", page)
    assert "<tr><td>written<td class=n>2" in page
    assert (tmp_path / "out" / "inspect.html").read_text() == page
    first = [inspect(finished, 3, seed).read_text() for seed in (0, 0, 1)]
    assert first[0] == first[1] != first[2]
    (finished / "inspect.html").unlink()


def evil() -> tuple[str, bytes, dict]:
    _, picture, record = of_scene(1)
    expressions = [[0, 8, *record["ref_exps"][0][2:]]]
    return "evil", picture, record | {"caption": "<script>alert(1)</script>", "ref_exps": expressions}


def test_the_page_needs_a_run_that_has_ended(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no report.json: run annotate-grounding to its end first"):
        inspect(tmp_path)
    with pytest.raises(ValueError, match="samples is -1, expected at least 0"):
        inspect(tmp_path, -1)


# --- commands ---


def test_the_commands_one_after_the_other(grit_shards, finished, tmp_path, capsys):
    pattern = str(grit_shards[0].parent / "{00000..00002}.tar")
    out, features = str(tmp_path / "out"), str(tmp_path / "features")
    main(["annotate-grounding", "--input", pattern, "--output", out, "--segmenter", "colour", "--batch", "4"])
    assert contents(tmp_path / "out") == contents(finished)
    assert re.search(r"^regions  written +\d+$", capsys.readouterr().out, re.M)
    main(["embed", "--input", out, "--output", features, "--method", "crop"])
    assert sorted(path.name for path in (tmp_path / "features").glob("*.parquet")) == [
        f"0000{k}.parquet" for k in (0, 1, 2)
    ]
    capsys.readouterr()
    main(["inspect", out, "--samples", "2"])
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'inspect.html'}\n"


def test_what_is_wrong_with_a_command_is_said_in_a_line(grit_shards, tmp_path, capsys):
    arguments = ["annotate-grounding", "--input", str(tmp_path / "no.tar"), "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--segmenter", "colour"])
    assert capsys.readouterr().err.startswith("error: there is no shard")
    with pytest.raises(FileNotFoundError, match="there is no shard"):
        main([*arguments, "--segmenter", "colour", "--debug"])
    with pytest.raises(SystemExit, match="2"):
        main([*arguments[:1], "--input", str(grit_shards[0]), *arguments[3:], "--segmenter", "sam"])
    assert "the segmenter is 'sam', expected" in capsys.readouterr().err


def test_a_stage_works_alone():
    image = Image.fromarray(draw_scene(0, SIDE).image)
    region = draw_scene(0, SIDE).regions[0]
    before = Sample("0", b"", "jpg", image, None, (Target(region.phrase, region.box),))
    ledger = Ledger()
    (after,) = Segment(ColourSegmenter())([before], ledger)
    mask = rle.decode(after.targets[0].mask.rle, (SIDE, SIDE))
    assert after.targets[0].mask.share == mask.mean() and before.targets[0].mask is None
    assert isinstance(BadSample("a", "b"), ValueError) and ledger.rejects == []
