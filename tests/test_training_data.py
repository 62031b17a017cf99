"""Reading and writing training data: records, RLE, folders, shards and the check of a whole set."""

from __future__ import annotations

import gc
import io
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from alpha_clip import rle
from alpha_clip.training import shards
from alpha_clip.training.check import check, main
from alpha_clip.training.pictures import (
    BadSample,
    Picture,
    Region,
    RegionFolder,
    RegionShards,
    open_data,
)
from alpha_clip.training.writing import write_shards
from alpha_clip.transforms import Preprocess, box_mask

INSTALL = 'pip install "alpha-clip[train]"'
coco = pytest.importorskip("pycocotools.mask", reason=INSTALL)
wds = pytest.importorskip("webdataset", reason=INSTALL)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own

HEIGHT, WIDTH = 20, 30


def pixels(seed: int) -> Image.Image:
    """A smooth picture, so that JPEG changes it little, different for each seed."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(np.stack([x * 8, y * 12, 0 * x + seed * 10], axis=-1).clip(0, 255).astype(np.uint8))


def blob(seed: int, shape: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """A random mask with runs of all lengths, never empty."""
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < rng.random()
    mask[rng.integers(shape[0]) :, rng.integers(shape[1]) :] = True
    return mask


def picture(i: int, regions: int = 2) -> Picture:
    masks = [blob(10 * i + k) & ~np.eye(HEIGHT, WIDTH, dtype=bool) for k in range(regions)]  # none is full
    made = [Region(f"thing {i} {k}", mask.astype(np.float32), 0.5) for k, mask in enumerate(masks)]
    return Picture(f"part/{i:03d}", pixels(i), f"picture {i}" if i % 2 else None, tuple(made))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def record(*regions: dict, caption: str | None = None) -> bytes:
    return json.dumps({"caption": caption, "regions": list(regions)}).encode()


BOX = {"phrase": "a thing", "mask": None, "box": [2, 3, 10, 12]}


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def folder(path: Path, *lines: dict | str) -> RegionFolder:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (path / "regions.jsonl").write_text(text)
    return RegionFolder(path)


def read_all(data: RegionFolder | RegionShards) -> list[tuple[str, str]]:
    """The key of each sample, and why it cannot be read."""
    found = []
    for i, key in enumerate(data.keys):
        try:
            found.append((data[i].key, ""))
        except BadSample as error:
            found.append((key, error.reason))
    return found


@pytest.fixture
def sharded(tmp_path) -> Path:
    """Seven pictures in shards of three."""
    write_shards(map(picture, range(7)), tmp_path / "shards", per_shard=3)
    return tmp_path / "shards"


def assert_same(found: Picture, expected: Picture) -> None:
    assert found.caption == expected.caption
    assert found.image.mode == "RGB"
    assert np.abs(np.asarray(found.image, int) - np.asarray(expected.image, int)).mean() < 4  # JPEG
    for a, b in zip(found.regions, expected.regions, strict=True):
        assert (a.phrase, a.score) == (b.phrase, b.score)
        assert a.mask.dtype == np.float32
        assert np.array_equal(a.mask, b.mask)


# --- RLE ---


@pytest.mark.parametrize("seed", range(20))
def test_rle_is_pycocotools(seed):
    mask = blob(seed, (1 + seed, 40 - seed))
    packed = rle.encode(mask)
    assert json.loads(json.dumps(packed)) == packed
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert packed == {"size": list(mask.shape), "counts": theirs["counts"].decode()}
    for counts in (packed["counts"], theirs["counts"], runs(mask)):
        decoded = rle.decode({"size": [*mask.shape], "counts": counts}, mask.shape)
        assert decoded.dtype == bool
        assert np.array_equal(decoded, mask)


def runs(mask: np.ndarray) -> list[int]:
    """By definition: down the columns, background first."""
    found = [(bool(value), len(list(run))) for value, run in itertools.groupby(mask.ravel(order="F").tolist())]
    return [0] * found[0][0] + [length for _, length in found]


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (2000, 1500)])
@pytest.mark.parametrize("value", [False, True])
def test_rle_of_a_flat_mask(shape, value):
    mask = np.full(shape, value)
    assert np.array_equal(rle.decode(rle.encode(mask), shape), mask)


@pytest.mark.parametrize("seed", range(5))
def test_parsed_counts_are_the_runs(seed):
    mask = blob(seed, (300, 200))
    assert rle._parsed(rle.encode(mask)["counts"]) == runs(mask)


@pytest.mark.parametrize("seed", range(5))
def test_every_truncation_is_found(seed):
    packed = rle.encode(blob(seed))
    for end in range(len(packed["counts"])):
        with pytest.raises(ValueError, match=r"cut off|a run of -"):
            rle.decode(packed | {"counts": packed["counts"][:end]}, (HEIGHT, WIDTH))
    counts = runs(blob(seed))
    with pytest.raises(ValueError, match=rf"runs add up to {sum(counts[:-1])} pixels, expected 600, 20 x 30"):
        rle.decode({"size": [HEIGHT, WIDTH], "counts": counts[:-1]}, (HEIGHT, WIDTH))


def test_damaged_counts_are_refused_or_decode_as_pycocotools_does():
    packed, rng, refused = rle.encode(blob(3)), np.random.default_rng(0), 0
    for _ in range(300):
        counts = list(packed["counts"])
        counts[rng.integers(len(counts))] = chr(rng.integers(48, 112))
        damaged = packed | {"counts": "".join(counts)}
        try:
            found = rle.decode(damaged, (HEIGHT, WIDTH))
        except ValueError:
            refused += 1
        else:
            assert np.array_equal(found, coco.decode(damaged))
    assert refused > 250


@pytest.mark.parametrize(
    ("packed", "error", "match"),
    [
        ({"size": [200_000, 200_000], "counts": "0"}, ValueError, r"size \[200000, 200000\], expected \[20, 30\]"),
        ({"size": [WIDTH, HEIGHT], "counts": "0"}, ValueError, r"size \[30, 20\], expected \[20, 30\], the picture's"),
        ({"size": "20", "counts": "0"}, ValueError, "size '20', expected"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, ValueError, "end within a number, after 0 characters"),
        ({"size": [HEIGHT, WIDTH], "counts": "P"}, ValueError, "end within a number, after 1 characters"),
        ({"size": [HEIGHT, WIDTH], "counts": "a b"}, ValueError, "counts are 'a b', expected only the characters"),
        ({"size": [HEIGHT, WIDTH], "counts": "é"}, ValueError, "expected only the characters"),
        ({"size": [HEIGHT, WIDTH], "counts": "ooooooo0"}, ValueError, "a number of 8 characters, expected 6"),
        ({"size": [HEIGHT, WIDTH], "counts": "O"}, ValueError, "a run of -1 pixels, expected at least 0"),
        ({"size": [HEIGHT, WIDTH], "counts": [700, -100]}, ValueError, "a run of -100 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": []}, ValueError, "runs add up to 0 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [599, 1, 10**30]}, ValueError, "runs add up to 10+600 pixels"),
        ({"size": [HEIGHT, WIDTH], "counts": [600.0]}, TypeError, r"counts hold 600\.0, expected integers only"),
        ({"size": [HEIGHT, WIDTH], "counts": [599, True]}, TypeError, "counts hold True"),
        ({"size": [HEIGHT, WIDTH], "counts": 600}, TypeError, "counts are int, expected a string"),
        ({"counts": "0"}, TypeError, r"the RLE is a record of \['counts'\], expected a record"),
        ("0", TypeError, "the RLE is str '0', expected a record"),
    ],
)
def test_wrong_rle_is_refused(packed, error, match):
    with pytest.raises(error, match=match):
        rle.decode(packed, (HEIGHT, WIDTH))


@pytest.mark.parametrize("size", [(200_000, 200_000), (0, 5)])
def test_rle_of_too_many_pixels_or_none_is_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels, expected 1 to 178956970"):
        rle.decode({"size": list(size), "counts": "0"}, size)


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        (np.ones((2, 2)), TypeError, "the mask is float64, expected a bool array: pass mask > 0.5"),
        ([[True]], TypeError, "the mask is list, expected a bool array"),
        (np.ones((1, 2, 2), bool), ValueError, r"shape \(1, 2, 2\), expected \(H, W\)"),
        (np.ones((0, 2), bool), ValueError, r"shape \(0, 2\), expected \(H, W\), neither of them 0"),
    ],
)
def test_what_is_no_mask_is_not_encoded(mask, error, match):
    with pytest.raises(error, match=match):
        rle.encode(mask)


def test_packages_that_are_missing_are_named_with_the_remedy(tmp_path, monkeypatch):
    packed = rle.encode(blob(0))
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    line = {"image": "a.png", "text": "thing", "mask": packed}
    pixels(0).save(tmp_path / "a.png")
    for call in (
        partial(rle.encode, blob(0)),
        partial(rle.decode, packed, (HEIGHT, WIDTH)),
        partial(folder(tmp_path, line).__getitem__, 0),  # a missing package is no bad sample
    ):
        with pytest.raises(ImportError, match="need pycocotools: pip install pycocotools"):
            call()
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ImportError, match=r'needs webdataset: pip install "alpha-clip\[train\]"'):
        write_shards([picture(0)], tmp_path / "shards")


# --- a folder ---


def test_lines_of_an_image_form_a_picture(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.b.png", "c.png"):
        pixels(1).save(tmp_path / "images" / name)
    soft = np.linspace(0, 255, WIDTH * HEIGHT).astype(np.uint8).reshape(HEIGHT, WIDTH)
    Image.fromarray(soft).save(tmp_path / "soft.png")
    data = folder(
        tmp_path,
        {"image": "images/c.png", "text": "boxed", "mask": [1, 2, 4.5, 6]},
        {"image": "images/a.b.png", "text": "drawn", "mask": "soft.png"},
        "",
        {"image": "./images/c.png", "text": "packed", "mask": rle.encode(blob(0)), "caption": "both"},
        {"image": str(tmp_path / "images/c.png"), "caption": "alone"},
    )
    assert data.keys == ["images/c.png", "images/a.b.png", str(tmp_path / "images/c.png")]
    assert len(data) == 3
    c, a, alone = data[0], data[1], data[-1]
    assert c.key == "images/c.png" and c.caption == "both" and a.caption is None
    assert [region.phrase for region in c.regions] == ["boxed", "packed"]
    assert np.array_equal(c.regions[0].mask, box_mask((1, 2, 4.5, 6), (HEIGHT, WIDTH)))
    assert np.array_equal(c.regions[1].mask, blob(0).astype(np.float32))
    assert np.array_equal(a.regions[0].mask, soft.astype(np.float32) / 255)
    assert (alone.caption, alone.regions) == ("alone", ())
    assert np.array_equal(np.asarray(a.image), np.asarray(pixels(1)))
    with pytest.raises(IndexError, match="out of range"):
        data[3]


def test_pictures_are_upright_and_masks_are_of_that(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    pixels(1).save(tmp_path / "a.png", exif=exif)
    turned = np.rot90(np.asarray(pixels(1)), -1)
    data = folder(
        tmp_path,
        {"image": "a.png", "text": "thing", "mask": [0, 0, HEIGHT, 10]},
    )
    found = data[0]
    assert np.array_equal(np.asarray(found.image), turned)
    assert found.regions[0].mask.shape == (WIDTH, HEIGHT)
    _, alpha = Preprocess(16)(found.image, found.regions[0].mask, geometry="squash")  # not turned again
    assert alpha[0, 2].min() > 1.9 and alpha[0, -2].max() < -1.9

    Image.fromarray(blob(0)).save(tmp_path / "stored.png")
    with pytest.raises(BadSample, match=r"shape \(20, 30\), expected \(30, 20\), .* PIL.ImageOps.exif_transpose"):
        folder(tmp_path, {"image": "a.png", "text": "thing", "mask": "stored.png"})[0]


def bad(line: dict, match: str, problem: str):
    return pytest.param({"image": "good.png", "text": "thing", "mask": [0, 0, 5, 5]} | line, match, problem)


@pytest.mark.parametrize(
    ("line", "match", "problem"),
    [
        bad({"image": "none.png"}, r"none\.png: the picture cannot be read: .*No such file", "unreadable picture"),
        bad({"image": "cut.jpg"}, r"cut\.jpg: the picture cannot be read: .*[Tt]runcated", "unreadable picture"),
        bad({"image": "text.jpg"}, "cannot be read: its file is of no format that Pillow knows$", "unreadable picture"),
        bad({"image": "../a.png"}, r"\.\./a\.png lies outside of .*write an absolute path", "unreadable picture"),
        bad({"image": "x/../../a.png"}, "lies outside of", "unreadable picture"),
        bad({"image": "a\0.png"}, "the picture cannot be read", "unreadable picture"),
        bad({"mask": "../m.png"}, "lies outside of .*put it inside", "unusable mask"),
        bad({"mask": "none.png"}, "mask of region 0, 'thing', cannot be used: .*No such file", "unusable mask"),
        bad({"mask": "cut.jpg"}, "cannot be used: .*[Tt]runcated", "unusable mask"),
        bad({"mask": "good.png"}, "the file is a colour picture, expected a grey one", "unusable mask"),
        bad({"mask": "labels.png"}, "integers from 0 to 3, expected 0 and 1, or 0 to 255", "unusable mask"),
        bad({"mask": "small.png"}, r"shape \(5, 5\), expected \(20, 30\), .*resize it", "mask of another size"),
        bad({"mask": "empty.png"}, "is 0 everywhere", "empty mask"),
        bad({"mask": [0.2, 0, 0.6, 5]}, r"no pixel above 0\.5", "empty mask"),
        bad({"mask": rle.encode(np.zeros((HEIGHT, WIDTH), bool))}, "is 0 everywhere", "empty mask"),
        bad({"mask": rle.encode(blob(0, (5, 5)))}, r"size \[5, 5\], expected \[20, 30\]", "mask of another size"),
        bad({"mask": {"size": [HEIGHT, WIDTH], "counts": "P"}}, "end within a number", "unusable mask"),
        bad({"mask": [50, 0, 60, 5]}, "lies outside the picture", "unusable mask"),
        bad({"mask": [5, 0, 1, 5]}, "expected x0 < x1", "unusable mask"),
        bad({"mask": [1, 2, 3]}, "expected 4 numbers", "unusable mask"),
        bad({"mask": ["a", 2, 3, 4]}, "could not convert", "unusable mask"),
        bad({"mask": 3}, r"it is 3, expected a COCO RLE or a box \[x0, y0, x1, y1\], or a file", "unusable mask"),
        bad({"mask": None}, "it is None, expected a COCO RLE", "unusable mask"),
        bad({"text": " "}, "the text of region 0 is ' ', expected words", "empty text"),
        bad({"text": None}, "the text of region 0 is None", "empty text"),
        bad({"caption": ""}, "its caption is '', expected words, or null", "empty text"),
        bad({"caption": 3}, "its caption is 3, expected words", "empty text"),
        bad({"score": "high"}, "the score of region 0 is 'high', expected a number", "malformed record"),
        bad({"image": 3}, r"regions\.jsonl:2: \"image\" is 3, expected a path", "malformed record"),
    ],
)
def test_bad_sample_of_a_folder_is_named_and_the_others_are_read(tmp_path, line, match, problem):
    pixels(0).save(tmp_path / "good.png")
    pixels(1).save(tmp_path / "other.png")
    (tmp_path / "cut.jpg").write_bytes(encoded(pixels(0))[:-200])
    (tmp_path / "text.jpg").write_text("not found")
    Image.fromarray(blob(0, (5, 5))).save(tmp_path / "small.png")
    for name, value in (("empty", 0), ("labels", 3)):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[4] = value
        Image.fromarray(mask).save(tmp_path / f"{name}.png")
    data = folder(tmp_path, {"image": "other.png", "text": "thing", "mask": [0, 0, 5, 5]}, line)
    assert len(data) == 2
    assert data[0].regions[0].phrase == "thing"
    with pytest.raises(BadSample, match=match) as caught:
        data[1]
    error = caught.value
    assert (error.key, error.problem) == (data.keys[1], problem)
    assert str(error) == f"{error.key}: {error.reason}"
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.key, copy.reason, copy.problem) == (error.key, error.reason, error.problem)


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", r"regions\.jsonl:2: b'{.n' is not JSON"),
        ("[1]", r"regions\.jsonl:2: .* is list, expected a record"),
        ("[" * 100_000, r"regions\.jsonl:2: .* is not JSON"),
    ],
)
def test_bad_line_is_named_by_its_number(tmp_path, line, match):
    data = folder(tmp_path, {"image": "good.png", "caption": "fine"}, line)
    with pytest.raises(BadSample, match=match):
        data[1]


def test_contradictions_in_a_folder_are_found(tmp_path):
    pixels(0).save(tmp_path / "a.png")
    data = folder(tmp_path, {"image": "a.png", "caption": "one"}, {"image": "a.png", "caption": "two"})
    with pytest.raises(BadSample, match=r"different captions, expected one: \['one', 'two'\]"):
        data[0]
    with pytest.raises(BadSample, match="neither a region nor a caption: give it a text with a mask"):
        folder(tmp_path, {"image": "a.png"})[0]
    (tmp_path / "regions.jsonl").write_text(json.dumps({"image": "b.png", "caption": "other"}))
    with pytest.raises(BadSample, match=r"a\.png: regions\.jsonl changed since it was opened: b'}' is not JSON"):
        data[0]
    data = folder(tmp_path, {"image": "a.png", "caption": "one"})
    folder(tmp_path, {"image": "b.png", "caption": "one"})
    with pytest.raises(BadSample, match=r"a\.png: regions\.jsonl changed since it was opened: start again"):
        data[0]


# --- shards ---


def test_written_shards_are_read_in_order(sharded):
    assert sorted(p.name for p in sharded.iterdir()) == ["000000.tar", "000001.tar", "000002.tar"]
    data = RegionShards(sharded)
    assert len(data) == 7
    assert data.keys == [f"part/{i:03d}" for i in range(7)]
    for i in range(7):
        assert data[i].key == data.keys[i]
        assert_same(data[i], picture(i))
    assert_same(data[-1], picture(6))
    with pytest.raises(IndexError, match="out of range"):
        data[7]


def test_written_shards_are_the_same_bytes_each_time(sharded, tmp_path):
    again = write_shards(map(picture, range(7)), tmp_path / "again", per_shard=3)
    assert [path.read_bytes() for path in again] == [(sharded / path.name).read_bytes() for path in again]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves the last shard open
def test_webdataset_reads_our_shards(sharded):
    paths = [str(path) for path in sorted(sharded.glob("*.tar"))]
    found = list(wds.WebDataset(paths, shardshuffle=False).decode("pil"))
    gc.collect()
    assert [sample["__key__"] for sample in found] == RegionShards(sharded).keys
    for i, sample in enumerate(found):
        assert sample["json"]["caption"] == picture(i).caption
        assert np.array_equal(np.asarray(sample["jpg"].convert("RGB")), np.asarray(RegionShards(sharded)[i].image))
        for region, expected in zip(sample["json"]["regions"], picture(i).regions, strict=True):
            assert np.array_equal(coco.decode(region["mask"]), expected.mask)
            x0, y0, x1, y1 = region["box"]
            assert expected.mask[y0:y1, x0:x1].sum() == expected.mask.sum()


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "JPG"])
def test_shards_that_webdataset_wrote_are_read(tmp_path, suffix):
    with wds.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(3):
            image = encoded(pixels(i), {"png": "PNG", "webp": "WEBP"}.get(suffix, "JPEG"))
            regions = [{"phrase": "x", "mask": rle.encode(blob(i)), "box": [0, 0, 1, 1]}, BOX | {"score": 1}]
            sample = {
                "__key__": f"k{i}",
                suffix: image,
                "json": {"caption": f"c{i}", "regions": regions},
                "txt": "more",
            }
            writer.write(sample)
    data = RegionShards(tmp_path / "a.tar")
    assert data.keys == ["k0", "k1", "k2"]
    for i in range(3):
        assert data[i].caption == f"c{i}"
        assert np.array_equal(data[i].regions[0].mask, blob(i).astype(np.float32))
        assert np.array_equal(data[i].regions[1].mask, box_mask(BOX["box"], (HEIGHT, WIDTH)))
        assert [region.score for region in data[i].regions] == [None, 1]


def test_sources_of_shards(sharded):
    every = RegionShards(sharded).keys
    assert RegionShards(f"{sharded}/{{000000..000002}}.tar").keys == every
    assert RegionShards(sharded / "{000001..000002}.tar").keys == every[3:]
    assert RegionShards(f"{sharded}/0{{0000..0000}}{{0..2}}.tar").keys == every
    assert RegionShards([sharded / "000002.tar", f"{sharded}/00000{{0..1}}.tar"]).keys == [every[6], *every[:6]]
    assert shards._expanded("a{8..11}") == ["a8", "a9", "a10", "a11"]
    with pytest.raises(FileNotFoundError, match=r"no shard .*000003\.tar \(1 of 4 are missing\): expected a folder"):
        RegionShards(f"{sharded}/{{000000..000003}}.tar")
    with pytest.raises(FileNotFoundError, match="no shard is named: expected a folder"):
        RegionShards([])
    (sharded / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no shard in .*empty: expected a folder"):
        RegionShards(sharded / "empty")
    with pytest.raises(ValueError, match=r"the range \{2\.\.1\} in a\{2\.\.1\} is empty, expected \{1\.\.2\}"):
        RegionShards("a{2..1}")


def test_index_is_used_again_and_made_anew_when_the_shard_changes(sharded, monkeypatch):
    scans = []
    scanned = shards.scanned
    monkeypatch.setattr(shards, "scanned", lambda shard: scans.append(shard.name) or scanned(shard))
    every = RegionShards(sharded).keys
    assert scans == ["000000.tar", "000001.tar", "000002.tar"]
    assert (sharded / ".000000.tar.index.json").is_file()
    assert RegionShards(sharded).keys == every
    assert len(scans) == 3

    changed = sharded / "000001.tar"
    changed.write_bytes((sharded / "000002.tar").read_bytes())
    data = RegionShards(sharded)
    assert scans[3:] == ["000001.tar"]
    assert data.keys == [*every[:3], every[6], every[6]]
    assert_same(data[3], picture(6))

    before = changed.stat()
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    RegionShards(sharded)
    assert scans[4:] == ["000001.tar"]
    for damage in ("", "[]", "{}", '{"version": 1}'):
        (sharded / ".000001.tar.index.json").write_text(damage)
        assert RegionShards(sharded).keys == data.keys
    assert len(scans) == 9
    assert not list(sharded.glob("*.part"))


def test_index_goes_to_the_cache_where_it_cannot_lie_beside_the_shard(sharded, tmp_path, monkeypatch):
    replace = os.replace

    def refuse(source, target):
        if Path(target).parent == sharded:
            raise PermissionError(13, "read-only", str(target))
        replace(source, target)

    monkeypatch.setattr(shards.os, "replace", refuse)
    assert len(RegionShards(sharded, tmp_path / "cache")) == 7
    assert sorted(p.suffix for p in sharded.iterdir()) == [".tar"] * 3
    assert len(list((tmp_path / "cache").glob("*.index.json"))) == 3
    monkeypatch.setattr(shards, "scanned", None)
    assert len(RegionShards(sharded, tmp_path / "cache")) == 7


def test_shards_go_to_worker_processes(sharded):
    data = RegionShards(sharded)
    assert_same(pickle.loads(pickle.dumps(data))[5], picture(5))
    loader = DataLoader(data, batch_size=2, num_workers=2, collate_fn=list)
    found = [p for batch in loader for p in batch]
    assert [p.key for p in found] == data.keys
    assert_same(found[4], picture(4))


JPG = encoded(pixels(0))


@pytest.mark.parametrize(
    ("files", "key", "match", "problem"),
    [
        ({"b.jpg": JPG}, "b", "it has no json file in the shard, expected b.json", "malformed shard"),
        ({"b.json": record(BOX)}, "b", r"no image file in the shard, expected b\.jpg or b\.jpeg", "malformed shard"),
        ({"b.c.jpg": JPG, "b.c.json": record(BOX)}, "b.c", r"has a dot, .* name the files b_c\.\*", "malformed shard"),
        ({"b.jpg": JPG, "b.PNG": JPG, "b.json": record(BOX)}, "b", "two image files in one shard", "malformed shard"),
        ({"b.jpg": JPG[:-200], "b.json": record(BOX)}, "b", "the picture cannot be read", "unreadable picture"),
        ({"b.jpg": b"", "b.json": record(BOX)}, "b", "the picture cannot be read", "unreadable picture"),
        ({"b.jpg": JPG, "b.json": b"{"}, "b", r"its json: b'\{' is not JSON", "malformed record"),
        ({"b.jpg": JPG, "b.json": b"\xff"}, "b", "its json: .* is not JSON", "malformed record"),
        ({"b.jpg": JPG, "b.json": b"{}"}, "b", '"regions" is None, expected a list of records', "malformed record"),
        ({"b.jpg": JPG, "b.json": b'{"regions": [1]}'}, "b", r'"regions" is \[1\], expected', "malformed record"),
        ({"b.jpg": JPG, "b.json": record()}, "b", "neither a region nor a caption", "malformed record"),
        ({"b.jpg": JPG, "b.json": record(BOX | {"mask": "m.png"})}, "b", r"'m.png', expected a COCO RLE or a box \[x0, "
         r"y0, x1, y1\] \[", "unusable mask"),
        ({"b.jpg": JPG, "b.json": record(BOX | {"phrase": ""})}, "b", "the text of region 0 is ''", "empty text"),
    ],
)  # fmt: skip
def test_bad_sample_of_a_shard_is_named_and_the_others_are_read(tmp_path, files, key, match, problem):
    good = {"jpg": JPG, "json": record(BOX, caption="fine")}
    before, after = ({f"{name}.{suffix}": data for suffix, data in good.items()} for name in "az")
    data = RegionShards(tar(tmp_path / "x.tar", before | files | after))
    assert data.keys == ["a", key, "z"]
    assert data[0].caption == data[2].caption == "fine"
    with pytest.raises(BadSample, match=match) as caught:
        data[1]
    assert (caught.value.key, caught.value.problem) == (key, problem)
    assert caught.value.reason.endswith("[x.tar]")


def test_what_is_no_sample_is_left_out(tmp_path):
    files = {"._a.jpg": JPG, "README": b"", "a.jpg": JPG, "a.json": record(BOX), "a.txt": b"", "dir.x/b.txt": b""}
    data = RegionShards(tar(tmp_path / "x.tar", files | {"dir.x/c.jpg": JPG, "dir.x/c.json": record(BOX)}))
    assert data.keys == ["a", "dir.x/c"]
    assert data[1].regions[0].phrase == "a thing"


def test_truncated_shard_loses_only_what_is_cut(tmp_path):
    """Cut at every block and in between."""
    files = {f"{name}.{suffix}": d for name in "abc" for suffix, d in (("jpg", JPG), ("json", record(BOX)))}
    whole = tar(tmp_path / "x.tar", files).read_bytes()
    with tarfile.open(tmp_path / "x.tar") as archive:
        ends = [m.offset_data + m.size for m in archive if m.name.endswith("json")]
        blocks_end = archive.offset
    for cut in [0, 1, 100, *range(512, blocks_end + 1, 256)]:
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        data = RegionShards(tmp_path / "x.tar")
        readable = [key for key, reason in read_all(data) if not reason]
        reasons = [reason for _, reason in read_all(data) if reason]
        assert all(re.search("damaged or cut off|shard ends within|no (json|image) file", r) for r in reasons), cut
        assert readable == ["a", "b", "c"][: sum(end <= cut for end in ends)], cut
        assert data.keys[-1] == "x.tar"
        with pytest.raises(BadSample, match=rf"x\.tar: the shard is damaged or cut off at byte \d+ of {cut}, after"):
            data[-1]


def test_cut_member_says_so(tmp_path):
    path = tar(tmp_path / "x.tar", {"a.json": record(BOX), "a.jpg": JPG})
    path.write_bytes(path.read_bytes()[: 512 + 512 + 512 + len(JPG) // 2])
    with pytest.raises(BadSample, match="the shard ends within its image file: copy, fetch or make the shard again"):
        RegionShards(path)[0]


@pytest.mark.parametrize("content", [b"", b"<html>" * 1000, bytes(range(256)) * 8])
def test_what_is_no_tar_is_one_bad_sample(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    data = RegionShards(tmp_path / "x.tar")
    assert len(data) == 1
    with pytest.raises(BadSample, match=r"damaged or cut off at byte 0 of \d+, after 0 samples"):
        data[0]


def test_compressed_shard_is_refused_with_the_remedy(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w:gz") as archive:
        archive.add(__file__, "a.txt")
    with pytest.raises(BadSample, match="make it again, as a tar without compression"):
        RegionShards(tmp_path / "x.tar")[0]


def test_damage_in_the_middle_is_found(tmp_path):
    files = {f"{name}.{suffix}": d for name in "ab" for suffix, d in (("jpg", JPG), ("json", record(BOX)))}
    path = tar(tmp_path / "x.tar", files)
    content = bytearray(path.read_bytes())
    start = content.index(b"b.jpg\0")
    content[start : start + 512] = b"\xaa" * 512
    path.write_bytes(content)
    data = RegionShards(path)
    assert data.keys == ["a", "x.tar"]
    with pytest.raises(BadSample, match=f"damaged or cut off at byte {start} of"):
        data[1]


def test_shard_that_changes_while_it_is_read_is_a_bad_sample(sharded):
    data = RegionShards(sharded)
    (sharded / "000000.tar").write_bytes(b"short")
    (sharded / "000001.tar").unlink()
    with pytest.raises(BadSample, match="the shard became shorter since it was indexed"):
        data[0]
    with pytest.raises(BadSample, match=r"the shard cannot be read: .*No such file"):
        data[3]
    assert_same(data[6], picture(6))


def test_folder_becomes_shards(tmp_path):
    lines = []
    for name in ("a.b.jpg", "a.c.jpg"):
        pixels(1).save(tmp_path / name)
        lines.append({"image": str(tmp_path / name), "text": "thing", "mask": [1, 2, 5, 6]})
    data = folder(tmp_path, *lines)
    write_shards((data[i] for i in range(2)), tmp_path / "shards")
    found = RegionShards(tmp_path / "shards")
    assert found.keys == [str(tmp_path / name).lstrip("/").replace(".", "_") for name in ("a.b.jpg", "a.c.jpg")]
    assert np.array_equal(found[1].regions[0].mask, data[1].regions[0].mask)


def test_write_shards_refuses_and_cleans_up(sharded, tmp_path):
    with pytest.raises(ValueError, match="per_shard is 0, expected at least 1"):
        write_shards([], tmp_path, 0)
    with pytest.raises(ValueError, match="holds shards already: delete them, or name another folder"):
        write_shards([], sharded)
    assert write_shards([], tmp_path / "none") == []
    again = [picture(0), picture(1), picture(0)]
    with pytest.raises(ValueError, match="part/000 would be the second sample with the key part/000"):
        write_shards(again, tmp_path / "twice", per_shard=2)
    assert [p.name for p in (tmp_path / "twice").iterdir()] == ["000000.tar"]
    for mask, match in (
        (np.zeros((HEIGHT, WIDTH)), "k, 'x': .*no pixel above 0.5"),
        (np.ones((5, 5)), r"k, 'x': the mask has shape \(5, 5\), expected \(20, 30\): resize it"),
    ):
        with pytest.raises(ValueError, match=match):
            write_shards([Picture("k", pixels(0), None, (Region("x", mask),))], tmp_path / "bad")
        assert not list((tmp_path / "bad").iterdir())


# --- remote shards ---


@pytest.fixture
def server(sharded):
    """Serves `sharded` at `.url`; names in `.cut` end in the middle; `.asked` lists what was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2].partition("?")[0]
            httpd.asked.append(name)
            if not (sharded / name).is_file():
                self.send_error(404)
                return
            content = (sharded / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if name in httpd.cut else content)

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.cut, httpd.asked, httpd.url = set(), [], f"http://127.0.0.1:{httpd.server_port}/data"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_remote_shards_are_fetched_once(server, tmp_path):
    cache = tmp_path / "cache"
    for _ in range(2):
        data = RegionShards(f"{server.url}/{{000000..000002}}.tar?download=true", cache)
        assert len(data) == 7
        assert_same(data[4], picture(4))
        assert server.asked == ["000000.tar", "000001.tar", "000002.tar"]
    assert len(list(cache.glob("*-00000?.tar"))) == 3
    RegionShards(f"{server.url}/000000.tar", cache)
    assert len(server.asked) == 4  # another address


def test_cut_connection_leaves_nothing(server, tmp_path):
    server.cut.add("000001.tar")
    cache = tmp_path / "cache"
    source = [f"{server.url}/{{000000..000002}}.tar"]
    with pytest.raises(
        ConnectionError, match=r"000001\.tar could not be fetched into .*: \d+ of \d+ bytes came: check"
    ):
        RegionShards(source, cache)
    assert [path.name.partition("-")[2] for path in cache.iterdir()] == ["000000.tar"]
    server.cut.clear()
    assert len(RegionShards(source, cache)) == 7
    assert server.asked.count("000000.tar") == 1


def test_shard_that_the_server_does_not_have_is_named(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"none\.tar could not be fetched into .*: HTTP Error 404"):
        open_data(f"{server.url}/none.tar")
    port = server.server_port
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"could not be fetched .*refused"):
        RegionShards(f"http://127.0.0.1:{port}/a.tar", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


# --- open_data and check ---


def test_open_data_goes_by_what_is_there(sharded, tmp_path):
    assert isinstance(open_data(sharded), RegionShards)
    assert isinstance(open_data(str(sharded / "000000.tar")), RegionShards)
    assert len(open_data(f"{sharded}/{{000000..000001}}.tar")) == 6
    (tmp_path / "folder").mkdir()
    folder(tmp_path / "folder", {"image": "a.png", "caption": "x"})
    assert isinstance(open_data(tmp_path / "folder"), RegionFolder)
    assert isinstance(open_data(str(tmp_path / "folder" / "regions.jsonl")), RegionFolder)
    folder(sharded, {"image": "a.png", "caption": "x"})
    with pytest.raises(ValueError, match=r"holds both regions\.jsonl and \*\.tar, expected one: move the shards"):
        open_data(sharded)
    with pytest.raises(FileNotFoundError, match=r"none does not exist: expected a folder of one, a shard"):
        open_data(tmp_path / "none")
    for path in (tmp_path, __file__):
        with pytest.raises(FileNotFoundError, match=r"holds neither regions\.jsonl nor \*\.tar: expected a folder"):
            open_data(path)
    with pytest.raises(FileNotFoundError, match=r"holds no regions\.jsonl: expected one line for each region"):
        RegionFolder(tmp_path)


def test_check_finds_nothing_in_good_data(sharded, capsys):
    report = check(RegionShards(sharded))
    assert (report.samples, report.read, report.regions, report.problems) == (7, 7, 14, {})
    assert main([str(sharded), "--workers", "0"]) == 0
    assert capsys.readouterr().out == "7 samples, 7 read with 14 regions; 0 problems\n"


@pytest.fixture
def faulty(tmp_path) -> Path:
    """A folder with one of each problem, and one good picture."""
    for i in range(9):
        pixels(i).save(tmp_path / f"{i}.png")
    pixels(0).save(tmp_path / "copy.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    good = {"text": "thing", "mask": [0, 0, 5, 5]}
    folder(
        tmp_path,
        {"image": "0.png"} | good,
        {"image": "copy.png"} | good | {"text": "another"},
        {"image": "broken.png"} | good,
        {"image": "1.png"} | good | {"mask": rle.encode(blob(0, (5, 5)))},
        {"image": "2.png"} | good | {"mask": rle.encode(np.zeros((HEIGHT, WIDTH), bool))},
        {"image": "3.png"} | good | {"mask": [0, 0, WIDTH, HEIGHT]},
        {"image": "4.png"} | good | {"text": ""},
        {"image": "5.png"} | good,
        {"image": "5.png"} | good,
        "{",
        {"image": "6.png"} | good | {"mask": [9, 9, 1, 1]},
        {"image": "7.png"} | good | {"text": "cat " * 75, "caption": "cat " * 76},
    )
    return tmp_path


EXPECTED = {
    "same picture": "copy.png: as 0.png",
    "unreadable picture": "broken.png: the picture cannot be read",
    "mask of another size": "1.png: the mask of region 0, 'thing', cannot be used: the RLE is of size",
    "empty mask": "2.png: the mask of region 0, 'thing', is 0 everywhere",
    "full mask": "3.png: the mask of 'thing' is the whole picture",
    "empty text": "4.png: the text of region 0 is ''",
    "same region": "5.png: 'thing' with the same mask as in 5.png",
    "malformed record": "regions.jsonl:10: b'{",
    "long text": "7.png: 'cat cat cat cat cat cat cat cat cat cat cat cat cat cat...' has 78 tokens; CLIP reads 77",
    "unusable mask": "6.png: the mask of region 0, 'thing', cannot be used: box is",
}


@pytest.mark.parametrize("workers", [0, 2])
def test_check_reports_one_of_each_problem(faulty, workers):
    report = check(RegionFolder(faulty), workers)
    assert report.problems.keys() == EXPECTED.keys()
    for problem, found in report.problems.items():
        assert len(found) == 1
        assert found[0].startswith(EXPECTED[problem])
    assert (report.samples, report.read, report.regions) == (11, 5, 6)


@pytest.mark.slow
def test_check_as_a_program(faulty):
    command = [sys.executable, "-W", "error", "-m", "alpha_clip.training.check", str(faulty), "--workers", "1"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert run.returncode == 1, run.stderr
    assert "1 x full mask\n    3.png: the mask of 'thing' is the whole picture" in run.stdout
    assert run.stdout.endswith("11 samples, 5 read with 6 regions; 10 problems\n")


def test_check_shows_the_first_of_many_and_refuses_nonsense(tmp_path, capsys):
    data = folder(tmp_path, *[{"image": f"{i}.png", "caption": "x"} for i in range(8)])
    lines = str(check(data)).splitlines()
    assert lines[0] == "8 x unreadable picture"
    assert [line.split(":")[0].strip() for line in lines[1:6]] == [f"{i}.png" for i in range(5)]
    assert lines[6:] == ["    ... and 3 more", "8 samples, 0 read with 0 regions; 8 problems"]
    with pytest.raises(ValueError, match="workers is -1, expected at least 0"):
        check(data, -1)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none")])
    assert "does not exist" in capsys.readouterr().err
