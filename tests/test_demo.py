"""The demo: what it does without a browser, and, in headless Chromium, what a person does with it."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sams import SAMS

import alpha_clip
from alpha_clip.demo import marks
from alpha_clip.demo.__main__ import _is_loopback, main
from alpha_clip.demo.bars import bars, message
from alpha_clip.demo.finder import HITS, Finder
from alpha_clip.demo.leftovers import Leftovers
from alpha_clip.demo.pictures import Pictures
from alpha_clip.demo.samples import samples
from alpha_clip.demo.session import Heard, Session
from alpha_clip.demo.uploads import SIDE, Refused, decode, limit_pixels
from alpha_clip.demo.viewer import Viewer, read_labels
from alpha_clip.scenes import draw_scene

ROOT = Path(__file__).parent.parent
SAMPLE = samples()[0].picture.width  # pixels; they are square
INSTALL = 'pip install "alpha-clip[demo]"'


@pytest.fixture(scope="module")
def viewer() -> Viewer:
    return Viewer(*alpha_clip.load("tiny", "cpu"))


# --- uploads ---


def saved(path: Path, size: tuple[int, int] = (60, 40), **how) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)).save(path, **how)
    return path


def bomb(path: Path, width: int, height: int) -> Path:
    """A picture of one bit a pixel, all black, of which a file holds any number in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width // 8)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "bmp"])
def test_a_picture_of_any_usual_kind_is_taken(tmp_path, kind):
    picture = decode(saved(tmp_path / f"photo.{kind}"), 1)
    assert (picture.size, picture.mode) == ((60, 40), "RGB")


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode(saved(tmp_path / "photo.jpg", exif=turned), 1).size == (40, 60)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_large_picture_is_made_smaller(tmp_path, kind):
    assert decode(saved(tmp_path / f"photo.{kind}", (2000, 1000)), 5).size == (SIDE, SIDE // 2)


def ramp(mode: str = "RGB") -> Image.Image:
    """Dark on the left, bright on the right."""
    return Image.fromarray(np.tile(np.linspace(0, 255, 200).astype(np.uint8), (150, 1))).convert("RGB").convert(mode)


def unusual() -> dict[str, tuple[Image.Image, dict]]:
    """Names of files, with pictures of the ramp as cameras and other programs write them."""
    deep = Image.fromarray(np.tile(np.linspace(0, 65535, 200).astype(np.uint16), (150, 1)))
    clear = ramp("RGBA")
    clear.putalpha(128)
    frames = {"save_all": True, "append_images": [ramp().transpose(Image.Transpose.ROTATE_180)] * 2}
    return {
        "moving.gif": (ramp(), frames),
        "moving.webp": (ramp(), frames),
        "inks.jpg": (ramp("CMYK"), {}),
        "deep.png": (deep, {}),
        "clear.png": (clear, {}),
        "palette.png": (ramp().quantize(64), {}),
        "grey.jpg": (ramp("L"), {}),
    }


@pytest.mark.parametrize("name", unusual())
def test_an_unusual_picture_looks_as_it_should_and_of_a_moving_one_its_first_is_taken(tmp_path, name):
    picture, how = unusual()[name]
    picture.save(tmp_path / name, **how)
    shown = decode(tmp_path / name, 1)
    assert (shown.size, shown.mode) == ((200, 150), "RGB")
    np.testing.assert_allclose(np.asarray(shown, float)[75, [20, 100, 180]].mean(-1), [26, 128, 231], atol=8)


@pytest.mark.parametrize("kind", ["jpg", "png", "gif", "webp", "bmp"])
@pytest.mark.parametrize("share", [0, 0.05, 0.5])
def test_a_file_that_ends_early_is_refused(tmp_path, kind, share):
    whole = saved(tmp_path / f"whole.{kind}").read_bytes()
    (tmp_path / f"part.{kind}").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(Refused, match="cannot be read as a picture"):
        decode(tmp_path / f"part.{kind}", 1)


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "text.jpg").write_text("I am no picture")
    whole = saved(tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "photo.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n%%EndComments\n")
    for path in tmp_path.glob("[tp]*"):
        with pytest.raises(Refused, match="cannot be read as a picture"):
            decode(path, 1)
    with pytest.raises(Refused, match="cannot be read as a picture"):
        decode(tmp_path / "half.png", 1)


def test_a_picture_above_the_limit_is_refused_before_it_is_decoded(tmp_path):
    path = bomb(tmp_path / "bomb.png", 16000, 12000)
    assert path.stat().st_size < 50_000
    before = time.perf_counter()
    with pytest.raises(Refused, match="too large: up to 50 million"):
        decode(path, 50)
    assert time.perf_counter() - before < 1
    with pytest.raises(Refused, match=r"too large: up to 0\.5 million pixels are taken.* 1000 x 600 pixels"):
        decode(saved(tmp_path / "photo.png", (1000, 600)), 0.5)


def test_a_picture_too_small_to_point_at_is_refused(tmp_path):
    with pytest.raises(Refused, match="too small to point at: 60 x 31 pixels"):
        decode(saved(tmp_path / "photo.png", (60, 31)), 1)
    with pytest.raises(Refused, match="too small to point at: 1024 x 26 pixels"):
        decode(saved(tmp_path / "strip.png", (1600, 40)), 1)


def test_pillow_itself_keeps_to_the_limit_whoever_opens_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = saved(tmp_path / "photo.png", (1000, 600))
    limit_pixels(0.6)
    Image.open(path).load()
    limit_pixels(0.59)
    with pytest.raises(Image.DecompressionBombError, match="exceeds limit"):
        Image.open(path)


# --- leftovers ---


def test_old_files_go_with_their_folders_and_new_ones_and_the_pages_own_stay(tmp_path):
    for name in ("own", "old"):
        (tmp_path / name).mkdir()
    (tmp_path / "own" / "scene.png").write_bytes(b"scene")
    leftovers = Leftovers(tmp_path, 0.5)
    copied = tmp_path / "old" / "stroke.png"
    copied.write_bytes(b"stroke")
    time.sleep(0.6)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "stroke.png").write_bytes(b"stroke")
    os.utime(tmp_path / "new" / "stroke.png", (0, 0))  # as a copy of an old file
    leftovers.delete_old()
    assert not copied.exists()
    assert (tmp_path / "own" / "scene.png").exists()
    assert (tmp_path / "new" / "stroke.png").exists()
    time.sleep(0.6)
    leftovers.delete_old()  # the folders were written to when their files went
    time.sleep(0.6)
    leftovers.delete_old()
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_files_that_arrive_meanwhile_do_not_end_the_deletion(tmp_path):
    leftovers, arriving = Leftovers(tmp_path, 0.01), threading.Event()

    def arrive() -> None:
        for number in range(2000):
            (tmp_path / f"{number % 7}").mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # its folder went in between
                (tmp_path / f"{number % 7}" / f"{number}.png").touch()
        arriving.set()

    threading.Thread(target=arrive).start()
    while not arriving.is_set():
        leftovers.delete_old()
    for _ in range(2):
        time.sleep(0.05)
        leftovers.delete_old()
    assert not list(tmp_path.iterdir())


# --- marks ---


def layer(box: tuple[int, int, int, int], size: tuple[int, int] = (60, 40)) -> np.ndarray:
    painted = np.zeros((*size[::-1], 4), np.uint8)
    x0, y0, x1, y1 = box
    painted[y0:y1, x0:x1] = (214, 32, 78, 127)
    return painted


def test_strokes_are_what_any_layer_is_painted_on():
    mask = marks.strokes([layer((0, 0, 10, 10)), layer((50, 30, 60, 40))], (60, 40))
    assert mask[:10, :10].all() and mask[30:, 50:].all() and mask.sum() == 200


@pytest.mark.parametrize("layers", [[], [layer((0, 0, 1, 1))], [layer((0, 0, 10, 10), (70, 40))]])
def test_no_stroke_a_slip_or_a_stroke_on_the_picture_before_mark_nothing(layers):
    assert marks.strokes(layers, (60, 40)) is None


def test_a_box_is_that_between_two_corners_whichever_they_are():
    mask = marks.box((50, 25, 100, 50), (60, 40))
    assert mask[10:20, 30:].all() and mask.sum() == 300
    for corners in [(100, 50, 50, 25), (100, 25, 50, 50)]:
        np.testing.assert_array_equal(marks.box(corners, (60, 40)), mask)
    assert marks.box((50, 25, 50, 50), (60, 40)) is marks.box((50, 25, 51, 26), (60, 40)) is None


def test_places_go_to_percent_and_back():
    for at in [(0, 0), (59, 39), (30, 7)]:
        x, y = marks.pixel(marks.percent(at, (60, 40)), (60, 40))
        assert (int(x), int(y)) == at
    assert marks.pixel((100, 100), (60, 40)) == (59.5, 39.5)


def test_a_mark_and_a_point_are_drawn_and_the_picture_itself_is_not():
    picture = Image.new("RGB", (60, 40), "white")
    shown = marks.shown(picture, marks.box((0, 0, 50, 100), (60, 40)), (75, 50))
    assert shown.getpixel((15, 20)) != (255, 255, 255) and shown.getpixel((45, 20)) == (214, 32, 78)
    assert shown.getpixel((58, 2)) == (255, 255, 255) and picture.getcolors() == [(2400, (255, 255, 255))]


# --- what is said ---


def test_of_every_sample_each_part_is_named_right_by_the_mask_and_by_the_crop(viewer):
    for sample in samples():
        photo = viewer.photo(sample.picture)
        for i, (x0, y0, x1, y1) in enumerate(sample.boxes):
            mask = np.zeros(photo.size[::-1], bool)
            mask[y0:y1, x0:x1] = True
            shares = viewer.shares(photo, mask, sample.labels)
            assert shares.keys() == {"whole", "alpha", "crop"}
            assert int(np.argmax(shares["alpha"])) == int(np.argmax(shares["crop"])) == i, (sample.name, i)


def test_shares_are_those_of_the_library(viewer):
    sample = samples()[1]
    photo, mask = viewer.photo(sample.picture), np.zeros((SAMPLE, SAMPLE), bool)
    mask[100:250, 50:200] = True
    model, weights = viewer.model, alpha_clip.zero_shot_classifier(viewer.model, sample.labels, ["{}"])
    for way, shares in viewer.shares(photo, mask, sample.labels).items():
        feature = alpha_clip.embed_regions(model, sample.picture, mask, way)
        expected = (model.logit_scale.exp() * feature @ weights.T).softmax(dim=-1)[0]
        np.testing.assert_allclose(shares, expected.detach(), atol=1e-6)
    assert viewer.shares(photo, None, sample.labels).keys() == {"whole"}


def test_the_attention_lies_where_the_mark_is(viewer):
    sample = samples()[0]
    photo, (x0, y0, x1, y1) = viewer.photo(sample.picture), sample.boxes[2]
    mask = np.zeros(photo.size[::-1], bool)
    mask[y0:y1, x0:x1] = True
    colour = np.asarray(viewer.attention(photo, mask), float)
    red = colour[..., 0] - colour[..., 2]
    assert red[mask].mean() > 3 * red[~mask].mean()
    assert viewer.attention(photo, None).size == photo.size


def test_labels_are_read_from_lines_and_commas():
    assert read_labels(" a cat,a dog\n\n, a cat\nan owl ,") == ["a cat", "a dog", "an owl"]
    assert read_labels(" \n,") == []
    with pytest.raises(ValueError, match="These are 21 names; up to 20"):
        read_labels(",".join(f"thing {i}" for i in range(21)))
    with pytest.raises(ValueError, match="has 101 letters; up to 100"):
        read_labels("a" * 101)


def test_a_label_too_long_for_the_model_and_words_it_never_read_are_told(viewer):
    photo = viewer.photo(samples()[0].picture)
    with pytest.raises(ValueError, match="too long for this model"):
        viewer.shares(photo, None, ["é" * 100])
    assert viewer.unread(["a cat", "a zebra", "a zebra and a saxophone"]) == ["saxophone", "zebra"]


def test_bars_say_in_words_what_they_show_and_run_nothing_that_is_typed():
    page = bars(["a cat", "<script>"], {"whole": [0.25, 0.75]}, "a <b> note")
    assert page.count("<li") == 2 and "25%" in page and "✓</span>75%" in page and "width:75.0%" in page
    assert page.count("Mark something in the picture") == 2
    assert "<script>" not in page and "&lt;script&gt;" in page and "a &lt;b&gt; note" in page
    assert "&lt;b&gt;" in message("<b>")


# --- clicks and the folder ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("kind", SAMS)
def test_a_click_is_sams_own_answer_at_that_point(kind, dtype, tmp_path):
    transformers = pytest.importorskip("transformers", reason='pip install "alpha-clip[pipeline]"')
    from alpha_clip.demo.clicks import Clicks

    SAMS[kind](tmp_path)
    getattr(transformers, kind).from_pretrained(tmp_path).to(dtype).save_pretrained(tmp_path)
    clicks = Clicks(str(tmp_path), "cpu")
    picture = Image.fromarray(draw_scene(3, (48, 64)).image)
    mask = clicks.mask(picture, clicks.embed(picture), (20, 30))
    assert (mask.shape, mask.dtype) == ((48, 64), bool)

    asked = clicks._processor(
        images=picture, input_points=[[[[20.0, 30.0]]]], input_labels=[[[1]]], return_tensors="pt"
    )
    with torch.no_grad():
        found = clicks._model(
            pixel_values=asked["pixel_values"].to(dtype),
            input_labels=asked["input_labels"],
            input_points=asked["input_points"].float(),
        )
    sizes = [asked[name] for name in ("original_sizes", "reshaped_input_sizes") if name in asked]
    (masks,) = clicks._processor.post_process_masks(found.pred_masks.float(), *sizes)
    np.testing.assert_array_equal(mask, masks[0, found.iou_scores.flatten().argmax()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four scenes with a boat in one of them, and the exact masks beside each."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, nouns in enumerate([("cat", "tree"), ("boat", "sun"), ("house", "dog"), ("apple", "key")]):
        scene = draw_scene(i, 128, objects=(2, 2), nouns=nouns, overlap=0.0)
        Image.fromarray(scene.image).save(folder / f"{nouns[0]}.png")
        np.savez(folder / f"{nouns[0]}.masks.npz", masks=scene.masks)
    return folder


def test_a_folder_is_searched_by_text(viewer, folder, tmp_path):
    finder = Finder(folder, tmp_path / "index", viewer.model, "tiny")
    found = finder("a boat")
    assert finder.pictures == 4 and 4 <= len(found) <= HITS
    assert found[0][1] == "boat.png" and isinstance(found[0][0], Image.Image)
    assert Finder(folder, tmp_path / "index", viewer.model, "tiny")("a boat")[0][1] == "boat.png"  # from the disk


def test_a_folder_without_pictures_and_an_index_of_another_model_are_errors(viewer, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no picture that can be read"):
        Finder(tmp_path / "empty", tmp_path / "index", viewer.model, "tiny")
    with pytest.raises(ValueError, match="missing is no folder"):
        Finder(folder / "missing", tmp_path / "index", viewer.model, "tiny")
    with pytest.warns(UserWarning, match="alpha weights of zero"):
        other, _ = alpha_clip.load("tiny", "cpu", alpha_vision_ckpt_pth=None)
    with pytest.raises(ValueError, match="use that model, or another folder"):
        Finder(folder, tmp_path / "index", other, "tiny")


# --- what one visitor does, in any order ---


def heard(
    clock: float, number: int = 1, tool: str = "Paint", labels: str = "a cat, a car", looks: bool = False
) -> Heard:
    return Heard(clock, number, tool, labels, looks)


def test_of_marks_and_of_how_the_page_is_set_the_latest_by_the_visitors_clock_counts(viewer):
    session = Session()
    session.open(viewer.photo(samples()[0].picture))
    first = session.begin_mark(heard(5))
    assert session.begin_mark(heard(4, tool="Box", labels="a dog", looks=True)) is None
    assert (session.tool, session.labels, session.looks) == ("Paint", "a cat, a car", False)
    second = session.begin_mark(heard(5, labels="a cow"))  # no clock is fine enough for all
    assert first != second == session.turn and session.labels == "a cow"
    session.hear(heard(7, tool="Box", labels="an owl", looks=True))
    assert session.begin_mark(heard(6)) == session.turn != second  # made earlier than that was typed, but no mark since
    assert (session.tool, session.labels, session.looks) == ("Box", "an owl", True)
    assert session.begin_mark(heard(8, number=2)) is None


def test_a_picture_ends_what_is_being_marked_and_only_a_later_picture_ends_it(viewer):
    session, photo = Session(), viewer.photo(samples()[0].picture)
    session.open(photo)
    choice = session.begin_choice(heard(5))
    turn = session.begin_mark(heard(6))
    assert session.choice == choice and session.turn == turn
    session.open(photo)
    assert session.turn != turn and session.begin_mark(heard(7)) is None
    assert session.begin_choice(heard(4)) is None and session.begin_choice(heard(5)) == session.choice != choice


class Squares:
    """In place of SAM: a square around each point, and something that happens while it is looked for."""

    def __init__(self) -> None:
        self.embedded: list[Image.Image] = []
        self.meanwhile = lambda: None

    def embed(self, picture: Image.Image) -> Image.Image:
        self.embedded.append(picture)
        return picture

    def mask(self, picture: Image.Image, embedding: Image.Image, point: tuple[float, float]) -> np.ndarray:
        assert embedding is picture
        (meanwhile, self.meanwhile), (x, y) = (self.meanwhile, lambda: None), map(int, point)
        meanwhile()
        mask = np.zeros(picture.size[::-1], bool)
        mask[max(0, y - 20) : y + 20, max(0, x - 20) : x + 20] = x > 0
        return mask


@pytest.fixture
def page(viewer, tmp_path, monkeypatch):
    """A page that nobody serves, whose clicks are `Squares`."""
    pytest.importorskip("gradio", reason=INSTALL)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))
    from alpha_clip.demo.page import Page

    async def build() -> Page:
        return Page(viewer, samples(), clicks=Squares())

    return asyncio.run(build())  # without a loop gradio would leave one of its own open


@pytest.fixture
def session(page) -> Session:
    return page._enter(Session(), *heard(0))


def edited(*layers: np.ndarray) -> dict:
    return {"background": None, "layers": [*layers], "composite": None}


SIZE = (SAMPLE, SAMPLE)


def test_a_click_marks_and_the_picture_is_embedded_once(page, session):
    for x in (25, 75):
        shown = page._clicked(x, 50, session, *heard(x))
        assert "a cat" in shown[page._answers] and Path(shown[page._target]).exists()
        assert session.region.sum() == 1600
    assert page._clicks.embedded == [samples()[0].picture] == [session.photo.image]


def test_a_click_answered_after_another_picture_was_chosen_is_dropped_and_so_is_its_embedding(page, session):
    page._clicks.meanwhile = lambda: page._choose(samples()[1], session, *heard(2))
    assert page._clicked(50, 50, session, *heard(1)) == {page._session: session}
    assert session.region is None and session.photo.image == samples()[1].picture
    page._clicked(
        50, 50, session, *heard(3, number=2)
    )  # the embedding is asked for again: `Squares` refuses the other one
    assert page._clicks.embedded[1] is session.photo.image and session.region.sum() == 1600


@pytest.mark.parametrize(
    "meanwhile",
    [
        lambda page, session: page._restart(session, *heard(1)),  # a dropped file has no time of its own
        lambda page, session: page._switch(None, *[0] * 4, session, *heard(2)),
        lambda page, session: page._boxed(0, 0, 10, 10, session, *heard(2)),
    ],
)
def test_a_click_answered_after_something_else_was_marked_is_dropped(page, session, meanwhile):
    page._clicks.meanwhile = lambda: meanwhile(page, session)
    assert page._clicked(50, 50, session, *heard(1)) == {page._session: session}
    assert session.region is None or session.region[0, 0]


def test_a_click_on_nothing_says_so(page, session, monkeypatch):
    import gradio

    said = []
    monkeypatch.setattr(gradio, "Info", said.append)
    assert page._clicked(0, 50, session, *heard(1))[page._answers].count("Mark something") == 2
    assert said == ["Nothing was found at that point: try another one."] and session.region is None


def test_strokes_that_are_told_late_are_dropped(page, session):
    one, other = layer((0, 0, 100, 100), SIZE), layer((200, 200, 300, 300), SIZE)
    page._painted(edited(one, other), session, *heard(2))
    assert page._painted(edited(one), session, *heard(1)) == {page._session: session}
    assert session.region.sum() == 20_000
    page._choose(samples()[1], session, *heard(3))
    assert page._painted(edited(one), session, *heard(4)) == {page._session: session}  # the other was not yet shown
    assert session.region is None and session.photo.image == samples()[1].picture


def test_a_tool_chosen_while_a_picture_is_on_its_way_is_the_new_pictures(page, session, monkeypatch):
    photo, strokes = page._viewer.photo, edited(layer((0, 0, 100, 100), SIZE))

    def slowly(picture):
        page._switch(strokes, *[0] * 4, session, *heard(2, tool="Box"))
        return photo(picture)

    monkeypatch.setattr(page._viewer, "photo", slowly)
    page._choose(samples()[1], session, *heard(1))
    assert session.photo.image == samples()[1].picture and session.region.sum() == pytest.approx(154**2, rel=0.01)
    monkeypatch.undo()
    page._choose(samples()[2], session, *heard(3, number=2, tool="Paint"))
    page._switch(strokes, *[0] * 4, session, *heard(4, number=2, tool="Box"))  # which the browser has yet to show
    assert session.region.sum() == pytest.approx(154**2, rel=0.01)
    page._switch(strokes, *[0] * 4, session, *heard(5, number=2, tool="Paint"))
    assert session.region is None
    page._switch(strokes, *[0] * 4, session, *heard(6, number=3, tool="Paint"))
    assert session.region.sum() == 10_000


def test_what_is_typed_while_the_model_looks_is_answered_and_nothing_older(page, session, monkeypatch):
    shares, typed = page._viewer.shares, []

    def slowly(*asked):
        if not typed:
            typed.append(None)
            typed[0] = page._typed(session, *heard(2, labels="an owl"))
        return shares(*asked)

    monkeypatch.setattr(page._viewer, "shares", slowly)
    shown = page._painted(edited(layer((0, 0, 100, 100), SIZE)), session, *heard(1))
    assert page._answers not in shown and page._heat in shown
    assert "an owl" in typed[0][page._answers] and "Mark something" not in typed[0][page._answers]


def test_two_taps_make_a_box_and_a_box_without_area_none(page, session):
    tap = lambda x, y: type("Tap", (), {"index": (x, y)})()  # noqa: E731
    page._tapped_corner(tap(300, 100), session, *heard(1))
    assert session.corner and session.region is None
    shown = page._tapped_corner(tap(100, 200), session, *heard(2))
    np.testing.assert_allclose([shown[side] for side in page._sides], [26.2, 26.2, 78.3, 52.2], atol=0.11)
    assert session.corner is None and session.region.sum() == pytest.approx(200 * 100, rel=0.02)
    for clock in (3, 4):
        shown = page._tapped_corner(tap(100, 200), session, *heard(clock))
    assert session.region is None and shown[page._answers].count("Mark something") == 2


def test_a_session_that_gradio_has_forgotten_is_told_so_until_a_picture_is_chosen(page, tmp_path):
    import gradio

    forgotten = Session()
    for event in (
        lambda: page._painted(None, forgotten, *heard(1)),
        lambda: page._typed(forgotten, *heard(1)),
        lambda: page._restart(forgotten, *heard(1)),
        lambda: page._clicked(50, 50, forgotten, *heard(1)),
    ):
        with pytest.raises(gradio.Error, match="Choose one, or send yours again"):
            event()
    saved(tmp_path / "photo.png")
    assert page._answers in page._take(str(tmp_path / "photo.png"), forgotten, *heard(1))
    assert forgotten.photo.size == (60, 40)


def test_a_picture_is_written_once_and_is_as_young_as_it_was_last_shown(tmp_path):
    pictures = Pictures(tmp_path / "files")
    path = pictures.path(samples()[0].picture)
    before = os.stat(path)
    os.utime(path, (0, 0))
    assert pictures.path(samples()[0].picture) == path and pictures.path(samples()[1].picture) != path
    assert os.stat(path).st_ino == before.st_ino and os.stat(path).st_mtime >= before.st_mtime
    assert Pictures(tmp_path).path(samples()[0].picture).split("/")[-1] != path.split("/")[-1]
    assert len(list((tmp_path / "files").iterdir())) == 2


# --- the command ---


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("page", "layout", "style"):
        monkeypatch.delitem(sys.modules, f"alpha_clip.demo.{name}", raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main([]) == 1
    assert capsys.readouterr().err == f"alpha_clip.demo: the demo needs gradio: {INSTALL}\n"


def test_importing_the_package_does_not_import_gradio():
    code = "import sys, alpha_clip.demo; print('gradio' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-megabytes", "4"], "4 is less than 5, which a picture with strokes on it can take"),
        (["--port", "99999"], "99999 is not between 1 and 65535"),
        (["--max-megapixels", "-1"], "-1 is not more than 0"),
        (["--keep", "0"], "0 is less than 1"),
        (["--prot", "1"], "unrecognized arguments"),
    ],
)
def test_what_is_asked_wrongly_ends_with_2(arguments, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "near"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_which_addresses_are_this_computer(host, near):
    assert _is_loopback(host) is near


def test_a_folder_that_is_none_ends_with_1_and_one_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gradio", reason=INSTALL)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "set by the command")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert main(["--folder", str(tmp_path / "none"), "--device", "cpu"]) == 1
    assert re.fullmatch(r"alpha_clip\.demo: .*none is no folder.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("taken", [True, False])
def test_an_address_that_is_taken_or_not_there_is_told_before_anything_is_loaded(taken, monkeypatch, capsys):
    pytest.importorskip("gradio", reason=INSTALL)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "set by the command")
    monkeypatch.setattr("alpha_clip.demo.__main__.load", None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["--port", port] if taken else ["--host", "300.1.1.1"]) == 1
    said = f"port {port} of 127.0.0.1 (Address already in use" if taken else "300.1.1.1 ("
    assert f"cannot listen at {said}" in (err := capsys.readouterr().err) and err.count("\n") == 1


# --- in a browser ---

WATCHED = """
import runpy, sys

def tell(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = args[1] if event == "socket.connect" else args
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", None):
            print("OUTSIDE", event, args, flush=True)

sys.addaudithook(tell)
sys.argv = ["alpha_clip.demo", *sys.argv[1:]]
runpy.run_module("alpha_clip.demo", run_name="__main__")
"""


class Server:
    """The command in a process of its own, which tells of connections to other computers, and its temporary files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.log = folder, folder.parent / f"{folder.name}.log"
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WATCHED, *arguments], env=env, stdout=log, stderr=subprocess.STDOUT
            )
        until = time.monotonic() + 300
        while not (found := re.search(r"Open (http://127\.0\.0\.1:\d+/)", self.log.read_text())):
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                self.process.wait()
                raise AssertionError(self.log.read_text())
            time.sleep(0.1)
        self.url = found[1]

    def files(self) -> int:
        return sum(path.is_file() for path in self.folder.rglob("*"))

    def memory(self) -> float:
        """Resident, in MB."""
        status = Path(f"/proc/{self.process.pid}/status")
        if not status.exists():
            pytest.skip("reads the memory of a process from /proc")
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read_text())[1]) / 1e3

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        """As systemd and Docker do."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=120) == 0
        said = self.log.read_text()
        assert "OUTSIDE" not in said
        assert "alpha_clip/demo" not in said  # no traceback of ours; uvicorn has its own, of windows that are closed
        assert list(self.folder.iterdir()) == []  # nobody's picture is left


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("gradio", reason=INSTALL)
    with Server(tmp_path_factory.mktemp("plain"), "--max-megabytes", "5", "--max-megapixels", "50") as server:
        yield server


STROKE = '"layers":[{'  # in what the browser tells of the editor, once there are any


class Visitor:
    """Somebody with the page open, and all addresses that it asked for."""

    def __init__(self, browser, url: str, width: int = 1280, height: int = 1000, **options) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page, self.asked = self.context.new_page(), []
        self.page.set_default_timeout(120_000)
        self.page.on("request", lambda request: self.asked.append(request.url))
        with self.page.expect_response(
            lambda response: self.tells(response, "background")
        ):  # the editor has its picture
            self.page.goto(url)

    @staticmethod
    def tells(response, words: str) -> bool:
        """Whether it is the server's to an event in which these are found."""
        return "queue/join" in response.url and words in response.request.post_data

    def best(self, way: str, label: str) -> None:
        """Wait until the label wins."""
        self.page.locator(f"#answers .{way} .best .name", has_text=re.compile(f"^{label}$")).wait_for()

    def edges(self, box: tuple[float, ...]) -> None:
        """Wait until the sliders have the edges of a box in pixels."""
        self.page.wait_for_function(
            """box => [...document.querySelectorAll(".box input[type=number]")].every(
                (field, i) => Math.abs(field.value - box[i]) < 0.5)""",
            arg=[100 * edge / SAMPLE for edge in box],
        )

    def place(self, x: float, y: float, side: int = SAMPLE) -> tuple[float, float]:
        """A pixel of a square picture, on the screen: the editor shows it in its middle."""
        box = self.page.locator("#editor canvas").first.bounding_box()
        zoom = int(self.page.locator("#editor .zoom-number").inner_text().strip("% \n")) / 100
        return (
            box["x"] + box["width"] / 2 + zoom * (x - side / 2),
            box["y"] + box["height"] / 2 + zoom * (y - side / 2),
        )

    def paint(self, x0: float, y0: float, x1: float, y1: float) -> None:
        (left, top), (right, bottom) = self.place(x0, y0), self.place(x1, y1)
        self.stroke(left, right, top, bottom)

    def stroke(self, x0: float, x1: float, y0: float, y1: float) -> None:
        """As `paint`, on the screen."""
        self.page.mouse.move(x0, y0)
        self.page.mouse.down()
        self.page.mouse.move(x1, y1)
        self.page.mouse.up()

    def paint_over(self, box: tuple[int, int, int, int]) -> None:
        """Two strokes along the diagonals of a thing."""
        (x0, y0, x1, y1), inner = box, 0.2
        dx, dy = inner * (x1 - x0), inner * (y1 - y0)
        self.paint(x0 + dx, y0 + dy, x1 - dx, y1 - dy)
        self.paint(x0 + dx, y1 - dy, x1 - dx, y0 + dy)

    def frame(self) -> tuple[float, float]:
        """Where the picture to draw a box on begins, on the screen: a small one lies in the middle, at its own size."""
        self.page.wait_for_function("document.querySelector('#frame img')?.naturalWidth")
        place = self.page.locator("#frame img").bounding_box()
        return (place["x"] + (place["width"] - SAMPLE) / 2, place["y"] + (place["height"] - SAMPLE) / 2)

    def fits(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def leave(self) -> None:
        assert all(url.startswith(("http://127.0.0.1:", "data:", "blob:")) for url in self.asked), self.asked
        self.context.close()


@pytest.mark.slow
def test_painting_over_a_thing_names_it_and_nothing_leaves_the_machine(server, browser):
    visitor, sample = Visitor(browser, server.url), samples()[0]
    visitor.best("whole", "a car")
    assert visitor.page.locator("#answers .alpha").inner_text().count("Mark something") == 1
    visitor.paint_over(sample.boxes[2])
    for way in ("alpha", "crop"):
        visitor.best(way, "a tree")
    assert visitor.page.locator("#answers .alpha .best .share").inner_text().endswith("%")
    assert visitor.page.locator("#answers").get_attribute("aria-live") == "polite"
    assert visitor.fits()
    visitor.leave()


@pytest.mark.slow
def test_a_box_by_two_taps_its_edges_and_the_attention_over_the_picture(server, browser):
    visitor, (_, sample, *_) = Visitor(browser, server.url), samples()
    page, (x0, y0, x1, y1) = visitor.page, sample.boxes[1]
    page.get_by_role("button", name=sample.name).click()
    visitor.best("whole", "a flower")
    page.get_by_label("Box", exact=True).check()
    visitor.best("alpha", "a flower")  # the box in the middle, before it is moved
    left, top = visitor.frame()
    page.mouse.click(left + x1, top + y0)
    page.mouse.click(left + x0, top + y1)  # while the first is being answered
    visitor.best("alpha", "a house")
    visitor.best("crop", "a house")
    visitor.edges((x0, y0, x1, y1))
    page.get_by_label("Show where the model looks").check()
    page.locator("#heat img").wait_for()
    page.get_by_role("button", name="Start over").click()
    visitor.best("alpha", "a flower")
    visitor.leave()


@pytest.mark.slow
def test_what_is_done_while_the_picture_is_on_its_way_waits_for_it(server, browser):
    visitor, (sample, *_), held, released = Visitor(browser, server.url), samples(), [], threading.Event()
    page, (x0, y0, x1, y1) = visitor.page, sample.boxes[0]
    page.get_by_label("Box", exact=True).check()
    page.locator("#answers .alpha .best").wait_for()  # of the box in the middle
    (left, top), mouse = visitor.frame(), page.mouse
    page.route(re.compile("/file="), lambda route: route.continue_() if released.is_set() else held.append(route))
    mouse.click(left + x0, top + y0)
    page.wait_for_function("document.querySelector('#frame img').naturalWidth === 0")
    mouse.click(left + x1, top + y1)
    page.wait_for_timeout(200)
    released.set()
    for route in held:
        route.continue_()
    visitor.edges(sample.boxes[0])
    visitor.leave()


@pytest.mark.slow
def test_a_box_is_drawn_from_corner_to_corner(server, browser):
    visitor, (sample, *_) = Visitor(browser, server.url), samples()
    page, (x0, y0, x1, y1) = visitor.page, sample.boxes[0]
    page.get_by_label("Box", exact=True).check()
    page.locator("#answers .alpha .best").wait_for()  # of the box in the middle
    (left, top), mouse = visitor.frame(), page.mouse
    mouse.move(left + x1, top + y0)
    mouse.down()
    mouse.move(left + x0, top + y1, steps=3)
    drawn = page.locator("#drawn").bounding_box()
    np.testing.assert_allclose([drawn["x"], drawn["y"]], [left + x0, top + y0], atol=1)
    mouse.up()
    visitor.edges(sample.boxes[0])
    visitor.best("alpha", "a cat")
    assert page.locator("#drawn").count() == 0
    mouse.move(left + x0, top + y0)
    mouse.down()
    mouse.move(0, 0, steps=3)
    mouse.up()  # outside: as far as the picture goes
    visitor.edges((0, 0, x0, y0))
    visitor.leave()


@pytest.mark.slow
def test_a_stroke_that_is_told_after_another_picture_was_chosen_is_not_taken_for_one_on_it(server, browser):
    visitor, (first, *_) = Visitor(browser, server.url), samples()
    page, held = visitor.page, []

    def hold(route) -> None:  # as when the pictures of the stroke, which go before it, take long
        held.append(route) if STROKE in route.request.post_data else route.continue_()

    page.route("**/queue/join*", hold)
    with page.expect_request(lambda request: "queue/join" in request.url and STROKE in request.post_data):
        visitor.paint(*first.boxes[0])
    page.locator("#sample-1").click()
    visitor.best("whole", "a flower")
    with page.expect_response(lambda response: visitor.tells(response, STROKE)):
        for told in held:
            told.continue_()
    page.get_by_label("What could it be?").fill("a bird, a flower, a cat")
    page.locator("#answers .whole .name", has_text="a cat").wait_for()  # all before has been heard
    assert page.locator("#answers .waiting").count() == 2
    visitor.leave()


@pytest.mark.slow
def test_all_of_it_but_painting_works_by_keyboard(server, browser):
    visitor, (_, sample, *_) = Visitor(browser, server.url), samples()
    page, keyboard = visitor.page, visitor.page.keyboard
    page.locator("#sample-0").focus()
    keyboard.press("Tab")
    keyboard.press("Enter")  # the second sample
    visitor.best("whole", "a flower")
    page.get_by_label("Paint", exact=True).focus()
    keyboard.press("Tab")
    keyboard.press("Space")  # the box, in the middle before it is moved
    visitor.best("alpha", "a flower")
    for name, at in zip(("Left", "Top", "Right", "Bottom"), sample.boxes[0], strict=True):
        page.locator(".box input[type=number]").and_(page.get_by_label(f"number input for {name} %")).fill(
            str(round(100 * at / SAMPLE))
        )
    visitor.best("alpha", "a dog")
    page.locator(".box input[type=range]").first.focus()
    keyboard.press("Home")
    page.wait_for_function("document.querySelector('.box input[type=number]').value === '0'")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert page.locator("#frame button").evaluate("button => button.tabIndex") == -1  # only a pointer can use it
    assert page.locator("#frame img").get_attribute("alt") == "The picture, with the box on it"
    page.get_by_label("What could it be?").fill("a bird\na zebra, a dog")
    page.locator("#answers .note", has_text="has never read “zebra”").wait_for()
    page.get_by_label("What could it be?").fill("")
    page.locator("#answers .note", has_text="Type some names").wait_for()
    page.get_by_label("Show where the model looks").focus()
    keyboard.press("Space")
    page.locator("#heat img").wait_for()
    visitor.leave()


@pytest.mark.slow
def test_a_window_as_wide_as_a_phone_shows_all_of_it_and_takes_touches(server, browser):
    visitor, sample = Visitor(browser, server.url, 390, 844, has_touch=True, is_mobile=True), samples()[0]
    page, wire = visitor.page, visitor.context.new_cdp_session(visitor.page)
    page.locator("#editor").scroll_into_view_if_needed()
    x0, y0, x1, y1 = sample.boxes[0]
    touches = [visitor.place(x0 + share * (x1 - x0), (y0 + y1) / 2) for share in np.linspace(0.2, 0.8, 6)]
    for i, (x, y) in enumerate(touches):
        kind = "touchMove" if i else "touchStart"
        wire.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    wire.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    visitor.best("alpha", "a cat")
    assert visitor.fits()
    page.get_by_label("Show where the model looks").check()
    page.locator("#heat img").wait_for()
    page.get_by_label("Box", exact=True).check()
    page.locator("#frame img").wait_for()
    assert visitor.fits()
    visitor.leave()


@pytest.mark.slow
def test_whoever_prefers_light_on_dark_gets_the_one_look_all_the_same(server, browser):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(server.url)
    page.wait_for_url(re.compile("__theme=light"))
    page.locator("#answers .whole .best").wait_for()
    colours = "[getComputedStyle(document.body).backgroundColor, document.body.classList.contains('dark')]"
    assert page.evaluate(colours) == ["rgb(255, 255, 255)", False]
    context.close()


@pytest.mark.slow
def test_bad_uploads_get_a_message_and_the_page_goes_on(server, browser, tmp_path):
    (tmp_path / "text.png").write_text("I am no picture")
    visitor = Visitor(browser, server.url)
    field, said = visitor.page.locator("#upload input[type=file]"), visitor.page.locator("[data-testid=toast-body]")
    refused = {
        tmp_path / "text.png": "cannot be read as a picture",
        bomb(tmp_path / "bomb.png", 16000, 12000): "too large: up to 50 million pixels",
        saved(tmp_path / "many.png", (1500, 1200)): "exceed the maximum allowed size of 5.0 Mb",
        saved(tmp_path / "small.png", (20, 20)): "too small to point at",
    }
    for path, words in refused.items():
        field.set_input_files(path)
        said.filter(has_text=words).wait_for()
    visitor.best("whole", "a car")  # nothing has changed
    Image.fromarray(draw_scene(7, 200, objects=(1, 1), nouns=("tree",), scale=(0.5, 0.5)).image).save(
        tmp_path / "t.png"
    )
    field.set_input_files(tmp_path / "t.png")
    visitor.best("whole", "a tree")
    visitor.leave()


@pytest.mark.slow
def test_two_people_at_once_see_their_own_pictures_and_nobody_elses(server, browser, tmp_path):
    colours, people = {"red": (200, 30, 30), "blue": (30, 30, 200)}, {}
    for name, colour in colours.items():
        Image.new("RGB", (200, 200), colour).save(tmp_path / f"{name}.png")
        people[name] = Visitor(browser, server.url)
    for name, visitor in people.items():  # both, before either has looked
        visitor.page.locator("#upload input[type=file]").set_input_files(tmp_path / f"{name}.png")
    for visitor in people.values():
        visitor.page.get_by_label("Box", exact=True).check()
    sample = "#frame img"
    for name, visitor in people.items():
        visitor.page.wait_for_function(f"document.querySelector('{sample}').naturalWidth === 200")
        shown = visitor.context.request.get(visitor.page.locator(sample).get_attribute("src")).body()
        (tmp_path / "shown").write_bytes(shown)
        corner = np.asarray(Image.open(tmp_path / "shown").convert("RGB"), float)[:20, :20].mean((0, 1))
        np.testing.assert_allclose(corner, colours[name], atol=12)
    newcomer = Visitor(browser, server.url)
    newcomer.best("whole", "a car")
    for visitor in (*people.values(), newcomer):
        visitor.leave()


@pytest.mark.slow
def test_no_file_but_the_pages_own_can_be_fetched(server, browser):
    visitor = Visitor(browser, server.url)
    for path in (Path(__file__), Path("/etc/hostname"), ROOT / "README.md", server.log):
        assert visitor.context.request.get(f"{server.url}gradio_api/file={path}").status in (403, 404)
    visitor.leave()


@pytest.mark.slow
def test_fifty_strokes_in_a_row_leave_nothing_behind_and_the_page_opens_again(browser, tmp_path):
    (tmp_path / "kept").mkdir()
    with Server(tmp_path / "kept", "--keep", "3") as server:
        before, visitor, random = server.files(), Visitor(browser, server.url, 390, 844), np.random.default_rng(0)
        visitor.page.locator("#editor").scroll_into_view_if_needed()
        (left, top), (right, bottom) = visitor.place(0, 0), visitor.place(SAMPLE, SAMPLE)

        def scribble(strokes: int) -> float:
            for _ in range(strokes):
                at = random.uniform(0.2, 0.8, 4)
                visitor.stroke(*(left + at[:2] * (right - left)), *(top + at[2:] * (bottom - top)))
            asked = -1
            while asked != (asked := len(visitor.asked)):  # until all are told
                visitor.page.wait_for_timeout(3000)
            return server.memory()

        after_ten = scribble(10)
        after_sixty = scribble(50)
        assert after_sixty - after_ten < 60, (after_ten, after_sixty)  # MB
        until = time.monotonic() + 60
        while server.files() > before and time.monotonic() < until:
            time.sleep(0.5)
        assert server.files() <= before
        visitor.leave()
        again = Visitor(browser, server.url)  # what the page begins with is still there
        again.paint_over(samples()[0].boxes[0])
        again.best("alpha", "a cat")
        again.leave()


@pytest.mark.slow
def test_a_click_marks_by_sam_and_the_folder_is_searched(browser, folder, tmp_path):
    pytest.importorskip("transformers", reason='pip install "alpha-clip[pipeline]"')
    SAMS["SamModel"](tmp_path / "sam")
    (tmp_path / "files").mkdir()
    options = ["--sam", str(tmp_path / "sam"), "--folder", str(folder), "--index", str(tmp_path / "index")]
    with Server(tmp_path / "files", *options) as server:
        visitor = Visitor(browser, server.url, 390, 844)
        page = visitor.page
        page.get_by_label("Click", exact=True).check()
        before = page.locator("#target img").get_attribute("src")
        page.locator("#target img").click(position={"x": 100, "y": 150})
        page.wait_for_function(f"document.querySelector('#target img').getAttribute('src') !== {before!r}")
        wanted = page.get_by_label("What are you looking for?")
        wanted.fill("a boat")
        wanted.press("Enter")
        page.locator("#found .caption-label", has_text="boat.png").first.wait_for()
        assert page.locator("#found .caption-label").first.inner_text() == "boat.png"
        assert visitor.fits()
        wanted.fill(" ")
        page.get_by_role("button", name="Search this folder").click()
        page.locator("[data-testid=toast-body]", has_text="Type what you are looking for").wait_for()
        visitor.leave()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("demo", 1280), ("demo-phone", 390)])
def test_the_page_looks_as_in_the_docs(server, browser, tmp_path, name, width):
    """Their pictures are made by DEMO_PICTURES=docs/images pytest -m slow tests/test_demo.py -k looks_as_in_the_docs"""
    visitor = Visitor(browser, server.url, width)
    visitor.paint_over(samples()[0].boxes[0])
    visitor.best("alpha", "a cat")
    visitor.page.get_by_label("Show where the model looks").check()
    visitor.page.locator("#heat img").wait_for()
    visitor.page.mouse.move(2, 2)  # the brush leaves the picture
    visitor.page.locator("h1").click()  # and nothing has the focus
    visitor.page.wait_for_timeout(500)
    picture = Image.open(io.BytesIO(visitor.page.screenshot(full_page=True))).convert("RGB")
    assert picture.width == width
    path = Path(os.environ.get("DEMO_PICTURES", tmp_path)) / f"{name}.png"
    picture.quantize(256, palette=picture.quantize(256)).save(path, optimize=True)  # dithered
    assert path.stat().st_size < 300_000
    visitor.leave()
