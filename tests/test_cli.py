"""The command alpha-clip, as it is installed and as a function."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import alpha_clip
from alpha_clip import catalogue, cli, command_inputs, commands, sources
from alpha_clip.errors import WeightsError
from alpha_clip.model import BLIND
from alpha_clip.regions import METHODS
from alpha_clip.scenes import draw_scene
from alpha_clip.search import indexing

ROOT = Path(__file__).parents[1]
SAMPLE = str(ROOT / "alpha_clip" / "assets" / "sample.png")
LABELS = ["a cat", "a car", "a tree", "a balloon"]


@pytest.fixture(scope="module")
def masks(tmp_path_factory) -> Path:
    """One file for each of the sample's objects: a cat, a car, a tree, a balloon."""
    folder = tmp_path_factory.mktemp("masks")
    objects = np.array(Image.open(ROOT / "alpha_clip" / "assets" / "sample_masks.png"))
    for i in (1, 2, 3, 4):
        Image.fromarray(objects == i).save(folder / f"{i}.png")
    (folder / "._1.png").write_bytes(b"what macOS writes beside a file")
    return folder


@pytest.fixture(scope="module")
def maps(tmp_path_factory) -> Path:
    """Maps of the sample's objects, 1 to 4: grey, of 16 bits, a palette; and one object as 65535 of 16 bits."""
    folder = tmp_path_factory.mktemp("maps")
    objects = np.array(Image.open(ROOT / "alpha_clip" / "assets" / "sample_masks.png"))
    Image.fromarray(objects).save(folder / "grey.png")
    Image.fromarray(objects.astype(np.uint16)).save(folder / "16.png")
    palette = Image.fromarray(objects)
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0, 0, 0, 128])
    palette.save(folder / "palette.png")
    Image.fromarray((65535 * (objects == 1)).astype(np.uint16)).save(folder / "one.png")
    return folder


@pytest.fixture(scope="module")
def tiny():
    return alpha_clip.load("tiny", "cpu")


def installed(*arguments: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    script = shutil.which("alpha-clip", path=str(Path(sys.executable).parent))
    assert script, "the command is not there: pip install -e ."
    return subprocess.run([script, *arguments], input=stdin, capture_output=True, check=False)


def run(capsys, *arguments: str) -> str:
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


# --- what it says ---


def test_regions_are_named(capsys, masks):
    lines = run(capsys, "classify", SAMPLE, "--masks-dir", str(masks), *LABELS).splitlines()
    assert [re.split(r"  +", line)[0] for line in lines] == ["1.png", "2.png", "3.png", "4.png"]
    assert [re.search(r"% (a \w+)", line)[1] for line in lines] == LABELS  # the best comes first


def test_shares_are_those_of_the_library(capsys, masks, tiny):
    rows = json.loads(run(capsys, "classify", SAMPLE, "--masks-dir", str(masks), *LABELS, "--json"))
    model, preprocess = tiny
    objects = [np.array(Image.open(masks / f"{i}.png")) for i in (1, 2, 3, 4)]
    rgb, alpha = preprocess(Image.open(SAMPLE), objects, geometry="pad")
    with torch.no_grad():
        logits, _ = model(rgb, alpha_clip.tokenize(LABELS), alpha)
    found = torch.tensor([list(row["labels"].values()) for row in rows])
    torch.testing.assert_close(found, logits.softmax(-1), rtol=0, atol=1e-5)
    assert [list(row["labels"]) for row in rows] == [LABELS] * 4


def test_regions_come_in_the_order_in_which_they_were_typed_and_none_is_the_whole(capsys, masks):
    given = ["--box", "0,0,99.5,99", "--masks-dir", str(masks), "--mask", str(masks / "2.png"), "--box", "9,9,50,50"]
    rows = json.loads(run(capsys, "classify", SAMPLE, *given, "a cat", "--json"))
    regions = ["0,0,99.5,99", *(f"{i}.png" for i in (1, 2, 3, 4)), str(masks / "2.png"), "9,9,50,50"]
    assert [row["region"] for row in rows] == regions
    (row,) = json.loads(run(capsys, "classify", SAMPLE, "a cat", "a car", "--json"))
    assert row["region"] == "whole picture"


def test_a_template_goes_around_labels_and_a_method_around_regions(capsys, masks):
    def shares(*more: str) -> list[float]:
        (row,) = json.loads(run(capsys, "classify", SAMPLE, "--mask", str(masks / "1.png"), *LABELS, "--json", *more))
        return list(row["labels"].values())

    assert len({tuple(shares(*more)) for more in ([], ["--template", "a drawing of {}"], ["--method", "crop"])}) == 3


def test_features_are_printed_or_written(capsys, masks, tmp_path, tiny):
    model, _ = tiny
    mask = np.array(Image.open(masks / "3.png"))
    expected = alpha_clip.embed_regions(model, SAMPLE, mask)
    (row,) = json.loads(run(capsys, "embed", SAMPLE, "--mask", str(masks / "3.png")))
    torch.testing.assert_close(torch.tensor([row["feature"]]), expected)
    out = tmp_path / "features.npy"
    assert run(capsys, "embed", SAMPLE, "--mask", str(masks / "3.png"), "--out", str(out)) == f"{out}: 1 x 128\n"
    torch.testing.assert_close(torch.from_numpy(np.load(out)), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["features.npy"]


def test_texts_are_embedded_too(capsys, tiny):
    rows = json.loads(run(capsys, "embed", "--text", "a cat", "a dog"))
    with torch.no_grad():
        expected = F.normalize(tiny[0].encode_text(alpha_clip.tokenize(["a cat", "a dog"])), dim=-1)
    assert [row["name"] for row in rows] == ["a cat", "a dog"]
    torch.testing.assert_close(torch.tensor([row["feature"] for row in rows]), expected)


def pipe_in(monkeypatch, text: str | bytes) -> None:
    content = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="ascii"))  # as in LC_ALL=C


def test_texts_come_from_a_pipe(capsys, monkeypatch):
    pipe_in(monkeypatch, "a cat\na dog\n")
    assert [row["name"] for row in json.loads(run(capsys, "embed", "--text", "-"))] == ["a cat", "a dog"]
    assert "no text was given" in refused(capsys, "embed", "--text", "-")  # nothing is left in it


def test_many_texts_are_taken_in_parts(capsys, monkeypatch):
    texts = ["a cat", "a dog", "a tree"]
    expected = json.loads(run(capsys, "embed", "--text", *texts))
    monkeypatch.setattr(commands, "PART", 2)
    encode, counts = alpha_clip.model.CLIP.encode_text, []
    monkeypatch.setattr(
        alpha_clip.model.CLIP, "encode_text", lambda model, ids: counts.append(len(ids)) or encode(model, ids)
    )
    assert cli.main(["embed", "--text", *texts]) == 0
    assert counts == [2, 1]
    found, whole = ([row["feature"] for row in rows] for rows in (json.loads(capsys.readouterr().out), expected))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(whole))


@pytest.mark.filterwarnings("default")
def test_texts_of_a_pipe_are_utf_8_whatever_the_locale_and_nothing_else_is_guessed(capsys, monkeypatch):
    pipe_in(monkeypatch, "Kätzchen\n")
    assert cli.main(["embed", "--text", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)[0]["name"] == "Kätzchen" and "has never read 'kätzchen'" in captured.err
    pipe_in(monkeypatch, "a cat\n".encode("utf-16"))
    assert "-: byte 0 is not UTF-8, expected a text: save it as UTF-8" in refused(capsys, "classify", SAMPLE, "-")


def test_a_picture_of_fractions_is_named_with_what_to_do(capsys, tmp_path):
    Image.fromarray(np.linspace(0.1, 0.8, 64 * 64, dtype=np.float32).reshape(64, 64)).save(tmp_path / "f.tif")
    said = refused(capsys, "classify", str(tmp_path / "f.tif"), "a cat", "a dog")
    assert "f.tif: holds 0.1 to 0.8, expected 0 to 255: save it with 8 bits" in said


def test_attention_is_drawn_where_the_mask_is(capsys, masks, tmp_path):
    out = tmp_path / "attention.png"
    assert run(capsys, "attention", SAMPLE, "--mask", str(masks / "1.png"), "--out", str(out)) == f"{out}\n"
    drawn = np.array(Image.open(out)).astype(float)
    mask = np.array(Image.open(masks / "1.png"))
    colour = drawn[..., 0] - drawn[..., 2]  # grey has none
    assert drawn.shape == (*mask.shape, 3)
    assert colour[mask].mean() > 3 * colour[~mask].mean()


def test_attention_lies_right_on_a_picture_that_is_not_square(capsys, tmp_path):
    scene = alpha_clip.scenes.draw_scene(3, (96, 192), objects=(2, 2), overlap=0.0)
    Image.fromarray(scene.image).save(tmp_path / "wide.png")
    mask = scene.masks[0] > 0.5
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out.png"
    run(capsys, "attention", str(tmp_path / "wide.png"), "--mask", str(tmp_path / "mask.png"), "--out", str(out))
    drawn = np.array(Image.open(out)).astype(float)
    colour = drawn[..., 0] - drawn[..., 2]
    assert drawn.shape == (96, 192, 3) and colour[mask].mean() > 2 * colour[~mask].mean()


def test_models_are_listed(capsys):
    assert json.loads(run(capsys, "models", "--json")) == {
        name: list(alpha_clip.available_alpha_weights(name)) for name in alpha_clip.available_models()
    }
    lines = run(capsys, "models").splitlines()
    assert lines[0].split() == ["tiny", "scenes"] and "ViT-B/32         no alpha weights: plain CLIP" in lines


def test_many_masks_are_taken_in_parts(capsys, masks, monkeypatch):
    whole = run(capsys, "embed", SAMPLE, "--masks-dir", str(masks))
    monkeypatch.setattr(commands, "PART", 3)
    assert cli.main(["embed", SAMPLE, "--masks-dir", str(masks)]) == 0
    in_parts = capsys.readouterr().out  # where nobody sees it, there is no bar
    found, expected = ([row["feature"] for row in json.loads(out)] for out in (in_parts, whole))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


@pytest.mark.parametrize("name", ["grey.png", "16.png", "palette.png"])
def test_of_a_map_of_labels_a_value_is_a_mask(capsys, maps, masks, name, monkeypatch):
    by_value = [x for i in (1, 2, 3, 4) for x in ("--mask", f"{maps / name}#{i}")]
    rows = json.loads(run(capsys, "classify", SAMPLE, *by_value, *LABELS, "--json"))
    expected = json.loads(run(capsys, "classify", SAMPLE, "--masks-dir", str(masks), *LABELS, "--json"))
    assert [row["region"] for row in rows] == [f"{maps / name}#{i}" for i in (1, 2, 3, 4)]
    assert [row["labels"] for row in rows] == [row["labels"] for row in expected]


def test_a_value_may_be_the_largest_or_of_the_standard_input_and_a_file_be_called_so(capsys, maps, masks, tmp_path):
    def feature(out: str) -> torch.Tensor:
        return torch.tensor([row["feature"] for row in json.loads(out)])

    expected = feature(run(capsys, "embed", SAMPLE, "--mask", str(masks / "1.png")))
    largest = run(capsys, "embed", SAMPLE, "--mask", f"{maps / 'one.png'}#65535")
    done = installed("embed", SAMPLE, "--mask=-#1", stdin=(maps / "grey.png").read_bytes())
    shutil.copy(masks / "1.png", tmp_path / "mask.png#1")
    (tmp_path / "mask.png").write_bytes(b"another")
    called_so = run(capsys, "embed", SAMPLE, "--mask", str(tmp_path / "mask.png#1"))
    for found in (largest, done.stdout.decode(), called_so):
        torch.testing.assert_close(feature(found), expected)


def test_a_folder_s_masks_are_all_its_pictures_and_the_others_are_named(capsys, masks, tmp_path):
    mask = Image.open(masks / "1.png").convert("L")
    for name in ("1.gif", "2.PNG", "3.tif"):
        mask.save(tmp_path / name)
    (tmp_path / ".hidden.png").write_bytes(b"no picture")
    np.save(tmp_path / "m.npy", np.array(mask))
    (tmp_path / "more.png").mkdir()
    assert cli.main(["classify", SAMPLE, "--masks-dir", str(tmp_path), "a cat", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"alpha-clip: left out of {tmp_path}, as no pictures: m.npy, more.png\n"
    assert [row["region"] for row in json.loads(captured.out)] == ["1.gif", "2.PNG", "3.tif"]


@pytest.mark.filterwarnings("default")
def test_none_is_plain_clip_and_only_ignored_masks_are_worth_a_line(capsys, masks):
    with pytest.warns(match="it is plain CLIP"):
        plain, _ = alpha_clip.load("tiny", "cpu", alpha_vision_ckpt_pth=None)
    with pytest.warns(match="are all zero"):
        expected = alpha_clip.embed_regions(plain, SAMPLE, np.ones((384, 384), bool))
    for none in ("none", "None"):
        (row,) = json.loads(run(capsys, "embed", SAMPLE, "--alpha", none))
        torch.testing.assert_close(torch.tensor([row["feature"]]), expected)
    mask = ["--mask", str(masks / "1.png"), "--alpha", "none"]
    (cropped,) = json.loads(run(capsys, "embed", SAMPLE, *mask, "--method", "crop"))
    assert cropped["feature"] != row["feature"]
    assert cli.main(["embed", SAMPLE, *mask]) == 0
    captured = capsys.readouterr()
    assert "it is plain CLIP, and ignores every mask. Pass --alpha to load some.\n" in captured.err
    assert captured.err.count("\n") == 1
    torch.testing.assert_close(torch.tensor([json.loads(captured.out)[0]["feature"]]), expected)


def test_a_row_is_one_line(capsys, masks, tmp_path):
    shutil.copy(masks / "1.png", tmp_path / "a\nmask.png")
    out = run(capsys, "classify", SAMPLE, "--mask", str(tmp_path / "a\nmask.png"), "a\ncat", "a tree\x1b[31m")
    assert out.count("\n") == 1 and r"a\nmask.png" in out and r"% a\ncat" in out and r"a tree\x1b[31m" in out


# --- search ---


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """Twelve drawn pictures with their masks, 0 to 5 with a cat and 6 to 11 with a bus; and a home for the cache."""
    monkeypatch.setattr(indexing, "OUR_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    for i in range(12):
        scene = draw_scene(i, 96, objects=(1, 1), nouns=["cat" if i < 6 else "bus"], scale=(0.4, 0.6))
        place = folder / ("more" if i % 2 else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(place / f"{i}.png")
        np.savez_compressed(place / f"{i}.masks.npz", masks=(255 * scene.masks).astype(np.uint8))
    return folder


def test_a_text_finds_its_regions_and_the_folder_stays_as_it_is(capsys, photos):
    before = sorted(photos.rglob("*"))
    assert cli.main(["search", str(photos), "a cat", "-k", "6", "--json"]) == 0
    captured = capsys.readouterr()
    hits = json.loads(captured.out)
    assert {int(Path(hit["path"]).stem) for hit in hits} == set(range(6))
    assert sorted((hit["score"] for hit in hits), reverse=True) == [hit["score"] for hit in hits]
    first, second, _ = captured.err.splitlines()
    assert first == f"alpha-clip: indexing 12 pictures of {photos}"
    assert second.startswith("alpha-clip: new pictures: 12, known: 0, unreadable: 0; the index is ")
    assert sorted(photos.rglob("*")) == before
    scene = draw_scene(int(Path(hits[0]["path"]).stem), 96, objects=(1, 1), nouns=["cat"], scale=(0.4, 0.6))
    np.testing.assert_allclose(hits[0]["box"], np.array(scene.regions[0].box) / 96, atol=1e-6)


def test_the_next_search_looks_at_what_is_new_and_forgets_what_is_gone(capsys, photos, tmp_path):
    assert cli.main(["search", str(photos), "a cat"]) == 0
    capsys.readouterr()
    lines = run(capsys, "search", str(photos), "a bus", "-k", "6").splitlines()  # nothing on the standard error
    assert {int(Path(line.split()[2]).stem) for line in lines} == set(range(6, 12))
    (photos / "6.png").unlink()
    (photos / "broken.jpg").write_bytes(b"no picture")
    assert cli.main(["search", str(photos), "a bus", "-k", "12", "--exact", "--out", str(tmp_path / "hits.png")]) == 0
    captured = capsys.readouterr()
    assert "/6.png" not in captured.out
    assert "alpha-clip: skipped broken.jpg: " in captured.err and "known: 11, unreadable: 1" in captured.err
    assert cli.main(["search", str(photos), "a bus", "-k", str(10**12)]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("alpha-clip: new pictures: 0, known: 11, unreadable: 1")
    assert captured.err.count("\n") == 1 and captured.out.count("\n") >= 11
    assert len(np.unique(np.array(Image.open(tmp_path / "hits.png")).reshape(-1, 3), axis=0)) > 1000


def test_without_masks_a_grid_is_searched_and_that_is_said(capsys, photos, monkeypatch):
    for file in photos.rglob("*.npz"):
        file.unlink()
    pipe_in(monkeypatch, "a cat\n")
    assert cli.main(["search", str(photos), "-", "-k", "3", "--json"]) == 0
    captured = capsys.readouterr()
    assert "are searched by a grid of boxes; --sam NAME" in captured.err
    assert {int(Path(hit["path"]).stem) for hit in json.loads(captured.out)} <= set(range(6))


def test_an_interrupted_search_says_that_it_goes_on(capsys, photos, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(indexing, "look", interrupted)
    assert cli.main(["search", str(photos), "a cat"]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("alpha-clip: interrupted; what was indexed is kept")


def test_an_interrupted_command_that_keeps_nothing_promises_nothing(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "embed", interrupted)
    assert cli.main(["embed", SAMPLE]) == 1
    assert capsys.readouterr().err == "alpha-clip: interrupted\n"


def test_what_cannot_be_searched(capsys, photos, tmp_path, monkeypatch):
    assert "nowhere is no folder: expected one of pictures" in refused(capsys, "search", "nowhere", "a cat")
    pipe_in(monkeypatch, " \n")
    assert "the text is empty" in refused(capsys, "search", str(photos), "-")
    (tmp_path / "none").mkdir()
    assert "could be found: add pictures, give --sam, or" in refused(capsys, "search", str(tmp_path / "none"), "a cat")
    assert cli.main(["search", str(photos), "a cat", "--index", str(tmp_path / "index")]) == 0
    capsys.readouterr()
    said = refused(capsys, "search", str(photos), "a cat", "--index", str(tmp_path / "index"), "--method", "crop")
    assert "was made with method 'alpha', not 'crop'" in said
    said = refused(capsys, "search", str(photos), "a cat", "--index", SAMPLE)
    assert "sample.png can hold no index, Not a directory: name a folder to write to" in said


def test_a_segmenter_is_loaded_once_a_picture_needs_it_and_not_before(capsys, photos, monkeypatch):
    loaded = []

    class Segmenter:
        def __init__(self, name, points, device):
            loaded.append((name, points))

        def __call__(self, picture):
            yield np.ones(picture.size[::-1], bool)

    monkeypatch.setattr(commands, "SamMasks", Segmenter)
    search = ["search", str(photos), "a cat", "--sam", "some/sam", "-k", "3"]
    assert cli.main(search) == 0 and loaded == []  # all have their masks beside them
    for name in ("0", "2"):
        (photos / f"{name}.masks.npz").unlink()
    assert cli.main(search) == 0 and loaded == [("some/sam", 32)]
    assert cli.main(search) == 0 and len(loaded) == 1


def test_a_segmenter_that_cannot_be_had_is_no_fault_of_the_pictures(capsys, photos, monkeypatch):
    def missing(*_):
        raise OSError("there is no such model")

    monkeypatch.setattr(commands, "SamMasks", missing)
    (photos / "0.masks.npz").unlink()
    assert cli.main(["search", str(photos), "a cat", "--sam", "some/sam"]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "alpha-clip: some/sam: there is no such model"


@pytest.mark.skipif(sys.platform == "win32", reason="names there are text")
def test_a_name_that_cannot_be_printed_is_escaped(photos, monkeypatch, tmp_path):
    odd = photos / os.fsdecode(b"\xff \xc3\xbc.png")
    (photos / "0.png").rename(odd)
    (photos / "0.masks.npz").rename(odd.with_suffix(".masks.npz"))
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", printed)
    assert cli.main(["search", str(photos), "a cat", "-k", "12", "--out", str(tmp_path / "hits.png")]) == 0
    assert "\\udcff \u00fc.png" in printed.buffer.getvalue().decode() and (tmp_path / "hits.png").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_an_interrupt_keeps_what_was_done_and_the_next_run_goes_on(capsys, photos, tmp_path):
    """As a user presses Ctrl-C while the fifth picture is looked at."""
    code = """
import os, signal, sys
from alpha_clip import cli
from alpha_clip.search import indexing
look, looked = indexing.look, []
def slow(*arguments):
    looked.append(1)
    if len(looked) == 5:
        os.kill(os.getpid(), signal.SIGINT)
    return look(*arguments)
indexing.look = slow
sys.exit(cli.main(sys.argv[1:]))
"""
    arguments = ["search", str(photos), "a cat", "--index", str(tmp_path / "index")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("alpha-clip: interrupted; what was indexed is kept")
    assert cli.main(arguments) == 0
    assert "new pictures: 8, known: 4, unreadable: 0" in capsys.readouterr().err


# --- what it refuses ---


def refused(capsys, *arguments: str) -> str:
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("alpha-clip: ")
    return captured.err


def test_what_cannot_be_done_is_said_in_a_line(capsys, tmp_path, masks):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "cut.png").write_bytes(Path(SAMPLE).read_bytes()[:9000])
    assert "nothere.png: No such file or directory, expected a picture" in refused(capsys, "embed", "nothere.png")
    assert f"{tmp_path}: Is a directory, expected a picture" in refused(capsys, "embed", str(tmp_path))
    assert "broken.png: 10 bytes that are no picture" in refused(capsys, "embed", str(tmp_path / "broken.png"))
    assert "cut.png: 9000 bytes that are no picture, or a da" in refused(capsys, "embed", str(tmp_path / "cut.png"))
    assert "sample.png is no folder: expected one of masks" in refused(capsys, "embed", SAMPLE, "--masks-dir", SAMPLE)
    (tmp_path / "none").mkdir()
    said = refused(capsys, "embed", SAMPLE, "--masks-dir", str(tmp_path / "none"))
    assert "holds no masks, expected pictures such as .png" in said
    assert "lies outside the picture" in refused(capsys, "embed", SAMPLE, "--box", "9000,0,9001,1")
    assert "ViT-X not found" in refused(capsys, "embed", SAMPLE, "--model", "ViT-X")
    said = refused(capsys, "classify", SAMPLE, "word " * 90)
    assert "has 92 tokens with start and end, and the model reads 77: shorten it" in said
    assert "has 92 tokens" in refused(capsys, "embed", "--text", "word " * 90)
    assert "layer 9 of an image tower of 4 blocks" in refused(
        capsys, "attention", SAMPLE, "--layer", "9", "--out", str(tmp_path / "a.png")
    )
    assert not (tmp_path / "a.png").exists()


def test_a_mask_that_does_not_fit_is_named(capsys, tmp_path, masks):
    Image.new("L", (384, 384)).save(tmp_path / "empty.png")
    Image.new("L", (99, 99), 255).save(tmp_path / "small.png")
    good = ["embed", SAMPLE, "--mask", str(masks / "1.png"), "--mask"]
    assert f"{tmp_path / 'empty.png'}: mask is 0 everywhere" in refused(capsys, *good, str(tmp_path / "empty.png"))
    said = refused(capsys, *good, str(tmp_path / "small.png"))
    assert "small.png: mask is 99 x 99 pixels, expected 384 x 384, as the picture has" in said
    assert "sample.png: mask is a colour picture, expected a grey one" in refused(capsys, *good, SAMPLE)
    Image.fromarray(np.full((384, 384), 80, np.float32)).save(tmp_path / "float.tif")
    said = refused(capsys, *good, str(tmp_path / "float.tif"))
    assert "float.tif: mask holds 80 to 80, expected 0 to 1: save it with 8 bits" in said
    said = refused(capsys, *good, str(tmp_path / "nothere.png"))
    assert said == f"alpha-clip: {tmp_path / 'nothere.png'}: No such file or directory, expected a picture\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("grey.png", "mask holds 1, 2, 3, 4, expected 0 and 1, or grey up to 255: choose a value, {}#1, or"),
        ("16.png", "mask holds 1, 2, 3, 4, expected 0 and 1, or grey up to 255: choose a value, {}#1, or"),
        ("palette.png", "mask holds 1, 2, 3, 4, expected 0 and 1, or grey up to 255: choose a value, {}#1, or"),
        ("one.png", "mask holds 65535, expected 0 and 1, or grey up to 255: choose a value, {}#65535, or"),
        ("grey.png#7", "no pixel is 7, expected one of 0, 1, 2, 3, 4"),
        ("sample.png#7", "has colours, expected one number a pixel to look for 7"),
    ],
)
def test_of_a_map_of_labels_a_value_is_to_be_chosen(capsys, maps, name, said):
    shutil.copy(SAMPLE, maps / "sample.png")
    assert said.format(maps / name) in refused(capsys, "embed", SAMPLE, "--mask", str(maps / name))


def test_inputs_are_looked_at_before_a_model_is_loaded(capsys, monkeypatch, masks):
    monkeypatch.setattr(commands, "load", None)
    monkeypatch.setattr(command_inputs, "PART", 1)
    assert "nowhere is no folder" in refused(capsys, "embed", SAMPLE, "--masks-dir", "nowhere")
    for command in (["embed", SAMPLE], ["classify", SAMPLE, "a cat"], ["attention", SAMPLE]):
        assert "nothere.png: No such file" in refused(capsys, *command, "--mask", "nothere.png")
        assert "sample.png: mask is a colour picture" in refused(capsys, *command, "--mask", SAMPLE)
        assert "lies outside the picture" in refused(capsys, *command, "--box", "9000,0,9001,1")
    both = ["--mask", str(masks / "1.png"), "--box", "9000,0,9001,1"]  # the second, too
    assert "lies outside the picture" in refused(capsys, "embed", SAMPLE, *both)


def test_a_device_that_is_not_there_is_to_be_left_out(capsys, photos):
    for command in (["embed", SAMPLE], ["embed", "--text", "a"], ["search", str(photos), "a"]):
        said = refused(capsys, *command, "--device", "cuda:99")
        assert re.search(r"--device cuda:99 cannot be used here \(.+\): leave it out$", said)


PYTHON = re.compile(r"\w=[^\w/]|\w+=$|None|True|download_root|ckpt|load\(|embed_regions|np\.|numpy")


@pytest.mark.parametrize(
    "said",
    [
        sources._not_found(next(iter(catalogue.ALPHA["ViT-L/14"].values())), []),
        sources._not_found(catalogue.BASES["ViT-L/14"], []),
        WeightsError(sources._reason(OSError(errno.ENOSPC, "No space left on device"))),
        WeightsError(sources._reason(OSError(errno.EACCES, "Permission denied"))),
        UserWarning(BLIND),
    ],
)
def test_remedies_are_the_command_s(said):
    assert PYTHON.search(str(said)) and not PYTHON.search(commands.in_our_words(said))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_remedies_of_files_are_the_command_s(capsys, tmp_path):
    tower = ROOT / "alpha_clip" / "assets" / "tiny_alpha.safetensors"
    said = refused(capsys, "embed", SAMPLE, "--model", str(tower))
    assert said.endswith("load its base by name and pass this file as --alpha\n")
    torch.jit.script(torch.nn.Linear(1, 1)).save(tmp_path / "archive.pt")
    said = refused(capsys, "embed", SAMPLE, "--model", str(tmp_path / "archive.pt"))
    assert said.endswith("archive.safetensors --trust.\n") and not PYTHON.search(said)
    shutil.copy(tower, tmp_path / "best.safetensors")
    said = refused(capsys, "embed", SAMPLE, "--model", str(tmp_path))
    assert f"expected a file: pass --alpha {tmp_path / 'best.safetensors'}, and its base" in said


@pytest.mark.filterwarnings("default")
def test_of_a_mask_too_thin_to_be_seen_the_remedy_is_an_option(capsys, tmp_path):
    thin = np.zeros((384, 384), bool)
    thin[100, 100] = True
    Image.fromarray(thin).save(tmp_path / "thin.png")
    assert cli.main(["embed", SAMPLE, "--mask", str(tmp_path / "thin.png")]) == 0
    said = capsys.readouterr().err
    assert said.startswith("alpha-clip: no pixel of ") and ": look closer, as --method crop does" in said
    assert said.count("\n") == 1 and not PYTHON.search(said)


def test_masks_and_boxes_are_of_the_upright_picture(capsys, tmp_path):
    """A photo that a camera stored on its side: 80 x 40 pixels, shown as 40 x 80."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw_scene(0, (40, 80)).image).save(tmp_path / "photo.png", exif=exif)
    Image.new("L", (40, 80), 255).save(tmp_path / "upright.png")
    Image.new("L", (80, 40), 255).save(tmp_path / "stored.png")
    photo = str(tmp_path / "photo.png")
    run(capsys, "embed", photo, "--mask", str(tmp_path / "upright.png"), "--box", "0,50,40,80")
    run(capsys, "attention", photo, "--box", "0,50,40,80", "--out", str(tmp_path / "out.png"))
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (40, 80)
    said = refused(capsys, "embed", photo, "--mask", str(tmp_path / "stored.png"))
    assert "the picture's EXIF orientation turns it, and the mask is of the picture as stored" in said


def test_where_nothing_can_be_written_is_said_before_anything_is_done(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "load", None)
    monkeypatch.setattr(commands, "load_for_search", None)
    (tmp_path / "folder.png").mkdir()
    nowhere = str(tmp_path / "nowhere" / "out")
    for command in (["embed", SAMPLE, "--out", f"{nowhere}.npy"], ["attention", SAMPLE, "--out", f"{nowhere}.png"]):
        assert f"cannot be written: expected {tmp_path / 'nowhere'} to be a folder, and open" in refused(
            capsys, *command
        )
    search = ["search", str(tmp_path), "a cat", "--out", str(tmp_path / "folder.png")]
    assert "folder.png is a folder, expected a file to write" in refused(capsys, *search)


def test_a_picture_that_is_too_large_is_refused(capsys, tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "large.png: too large: " in refused(capsys, "embed", str(tmp_path / "large.png"))


def test_debug_shows_where_it_came_from(tmp_path):
    with pytest.raises(ValueError, match=r"nothere\.png: No such file"):
        cli.main(["embed", "nothere.png", "--debug"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["classify"], "required: image, LABEL"),
        (["paint"], "invalid choice: 'paint'"),
        (["embed"], "one of the arguments image --text is required"),
        (["classify", SAMPLE, "a cat", "--box", "1,2,3"], "'1,2,3' is no box, expected x0,y0,x1,y1: 20,30"),
        (["classify", SAMPLE, "a cat", "--box", "a,b,c,d"], "'a,b,c,d' is no box, expected x0,y0,x1,y1: 20,30"),
        (["classify", SAMPLE, "a cat", "--box", "-1,0,5,5"], "one that begins with - as --box=-5,0,20,30"),
        (
            ["classify", SAMPLE, "a cat", "-cat"],
            'unrecognized arguments: -cat; labels stand side by side, and "--"',
        ),
        (["classify", SAMPLE, "a cat", "--json", "a dog"], "unrecognized arguments: a dog; labels stand side by side"),
        (["classify", SAMPLE, "a cat", "--oops"], "unrecognized arguments: --oops (--help says more)"),
        (["search", "photos", "a cat", "-k", "0"], "'0' is no count, expected 1 or more"),
        (["search", "photos", "a cat", "-k", "two"], "'two' is no count, expected 1 or more"),
        (["classify", SAMPLE, "a cat", "--method", "squint"], "invalid choice: 'squint'"),
        (["search", "photos", "a cat", "--method", "whole"], "invalid choice: 'whole'"),
        (["embed", SAMPLE, "--method", "maskinversion"], "invalid choice: 'maskinversion'"),
        (["classify", SAMPLE, "a", "--box=200,200,100,100"], "is no box, expected x0 < x1 and y0 < y1, as in 20,30,20"),
        (["attention", SAMPLE, "--box=nan,0,10,10"], "'nan,0,10,10' is no box, expected x0 < x1"),
        (["embed", SAMPLE, "--mask", "-#4"], "one that begins with - as --box=-5,0,20,30 or --mask=-#4"),
        (["classify", SAMPLE, "a", "b", " a"], "the label 'a' was given twice, expected each once"),
        (["classify", SAMPLE, "a cat", "--template", "no hole"], "has 0 places {}, expected 1, where the label goes"),
        (["classify", SAMPLE, "a cat", "--template", "{} {}"], "has 2 places {}, expected 1"),
        (["embed", "--text", "a", "--device", "nonsense"], "--device 'nonsense' is unknown to torch, expected cpu,"),
        (["search", "photos", "a", "--device", "cpu:x"], "--device 'cpu:x' is unknown to torch"),
        # What would be read and not used.
        (["embed", "--text", "a cat", "--mask", "m.png"], "--mask say where to look in a picture, and --text has none"),
        (["embed", "--text", "a", "--box", "1,2,3,4", "--method", "crop"], "--box and --method say where to look"),
        (["embed", "--text", "a cat", "--masks-dir", "masks"], "--masks-dir say where to look in a picture"),
        (
            ["classify", SAMPLE, "a cat", "--method", "crop"],
            "--method crop looks at a region, expected --mask, --box or",
        ),
        (
            ["embed", SAMPLE, "--method", "pool"],
            "--method pool looks at a region, expected --mask, --box or --masks-dir",
        ),
        (["search", "photos", "a cat", "--points", "8"], "--points is for a segmenter, expected --sam NAME too"),
        (["search", "photos", "a cat", "--sam", ""], "--sam is empty: expected something, or leave it out"),
        (["search", "photos", " "], "TEXT is empty"),
        (["classify", SAMPLE, "a cat", ""], "LABEL is empty"),
        (["embed", SAMPLE, "--alpha", ""], "--alpha is empty"),
        (["attention", SAMPLE, "--mask", "1.png", "--box", "1,2,3,4"], "2 regions were given, expected one --mask or"),
        (["attention", SAMPLE, "--masks-dir", "masks"], "unrecognized arguments: --masks-dir masks"),
        # What can be had but once, and names of something else.
        (["classify", "-", "--mask", "-", "a cat"], "IMAGE and --mask are -, expected one: the standard input is read"),
        (["classify", SAMPLE, "-", "--mask", "-"], "LABEL and --mask are -, expected one"),
        (["embed", SAMPLE, "--mask", "-", "--mask", "-"], "--mask and --mask are -, expected one"),
        (["embed", "-", "--mask=-#3"], "IMAGE and --mask are -, expected one"),
        (["embed", "--text", "-", "-"], "--text and --text are -, expected one"),
        (["search", "photos", "a cat", "--out", "-"], "--out is -, where the hits are listed"),
        (
            ["search", "photos", "a cat", "--out", "hits.txt"],
            "'hits.txt' is no name for what is written, expected one in .png",
        ),
        (["attention", SAMPLE, "--out", "a.jpg"], "'a.jpg' is no name for what is written, expected one in .png"),
        (
            ["embed", SAMPLE, "--out", "features.txt"],
            "'features.txt' is no name for what is written, expected one in .npy",
        ),
    ],
)
def test_what_was_asked_for_wrongly_is_said_in_a_line(capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error and error.count("\n") == 1


@pytest.mark.filterwarnings("default")
def test_a_warning_is_a_line_beside_the_answer(capsys):
    assert cli.main(["classify", SAMPLE, "a zeppelin", "a cat"]) == 0
    captured = capsys.readouterr()
    assert "zeppelin" in captured.err and captured.err.startswith("alpha-clip: ") and captured.err.count("\n") == 1
    assert "%" in captured.out


# --- in a pipe ---


def test_the_installed_command_takes_a_picture_from_a_pipe():
    done = installed("classify", "-", "--box", "230,60,370,190", "a cat", "a tree", stdin=Path(SAMPLE).read_bytes())
    assert done.returncode == 0, done.stderr
    assert re.match(rb"230,60,370,190 +\d+\.\d% a cat", done.stdout) and done.stderr == b""
    assert installed("embed", "nothere.png").returncode == 1
    assert installed("embed").returncode == 2


def test_features_and_pictures_go_into_a_pipe(capsysbinary):
    assert cli.main(["embed", SAMPLE, "--box", "230,60,370,190", "--out", "-"]) == 0
    captured = capsysbinary.readouterr()
    assert np.load(io.BytesIO(captured.out)).shape == (1, 128) and captured.err == b""
    assert cli.main(["attention", SAMPLE, "--out", "-"]) == 0
    captured = capsysbinary.readouterr()
    assert Image.open(io.BytesIO(captured.out)).size == (384, 384) and captured.err == b""


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="there is no /dev/fd")
def test_a_mask_comes_from_a_shell_s_substitution(capsys, masks):
    """As `--mask <(cat 1.png)` gives it."""
    ours, theirs = os.pipe()
    os.write(theirs, (masks / "1.png").read_bytes())
    os.close(theirs)
    assert "% a cat" in run(capsys, "classify", SAMPLE, "--mask", f"/dev/fd/{ours}", *LABELS)
    os.close(ours)


def test_what_needs_a_closed_end_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdin", None)
    assert "-: the standard input is closed, expected a file or a pipe" in refused(capsys, "embed", "-")
    monkeypatch.setattr(sys, "stdout", None)
    for command in ("models", "embed --text a", "embed --text a --out -", "search . a --out a.png"):
        assert cli.main(command.split()) == 1
        assert capsys.readouterr().err == "alpha-clip: the standard output is closed, expected a place for the answer\n"
    assert cli.main(["embed", SAMPLE, "--out", str(tmp_path / "a.npy")]) == 0 and (tmp_path / "a.npy").exists()


def test_where_the_standard_error_is_closed_nothing_gets_into_the_answer(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.main(["embed", "nothere.png"]) == 1
    assert capsys.readouterr().out == ""
    sys.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["embed", "--help"], ["models"]])
def test_a_full_disk_is_an_error(arguments, unbuffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "alpha_clip", *arguments],
            stdout=full, stderr=subprocess.PIPE, check=False, cwd=ROOT, env=environment,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, b"alpha-clip: [Errno 28] No space left on device\n")


def test_labels_come_from_a_pipe(capsys, monkeypatch):
    pipe_in(monkeypatch, "\ufeffa cat\n\n a car \n")  # with the mark some editors write
    (row,) = json.loads(run(capsys, "classify", SAMPLE, "-", "--json"))
    assert list(row["labels"]) == ["a cat", "a car"]
    pipe_in(monkeypatch, "a cat\na cat\n")
    assert "the label 'a cat' was given twice" in refused(capsys, "classify", SAMPLE, "-")


def test_a_reader_that_leaves_is_no_error():
    code = f"set -o pipefail; {sys.executable} -m alpha_clip embed --text 'a cat' 'a dog' | head -c 10"
    done = subprocess.run(["bash", "-c", code], capture_output=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == b"" and len(done.stdout) == 10


# --- its help ---


@pytest.mark.parametrize("command", ["", "classify", "embed", "attention", "search", "models"])
def test_the_help_is_that_in_the_docs(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stopped:
        cli.main([*command.split(), "--help"])
    assert stopped.value.code == 0
    docs = (ROOT / "docs" / "cli.md").read_text()
    words = capsys.readouterr().out.split()
    assert " ".join(words) in " ".join(docs.split())


def test_nobody_waits_for_torch_to_read_a_help():
    code = """
import sys
from alpha_clip import cli
try:
    cli.main(["classify", "--help"])
except SystemExit:
    print(sorted({"torch", "numpy", "PIL"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_help_names_every_method():
    assert {*METHODS} - {*cli.METHODS} == {"maskinversion"}  # for models of open_clip
    assert [method for method in METHODS if method in cli.METHODS] == list(cli.METHODS)
