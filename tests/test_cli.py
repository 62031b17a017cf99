"""The command alpha-clip, as it is installed and as a function."""

from __future__ import annotations

import io
import json
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
from alpha_clip import cli, commands
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
    (folder / "notes.txt").write_text("no mask")
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


def test_masks_and_boxes_come_in_their_order_and_none_is_the_whole(capsys, masks):
    rows = json.loads(
        run(capsys, "classify", SAMPLE, "--box", "0,0,99.5,99", "--mask", str(masks / "2.png"), "a cat", "--json")
    )
    assert [row["region"] for row in rows] == [str(masks / "2.png"), "0,0,99.5,99"]
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


def test_texts_come_from_a_pipe(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat\na dog\n"))
    assert [row["name"] for row in json.loads(run(capsys, "embed", "--text", "-"))] == ["a cat", "a dog"]
    assert "no text was given" in refused(capsys, "embed", "--text", " ")


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
    monkeypatch.setattr(commands, "_PART", 3)
    assert cli.main(["embed", SAMPLE, "--masks-dir", str(masks)]) == 0
    in_parts = capsys.readouterr().out  # where nobody sees it, there is no bar
    found, expected = ([row["feature"] for row in json.loads(out)] for out in (in_parts, whole))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


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
    assert captured.err.startswith("alpha-clip: 12 pictures were new, 0 known, 0 could not be read; the index is ")
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
    assert "skipped broken.jpg: " in captured.err and "0 pictures were new, 11 known, 1 could not" in captured.err
    assert len(np.unique(np.array(Image.open(tmp_path / "hits.png")).reshape(-1, 3), axis=0)) > 1000


def test_without_masks_a_grid_is_searched_and_that_is_said(capsys, photos, monkeypatch):
    for file in photos.rglob("*.npz"):
        file.unlink()
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat\n"))
    assert cli.main(["search", str(photos), "-", "-k", "3", "--json"]) == 0
    captured = capsys.readouterr()
    assert "are searched by a grid of boxes; --sam NAME" in captured.err
    assert {int(Path(hit["path"]).stem) for hit in json.loads(captured.out)} <= set(range(6))


def test_an_interrupted_search_says_that_it_goes_on(capsys, photos, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(indexing, "look", interrupted)
    assert cli.main(["search", str(photos), "a cat"]) == 1
    assert capsys.readouterr().err.startswith("alpha-clip: interrupted; what was indexed is kept")


def test_an_interrupted_command_that_keeps_nothing_promises_nothing(capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "embed", interrupted)
    assert cli.main(["embed", SAMPLE]) == 1
    assert capsys.readouterr().err == "alpha-clip: interrupted\n"


def test_what_cannot_be_searched(capsys, photos, tmp_path):
    assert "nowhere is no folder: expected one of pictures" in refused(capsys, "search", "nowhere", "a cat")
    assert "the text is empty" in refused(capsys, "search", str(photos), " ")
    (tmp_path / "none").mkdir()
    assert "holds no picture with a region" in refused(capsys, "search", str(tmp_path / "none"), "a cat")
    assert cli.main(["search", str(photos), "a cat", "--index", str(tmp_path / "index")]) == 0
    capsys.readouterr()
    said = refused(capsys, "search", str(photos), "a cat", "--index", str(tmp_path / "index"), "--method", "crop")
    assert "was made with method 'alpha', not 'crop'" in said


# --- what it refuses ---


def refused(capsys, *arguments: str) -> str:
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("alpha-clip: ")
    return captured.err


def test_what_cannot_be_done_is_said_in_a_line(capsys, tmp_path, masks):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert "nothere.png is not there" in refused(capsys, "classify", "nothere.png", "a cat")
    assert "is no picture that can be read" in refused(capsys, "classify", str(tmp_path / "broken.png"), "a cat")
    (tmp_path / "none").mkdir()
    said = refused(capsys, "embed", SAMPLE, "--masks-dir", str(tmp_path / "none"))
    assert "holds no masks, expected files such as .png" in said
    assert "lies outside the picture" in refused(capsys, "embed", SAMPLE, "--box", "9000,0,9001,1")
    assert "ViT-X not found" in refused(capsys, "embed", SAMPLE, "--model", "ViT-X")
    assert "places {}, expected 1" in refused(capsys, "classify", SAMPLE, "a cat", "--template", "no place")
    two = ["--mask", str(masks / "1.png"), "--mask", str(masks / "2.png")]
    assert "2 regions were given, expected at most 1" in refused(capsys, "attention", SAMPLE, *two)
    assert "layer 9 of an image tower of 4 blocks" in refused(
        capsys, "attention", SAMPLE, "--layer", "9", "--out", str(tmp_path / "a.png")
    )
    assert not (tmp_path / "a.png").exists()


def test_a_picture_that_is_too_large_is_refused(capsys, tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "large.png is too large" in refused(capsys, "embed", str(tmp_path / "large.png"))


def test_debug_shows_where_it_came_from(tmp_path):
    with pytest.raises(ValueError, match=r"nothere\.png is not there"):
        cli.main(["embed", "nothere.png", "--debug"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["classify"], "required: image, LABEL"),
        (["paint"], "invalid choice: 'paint'"),
        (["embed"], "one of the arguments image --text is required"),
        (["classify", SAMPLE, "a cat", "--box", "1,2,3"], "'1,2,3' has 3 numbers, expected x0,y0,x1,y1"),
        (["search", "photos", "a cat", "-k", "0"], "0 is too few, expected 1 or more"),
        (["classify", SAMPLE, "a cat", "--method", "squint"], "invalid choice: 'squint'"),
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


def test_labels_come_from_a_pipe(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat\n\n a car \n"))
    (row,) = json.loads(run(capsys, "classify", SAMPLE, "-", "--json"))
    assert list(row["labels"]) == ["a cat", "a car"]


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
    assert tuple(METHODS) == cli.METHODS
