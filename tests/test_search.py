"""The search for regions by text: the index on disk, and a folder of pictures into it."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import save_scene
from PIL import Image

import alpha_clip
from alpha_clip.hashes import fingerprint
from alpha_clip.mask_sources import grid
from alpha_clip.scenes import draw_scene
from alpha_clip.search import approximate, indexing, querying
from alpha_clip.search.index import OUTLINE, Hit, IndexedPicture, RegionIndex, Settings, records
from alpha_clip.search.sheet import thumbnail

SETTINGS = Settings("tiny", "0" * 64, 8, "alpha", "beside the picture, else a grid")

# --- the index on disk ---


def seen(path, key, features, boxes=((0, 0, 4, 4),)):
    """A picture of 8 x 8 pixels with a region for each row of (K, 8) features."""
    masks = [alpha_clip.box_mask(boxes[k % len(boxes)], (8, 8)) for k in range(len(features))]
    masks = np.stack(masks) if masks else np.zeros((0, 8, 8), np.float32)
    return IndexedPicture(path, key, records(np.asarray(features, np.float32).reshape(-1, 8), masks))


@pytest.fixture
def features():
    """(60, 8) of unit length."""
    rows = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def index(features, tmp_path):
    """30 pictures, pI and key kI, of two regions each, in five parts."""
    index = RegionIndex.create(tmp_path / "index", SETTINGS)
    for first in range(0, 30, 6):
        index.add([seen(f"p{i}", f"k{i}", features[2 * i : 2 * i + 2]) for i in range(first, first + 6)])
    return index


def names(hits):
    return [[(hit.paths[0], hit.box) for hit in some] for some in hits]


def test_search_is_the_largest_products_over_all_parts(index, features, monkeypatch):
    monkeypatch.setattr("alpha_clip.search.index._BLOCK", 5)
    queries = features[::7]
    hits = RegionIndex.open(index.folder).search(queries, 10)
    products = queries @ features.T
    for some, row in zip(hits, products, strict=True):
        assert [hit.paths for hit in some] == [(f"p{k // 2}",) for k in np.argsort(-row)[:10]]
        np.testing.assert_allclose([hit.score for hit in some], np.sort(row)[::-1][:10], atol=1e-3)
    assert len(index.search(queries, 1000)[0]) == len(index) == 60


def test_a_hit_tells_where_it_is(tmp_path):
    index = RegionIndex.create(tmp_path, SETTINGS)
    index.add([seen("p", "k", np.eye(2, 8), boxes=((0, 0, 4, 2), (6, 2, 8, 8)))])
    first, second = index.search(np.eye(8, dtype=np.float32)[1:2], 2)[0]
    assert (first.box, second.box) == ((0.75, 0.25, 1.0, 1.0), (0.0, 0.0, 0.5, 0.25))
    assert first.score == 1
    expected = alpha_clip.box_mask((0.75 * OUTLINE, 0.25 * OUTLINE, OUTLINE, OUTLINE), (OUTLINE, OUTLINE))
    assert np.array_equal(first.outline, expected > 0)


def test_a_thin_region_keeps_an_outline(tmp_path):
    mask = np.zeros((1, 1000, 1000), np.float32)
    mask[0, :, 500] = 1
    packed = records(np.eye(1, 8, dtype=np.float32), mask)["outline"]
    assert np.unpackbits(packed).sum() == OUTLINE


def test_a_part_counts_once_its_list_is_there(index, features):
    *_, last = sorted((index.folder / "parts").glob("*.json"))
    last.rename(index.folder / "parts" / f".{last.name}.part")  # as if killed just before it was renamed
    again = RegionIndex.create(index.folder, SETTINGS)
    assert len(again) == 48
    with again.alone():
        assert not list(index.folder.rglob("*.part"))
    again.add([seen(f"p{i}", f"k{i}", features[2 * i : 2 * i + 2]) for i in range(24, 30)])
    assert names(RegionIndex.open(index.folder).search(features[:3], 9)) == names(index.search(features[:3], 9))


def test_no_file_is_ever_half_written(index, monkeypatch):
    before = {path: path.read_bytes() for path in index.folder.rglob("*") if path.is_file()}

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("alpha_clip.search.index.os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        index.add([seen("new", "new", np.eye(1, 8))])
    after = {path: path.read_bytes() for path in index.folder.rglob("*") if path.is_file() and path.suffix != ".part"}
    assert after == before


def test_of_copies_one_is_searched_and_all_are_named(index, features):
    index.add([IndexedPicture("copy", "k3", None)])
    (hit,) = index.search(features[6:7], 1)[0]
    assert hit.paths == ("copy", "p3")
    assert len(index) == 60


def test_a_picture_that_changed_is_found_as_it_is_now(index, features):
    index.add([seen("p3", "changed", -features[6:7])])
    assert len(index) == 59
    assert "p3" not in [hit.paths[0] for hit in index.search(features[6:8], 5)[0]]
    assert index.search(-features[6:7], 1)[0][0].paths == ("p3",)
    index.add([IndexedPicture("p3", "k3", None)])  # changed back
    assert index.search(features[6:7], 1)[0][0].paths == ("p3",)
    assert len(index) == 60


def test_one_process_at_a_time_adds_and_sees_what_was_added_before(index, features):
    other = RegionIndex.open(index.folder)
    with index.alone():
        index.add([seen("new", "new", np.eye(1, 8))])
        with pytest.raises(RuntimeError, match=r"another process adds to .*index: wait for it, or na"), other.alone():
            raise AssertionError("two at a time")
    assert len(other) == 60
    with other.alone():
        assert len(other) == 61


def test_two_processes_may_create_an_index_at_the_same_time(tmp_path, monkeypatch):
    """The second comes, creates and begins to add just before the first renames its file."""
    fsync = os.fsync

    def second(*_):
        monkeypatch.setattr("alpha_clip.search.index.os.fsync", fsync)
        with monkeypatch.context() as other:
            other.setattr("alpha_clip.search.index.os.getpid", lambda: 0)
            with RegionIndex.create(tmp_path, SETTINGS).alone():
                pass

    monkeypatch.setattr("alpha_clip.search.index.os.fsync", second)
    assert RegionIndex.create(tmp_path, SETTINGS).settings == SETTINGS
    assert not list(tmp_path.rglob("*.part"))


def test_a_key_that_two_processes_added_counts_once(index, features):
    other = RegionIndex.open(index.folder)
    index.add([seen("new", "new", np.eye(1, 8))])
    other.add([seen("new", "new", np.eye(1, 8)), seen("newer", "newer", np.eye(1, 8))])
    both = RegionIndex.open(index.folder)
    assert len(both) == 62
    assert {hit.paths[0] for hit in both.search(np.eye(1, 8, dtype=np.float32), 2)[0]} == {"new", "newer"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model": "other", "sha256": "1" * 64},
            "was made with tiny, weights 000000000000, and this is other, weights 11",
        ),
        ({"method": "crop"}, "was made with method 'alpha', not 'crop'"),
        ({"masks": "sam"}, "was made with masks 'beside the picture, else a grid', not 'sam'"),
    ],
)
def test_another_model_method_or_source_of_masks_is_refused(change, message, index):
    with pytest.raises(ValueError, match=message):
        RegionIndex.create(index.folder, Settings(**{**vars(SETTINGS), **change}))
    RegionIndex.create(index.folder, Settings(**{**vars(SETTINGS), "model": "the same under another name"}))


def test_what_is_no_index_is_refused(index, tmp_path):
    with pytest.raises(ValueError, match="holds no index"):
        RegionIndex.open(tmp_path)
    part = next((index.folder / "parts").glob("*.npy"))
    np.save(part, np.load(part)[:5])
    with pytest.raises(ValueError, match=r"is damaged \(5 regions where 12 are expected\): delete "):
        RegionIndex.open(index.folder)
    file = index.folder / "index.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="is an index of version 2, expected 1"):
        RegionIndex.open(index.folder)


def test_faiss_finds_what_the_exact_search_finds(index, features):
    pytest.importorskip("faiss", reason="pip install faiss-cpu")
    assert approximate.search(index, features[:3], 5) is None
    approximate.update(index)
    assert names(approximate.search(index, features[:3], 5)) == names(index.search(features[:3], 5))
    index.add([seen("new", "new", np.eye(1, 8))])
    assert approximate.search(index, features[:3], 5) is None  # it would not find what was added
    approximate.update(index)
    (all_of_them,) = approximate.search(index, features[:1], 2**40)  # more than FAISS can count
    assert len(all_of_them) == 61
    approximate.update(index)
    queries = np.eye(2, 8, dtype=np.float32)
    assert names(approximate.search(index, queries, 10)) == names(index.search(queries, 10))


def test_faiss_s_graph_is_made_anew_when_a_picture_changed_or_a_write_was_cut(index, features):
    pytest.importorskip("faiss", reason="pip install faiss-cpu")
    approximate.update(index)
    index.add([seen("p3", "changed", -features[6:7])])
    assert approximate.search(index, features[:3], 5) is None
    approximate.update(index)
    assert names(approximate.search(index, features[6:8], 10)) == names(index.search(features[6:8], 10))
    covered = (index.folder / "covered.json").read_bytes()
    index.add([seen("new", "new", np.eye(1, 8))])
    approximate.update(index)
    (index.folder / "covered.json").write_bytes(covered)  # as if killed before it was written
    assert approximate.search(index, features[:3], 5) is None
    approximate.update(index)
    assert names(approximate.search(index, features[:3], 10)) == names(index.search(features[:3], 10))


@pytest.mark.parametrize(
    ("name", "content"),
    [("covered.json", b"{}"), ("covered.json", b"junk"), ("covered.json", b"[1]"), ("regions.faiss", b"junk")],
)
def test_a_damaged_graph_is_made_again(index, features, name, content):
    pytest.importorskip("faiss", reason="pip install faiss-cpu")
    approximate.update(index)
    (index.folder / name).write_bytes(content)
    assert approximate.search(index, features[:3], 5) is None
    assert approximate.is_behind(index)
    approximate.update(index)
    assert names(approximate.search(index, features[:3], 10)) == names(index.search(features[:3], 10))


@pytest.mark.parametrize("content", [b"[1]", b"junk", b"[]", b'{"version": 1, "model": 2}'])
def test_a_damaged_index_is_named_with_what_to_do(index, content):
    (index.folder / "index.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"index\.json of the index is damaged .*: delete|of version None"):
        RegionIndex.open(index.folder)


@pytest.mark.parametrize("kind", ["json", "npy"])
@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_damaged_part_is_named_and_without_it_the_rest_is_found(index, kind, content):
    part = sorted((index.folder / "parts").glob("*.json"))[-1]
    damaged = part.with_suffix(f".{kind}")
    damaged.unlink()
    if content is not None:
        damaged.write_bytes(content)
    elif kind == "json":
        return  # it is as if it had never been added
    with pytest.raises(ValueError, match=rf"{part.name} of the index is damaged .*: delete .*{part.name}"):
        RegionIndex.open(index.folder)
    part.unlink(missing_ok=True)
    assert len(RegionIndex.open(index.folder)) < len(index)


# --- indexing a folder, and the commands ---


@pytest.fixture
def photos(tmp_path):
    """Five drawn pictures with masks, one of them a folder deeper."""
    for i in range(5):
        save_scene(tmp_path / "photos" / ("more" if i == 4 else ""), f"{i}", i, nouns=["cat", "bus", "tree"])
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def tiny():
    return indexing.load("tiny", "cpu", "alpha", "beside the picture, else a grid")


def test_an_interrupted_run_goes_on_where_it_was(photos, tiny, tmp_path, monkeypatch):
    model, settings = tiny
    looked, look = [], indexing.look

    def interrupted(path, *rest):
        if len(looked) == 3:
            raise KeyboardInterrupt
        looked.append(path.name)
        return look(path, *rest)

    monkeypatch.setattr(indexing, "PART", 2)
    monkeypatch.setattr(indexing, "look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        indexing.fill(RegionIndex.create(tmp_path / "index", settings), photos, model, grid)
    assert len(RegionIndex.open(tmp_path / "index").pictures) == 3
    monkeypatch.setattr(indexing, "look", look)
    assert indexing.fill(RegionIndex.create(tmp_path / "index", settings), photos, model, grid) == (2, 3, 0)
    indexing.fill(RegionIndex.create(tmp_path / "at once", settings), photos, model, grid)
    found = [
        names(querying.find(RegionIndex.open(tmp_path / name), model, ["a cat"], 99)) for name in ("index", "at once")
    ]
    assert found[0] == found[1]


def test_pictures_moved_copied_and_changed(photos, tiny, tmp_path):
    model, settings = tiny
    index = RegionIndex.create(tmp_path / "index", settings)
    assert indexing.fill(index, photos, model, grid) == (5, 0, 0)
    for kind in (".png", ".masks.npz"):
        (photos / f"0{kind}").rename(photos / f"moved{kind}")
    assert indexing.fill(index, photos, model, grid) == (0, 5, 0)
    regions = len(index)
    scene = save_scene(photos, "1", 77, nouns=["dog"], objects=(1, 1))
    assert indexing.fill(index, photos, model, grid) == (1, 4, 0)
    assert len(index) < regions
    (hit,) = querying.find(index, model, ["a dog"], 1)[0]
    assert Path(hit.paths[0]).name == "1.png"
    np.testing.assert_allclose(hit.box, np.array(scene.regions[0].box) / 96, atol=1e-6)
    (photos / "1.masks.npz").unlink()  # other masks, another look
    assert indexing.fill(index, photos, model, grid) == (1, 4, 0)


@pytest.fixture
def reads(monkeypatch):
    """Names of the pictures whose bytes are hashed or shown, as it happens."""
    found = []

    def counted(function):
        def read(path):
            found.append(f"{function.__name__} {path.name}")
            return function(path)

        return read

    for function in (indexing.key_of, indexing.upright):
        monkeypatch.setattr(indexing, function.__name__, counted(function))
    return found


def test_a_picture_that_was_not_touched_is_not_read_again(photos, tiny, tmp_path, reads):
    model, settings = tiny
    indexing.fill(RegionIndex.create(tmp_path / "index", settings), photos, model, grid)
    assert len(reads) == 10
    reads.clear()
    for _ in range(2):
        assert indexing.fill(RegionIndex.create(tmp_path / "index", settings), photos, model, grid) == (0, 5, 0)
    assert reads == []
    os.utime(photos / "1.png", ns=(1, 1))
    os.utime(photos / "2.masks.npz", ns=(1, 1))
    (photos / "3.png").rename(photos / "moved.png")
    (photos / "3.masks.npz").rename(photos / "moved.masks.npz")
    assert indexing.fill(RegionIndex.create(tmp_path / "index", settings), photos, model, grid) == (0, 5, 0)
    assert reads == ["key_of 1.png", "key_of 2.png", "key_of moved.png"]  # and not looked at
    reads.clear()
    assert indexing.fill(RegionIndex.create(tmp_path / "index", settings), photos, model, grid) == (0, 5, 0)
    assert reads == []


@pytest.fixture
def alike(tmp_path):
    """A cat and a bus, bitmaps of the same size and time."""
    for i, noun in enumerate(["cat", "bus"]):
        scene = draw_scene(i, 96, objects=(1, 1), nouns=[noun], scale=(0.5, 0.6))
        (tmp_path / "alike").mkdir(exist_ok=True)
        Image.fromarray(scene.image).save(tmp_path / "alike" / f"{noun}.bmp")
        os.utime(tmp_path / "alike" / f"{noun}.bmp", ns=(10**18, 10**18))
    return tmp_path / "alike"


def test_other_bytes_of_the_same_size_are_found_by_their_time(alike, tiny, tmp_path):
    model, settings = tiny
    index = RegionIndex.create(tmp_path / "index", settings)
    indexing.fill(index, alike, model, grid)
    (alike / "cat.bmp").write_bytes((alike / "bus.bmp").read_bytes())
    os.utime(alike / "cat.bmp", ns=(10**18, 10**18 + 1))
    assert indexing.fill(index, alike, model, grid) == (0, 2, 0)
    assert index.pictures[str(alike / "cat.bmp")] == index.pictures[str(alike / "bus.bmp")]


def test_pictures_of_the_same_size_and_time_may_swap_names(alike, tiny, tmp_path):
    model, settings = tiny
    index = RegionIndex.create(tmp_path / "index", settings)
    indexing.fill(index, alike, model, grid)
    before = dict(index.pictures)
    (alike / "cat.bmp").rename(alike / "kept")
    (alike / "bus.bmp").rename(alike / "cat.bmp")
    (alike / "kept").rename(alike / "bus.bmp")
    assert indexing.fill(index, alike, model, grid) == (0, 2, 0)
    assert list(index.pictures.values()) == list(before.values())[::-1]


def test_a_picture_that_is_written_while_it_is_read_is_read_again(alike, tiny, tmp_path, monkeypatch):
    model, settings = tiny
    upright = indexing.upright

    def written(path):
        os.utime(path, ns=(10**18, 10**18 + 1))
        return upright(path)

    index = RegionIndex.create(tmp_path / "index", settings)
    monkeypatch.setattr(indexing, "upright", written)
    assert indexing.fill(index, alike, model, grid) == (2, 0, 0)
    assert list(index.stamps.values()) == [None, None]
    assert indexing.fill(index, alike, model, grid) == (0, 2, 0)
    assert None not in index.stamps.values()


def test_an_index_from_before_times_were_kept_goes_on(photos, tiny, tmp_path, reads):
    model, settings = tiny
    indexing.fill(RegionIndex.create(tmp_path / "index", settings), photos, model, grid)
    for part in (tmp_path / "index" / "parts").glob("*.json"):
        listed = json.loads(part.read_bytes())
        part.write_text(json.dumps([{name: one[name] for name in ("path", "key", "rows")} for one in listed]))
    reads.clear()
    for _ in range(2):
        assert indexing.fill(RegionIndex.open(tmp_path / "index"), photos, model, grid) == (0, 5, 0)
    assert reads == [f"key_of {i}.png" for i in range(5)]  # once, and none is looked at


def test_where_nothing_is_new_others_may_add_meanwhile(photos, tiny, tmp_path):
    model, settings = tiny
    index = RegionIndex.create(tmp_path / "index", settings)
    indexing.fill(index, photos, model, grid)
    with index.alone():
        assert indexing.fill(RegionIndex.open(tmp_path / "index"), photos, model, grid) == (0, 5, 0)
        save_scene(photos, "new", 99)
        with pytest.raises(RuntimeError, match="another process adds to"):
            indexing.fill(RegionIndex.open(tmp_path / "index"), photos, model, grid)


def test_an_index_nobody_may_write_to_is_searched_as_it_is(photos, tiny, tmp_path, monkeypatch, capsys):
    model, settings = tiny
    indexing.fill(RegionIndex.create(tmp_path / "index", settings), photos, model, grid)

    def files():
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in (tmp_path / "index").rglob("*")}

    before = files()
    monkeypatch.setattr("alpha_clip.search.index.os.access", lambda *_: False)
    index = RegionIndex.create(tmp_path / "index", settings)
    (photos / "0.png").rename(photos / "moved.png")
    (photos / "0.masks.npz").rename(photos / "moved.masks.npz")
    (photos / "broken.png").write_bytes(b"no picture")
    assert indexing.fill(index, photos, model, grid) == (0, 5, 1)
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"indexing 5 pictures of {photos}",
        f"indexing 2 pictures of {photos}",
        "skipped broken.png",
    ]
    found = {Path(hit.paths[0]).name for hit in querying.nearest(index, model, "a cat", 99, photos)}
    assert found == {"moved.png", "1.png", "2.png", "3.png", "4.png"}
    save_scene(photos, "new", 99)
    with pytest.raises(RuntimeError, match=r"new\.png is not in .*index, which cannot be written to: name another"):
        indexing.fill(index, photos, model, grid)
    with pytest.raises(RuntimeError, match=r"new is not in .*index, which cannot be written to"):
        index.add(
            [IndexedPicture("new", "new", records(np.ones((1, 128), np.float32), np.ones((1, 8, 8), np.float32)))]
        )
    assert files() == before


def test_what_others_keep_in_the_folder_of_an_index_stays(photos, tiny):
    """Pictures below the index, and the index below the pictures."""
    model, settings = tiny
    (photos / "film.part").write_text("a download")
    (photos / "more" / ".film.part").write_text("another")
    index = RegionIndex.create(photos, settings)
    assert indexing.fill(index, photos, model, grid) == (5, 0, 0)
    assert indexing.fill(RegionIndex.create(photos / "more" / "index", settings), photos, model, grid) == (5, 0, 0)
    assert indexing.fill(index, photos, model, grid) == (0, 5, 0)
    assert (photos / "film.part").exists() and (photos / "more" / ".film.part").exists()


def test_where_an_index_cannot_be_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file can hold no index, Not a directory: name a folder to write to"):
        RegionIndex.create(tmp_path / "file", SETTINGS)


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_links_to_nothing_and_closed_folders_are_named_and_pipes_are_no_pictures(photos, tiny, monkeypatch, capsys):
    model, settings = tiny
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    os.mkfifo(photos / "pipe.png")
    (photos / "folder.png").mkdir()
    scandir = os.scandir

    def closed(folder):
        if Path(folder).name == "more":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    index = RegionIndex.create(photos / "index", settings)
    monkeypatch.setattr(os, "scandir", closed)
    assert indexing.fill(index, photos, model, grid) == (4, 0, 1)
    first, _, second = capsys.readouterr().err.splitlines()
    assert first == f"skipped {photos / 'more'}: Permission denied" and second.startswith("skipped gone.png: ")
    monkeypatch.setattr(os, "scandir", scandir)
    assert indexing.fill(index, photos, model, grid) == (1, 4, 1)
    assert "gone.png" not in capsys.readouterr().err  # as before
    (photos / "0.png").rename(photos / "nowhere.png")
    (photos / "0.masks.npz").rename(photos / "gone.masks.npz")
    assert indexing.fill(index, photos, model, grid) == (1, 5, 0)


def test_a_link_to_a_picture_is_searched_as_one_of_the_folder(tiny, photos, tmp_path):
    model, settings = tiny
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a.png").symlink_to(photos / "0.png")
    index = RegionIndex.create(tmp_path / "index", settings)
    assert indexing.fill(index, tmp_path / "links", model, grid) == (1, 0, 0)
    (hit,) = querying.nearest(index, model, "a cat", 1, tmp_path / "links")
    assert hit.paths == (str(tmp_path / "links" / "a.png"),)


def test_a_picture_that_broke_is_found_no_more(tiny, photos, tmp_path):
    model, settings = tiny
    index = RegionIndex.create(tmp_path / "index", settings)
    indexing.fill(index, photos, model, grid)
    (photos / "0.png").write_bytes(b"no picture")
    index = RegionIndex.open(tmp_path / "index")
    assert indexing.fill(index, photos, model, grid) == (0, 4, 1)
    hits = querying.nearest(index, model, "a cat", 99, photos)
    assert hits and not any(Path(path).name == "0.png" for hit in hits for path in hit.paths)


def test_a_method_that_cannot_look_is_no_fault_of_the_pictures(tiny, photos, tmp_path):
    model, settings = tiny
    index = RegionIndex.create(tmp_path / "index", replace(settings, method="telepathy"))
    with pytest.raises(ValueError, match="method is 'telepathy', expected one of alpha"):
        indexing.fill(index, photos, model, grid)


def test_of_hits_on_one_another_the_best_is_shown():
    def hit(path, x0, x1):
        outline = np.zeros((OUTLINE, OUTLINE), bool)
        outline[:, x0:x1] = True
        return Hit(0.5, (path,), (0, 0, 1, 1), outline)

    hits = [hit("a", 0, 20), hit("a", 5, 10), hit("b", 0, 20), hit("a", 13, 33), hit("a", 12, 32), hit("a", 0, 64)]
    assert querying.distinct(hits, 9) == [hits[0], hits[2], hits[3]]
    assert querying.distinct(hits, 2) == [hits[0], hits[2]]


@pytest.mark.parametrize("faiss", [True, False])
def test_a_small_folder_is_found_in_an_index_of_a_large_one(faiss, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(querying, "SPARE", 1)  # the first hits are all of the other folder
    if faiss:
        pytest.importorskip("faiss", reason="pip install faiss-cpu")
    else:
        monkeypatch.setattr(approximate, "is_installed", lambda: False)
    for i in range(12):
        save_scene(tmp_path / "cats", f"{i}", i, nouns=["cat"], objects=(1, 1))
    save_scene(tmp_path / "trees", "0", nouns=["tree"], objects=(1, 1))
    save_scene(tmp_path / "trees", "1", 1, nouns=["tree", "bus"], objects=(2, 2))
    model, settings = tiny
    index = RegionIndex.create(tmp_path / "index", settings)
    for name in ("cats", "trees"):
        indexing.fill(index, tmp_path / name, model, grid)
    hits = querying.nearest(index, model, "a cat", 2, tmp_path / "trees")
    assert len(hits) == 2 and all(Path(hit.paths[0]).parent.name == "trees" for hit in hits)
    assert len(querying.nearest(index, model, "a cat", 99, tmp_path / "trees")) == 3  # all there are
    (tmp_path / "trees" / "1.png").unlink()
    (hit,) = querying.nearest(index, model, "a cat", 2, tmp_path / "trees")
    assert Path(hit.paths[0]).name == "0.png"
    assert querying.nearest(index, model, "a cat", 1, tmp_path / "nowhere") == []


def test_without_faiss_every_feature_is_read(photos, tiny, tmp_path, monkeypatch):
    model, settings = tiny
    monkeypatch.setattr(approximate, "is_installed", lambda: False)
    index = RegionIndex.create(tmp_path / "index", settings)
    indexing.fill(index, photos, model, grid)
    found = querying.find(index, model, ["a cat", "a bus"], 4)
    assert names(found) == names(querying.find(index, model, ["a cat", "a bus"], 4, exact=True))
    assert [len(hits) for hits in found] == [4, 4]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("0.png", b""),
        ("0.png", "cut"),
        ("0.masks.npz", b"no archive"),
        ("0.masks.npz", b""),
        ("0.masks.npz", "cut"),
        ("0.masks.json", b"{"),
        ("0.masks.json", b'[{"segmentation": [[1, 2, 3]]}]'),
        ("0.masks.json", b'[{"segmentation": 7}]'),
        ("0.masks.json", b'[{"segmentation": {"size": 7, "counts": "x"}}]'),
        ("0.masks.png", b"no picture"),
    ],
)
def test_a_broken_picture_or_file_of_masks_is_named_and_left_out(name, content, photos, tiny, tmp_path, capsys):
    model, settings = tiny
    if not name.startswith("0.masks.npz"):
        (photos / "0.masks.npz").unlink()
    if content == "cut":
        content = (photos / name).read_bytes()[:200]
    (photos / name).write_bytes(content)
    index = RegionIndex.create(tmp_path / "index", settings)
    assert indexing.fill(index, photos, model, grid) == (4, 0, 1)
    _, line = capsys.readouterr().err.splitlines()
    assert line.startswith("skipped 0.png: ")
    assert len(index.pictures) == 4
    assert indexing.fill(RegionIndex.open(tmp_path / "index"), photos, model, grid) == (0, 4, 1)
    assert capsys.readouterr().err == ""  # said once


def test_what_is_damaged_is_read_again_once_it_or_pillow_changed(photos, tiny, tmp_path, reads, monkeypatch, capsys):
    model, settings = tiny

    def filled():
        reads.clear()
        counts = indexing.fill(RegionIndex.create(tmp_path / "index", settings), photos, model, grid)
        return counts, reads.copy()

    filled()
    whole = (photos / "0.png").read_bytes()
    (photos / "0.png").write_bytes(b"no picture")
    broken = ["key_of 0.png", "upright 0.png"]
    assert filled() == ((0, 4, 1), broken)
    assert filled() == ((0, 4, 1), [])
    monkeypatch.setattr("alpha_clip.search.index.PIL.__version__", "0")
    assert filled() == ((0, 4, 1), broken)
    assert filled() == ((0, 4, 1), [])
    (photos / "0.png").write_bytes(whole)
    assert filled() == ((0, 5, 0), ["key_of 0.png"])
    assert filled() == ((0, 5, 0), [])
    assert RegionIndex.open(tmp_path / "index").damaged == set()


def test_what_the_system_or_a_segmenter_failed_at_is_tried_again(alike, tiny, tmp_path, monkeypatch, capsys):
    model, settings = tiny
    index = RegionIndex.create(tmp_path / "index", settings)
    upright = indexing.upright

    def refused(path):
        raise PermissionError(13, "Permission denied")

    def confused(picture):
        raise ValueError("no points")

    monkeypatch.setattr(indexing, "upright", refused)
    assert indexing.fill(index, alike, model, grid) == (0, 0, 2)
    monkeypatch.setattr(indexing, "upright", upright)
    assert indexing.fill(index, alike, model, confused) == (0, 0, 2)
    assert indexing.fill(index, alike, model, grid) == (2, 0, 0)
    assert capsys.readouterr().err.count("skipped ") == 4


def test_a_model_s_hash_is_that_of_its_weights_in_any_precision():
    model, _ = alpha_clip.load("tiny", "cpu")
    single = fingerprint(model, torch.half)
    assert fingerprint(model.half(), torch.half) == single
    with torch.no_grad():
        model.visual.ln_post.bias[3] += 0.5
    assert fingerprint(model, torch.half) != single


def test_a_hit_whose_picture_is_gone_is_grey_and_another_copy_serves(tmp_path):
    index = RegionIndex.create(tmp_path / "index", SETTINGS)
    index.add([seen(str(tmp_path / "gone.png"), "k", np.eye(1, 8))])
    (hit,) = index.search(np.eye(1, 8, dtype=np.float32), 1)[0]
    assert len(np.unique(thumbnail(hit))) <= 3
    Image.fromarray(draw_scene(0, 64).image).save(tmp_path / "copy.png")
    index.add(
        [IndexedPicture(str(tmp_path / "copy.png"), "k", None), IndexedPicture(str(tmp_path / "gone.png"), "k", None)]
    )
    (hit,) = index.search(np.eye(1, 8, dtype=np.float32), 1)[0]
    assert len(np.unique(thumbnail(hit))) > 100
