"""The examples, run as a user runs them, and the recipe of the bundled model."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import alpha_clip
from alpha_clip.scenes import HELD_OUT, NOUNS, draw_scene

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(script: str, *args: str, cwd: Path) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / script), *args]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def recipe(monkeypatch):
    """The modules of examples/tiny: data, train, evaluate."""
    monkeypatch.syspath_prepend(str(EXAMPLES / "tiny"))
    return [importlib.import_module(name) for name in ("data", "train", "evaluate")]


def test_zero_shot_region_names_every_region_and_draws_it(tmp_path):
    lines = run("zero_shot_region.py", cwd=tmp_path).splitlines()
    answers = {line[:14].strip(): line.split("-> ")[1] for line in lines if "->" in line}
    expected = ["a cat", "a car", "a tree", "a balloon"]  # the sample's objects, back to front
    assert [answers[f"region {k}"] for k in (1, 2, 3, 4)] == expected
    assert "whole picture" in answers
    figure = Image.open(tmp_path / "zero_shot_region.png")
    assert figure.width > 1400
    assert len(np.unique(np.asarray(figure).reshape(-1, 3), axis=0)) > 1000  # a picture, not a blank


def test_zero_shot_region_takes_a_photo_with_masks_and_boxes(tmp_path):
    scene = draw_scene(3, (200, 300), objects=(2, 2), nouns=["dog", "bus"], overlap=0.0)
    Image.fromarray(scene.image).save(tmp_path / "photo.jpg", quality=95)
    first, second = scene.regions
    Image.fromarray((first.mask > 0.5).astype(np.uint8)).save(tmp_path / "mask.png")  # of 0 and 1
    out = run(
        "zero_shot_region.py", "--image", "photo.jpg", "--mask", "mask.png", "--box", *map(str, second.box),
        "--labels", "a dog", "a bus", "--out", "figure.png", cwd=tmp_path,
    )  # fmt: skip
    assert re.findall(r"region \d .*-> a (\w+)", out) == [first.noun, second.noun]
    assert (tmp_path / "figure.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--image", str(EXAMPLES.parent / "alpha_clip/assets/sample.png")], "where to look?"),
        (["--box", "0", "0", "9", "9"], "give --image too"),
    ],
)
def test_zero_shot_region_says_what_is_missing(args, message, tmp_path):
    command = [sys.executable, str(EXAMPLES / "zero_shot_region.py"), *args]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--image", "nope.png", "--box", "0", "0", "9", "9"], "nope.png"),
        (["--image", "photo.png", "--box", "90", "0", "99", "9"], "lies outside the picture"),
        (["--image", "photo.png", "--mask", "black.png"], "mask 0 is 0 everywhere"),
        (["--image", "photo.png", "--mask", "odd.png"], r"mask 0 has shape \(40, 30\), expected \(40, 50\)"),
        (["--model", "nowhere"], "Model nowhere not found"),
        (["--out", "nowhere/figure.png"], "nowhere"),
    ],
)
def test_zero_shot_region_says_in_a_line_what_is_wrong(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["zero_shot_region", *args])
    Image.fromarray(draw_scene(0, (40, 50)).image).save("photo.png")
    for name, width in (("black", 50), ("odd", 30)):
        Image.new("L", (width, 40), 255 * (name == "odd")).save(f"{name}.png")
    with pytest.raises(SystemExit, match="1"):
        importlib.import_module("zero_shot_region").main()
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("zero_shot_region: ") and re.search(message, last)


def test_what_examples_write_where_they_are_run_is_ignored_by_git():
    ignored = (EXAMPLES.parent / ".gitignore").read_text().split()
    scripts = [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("pipelines/*.py")]
    written = {name for script in scripts for name in re.findall(r'default=Path\("([^"/]+)"\)', script.read_text())}
    assert {"zero_shot_region.png", "render3d"} < written
    assert {f"/{name}" for name in written} <= {line.rstrip("/") for line in ignored}


def test_recipe_s_tensors_are_those_of_preprocess(recipe):
    data, _, _ = recipe
    scene = draw_scene(1, data.SIZE, objects=(1, 1))
    rgb, alpha = alpha_clip.Preprocess(data.SIZE)(scene.image, scene.regions[0].mask)
    torch.testing.assert_close(data.image_tensor(scene.image), rgb, atol=1e-5, rtol=0)
    torch.testing.assert_close(data.alpha_tensor(scene.regions[0].mask), alpha, atol=1e-5, rtol=0)


def test_held_out_nouns_are_in_captions_and_never_in_region_phrases(recipe):
    data, _, _ = recipe
    captions = data.Captions(400, 0, alone=0.0)
    seen = {word for i in range(400) for word in captions[i].text.replace(",", "").split()}
    assert set(HELD_OUT) <= seen
    regions = data.Regions(300, 0)
    phrases = {s.text for i in range(300) for s in regions[i] if s.alpha is not None}
    subjects = {phrase.split(" ")[1 if phrase.startswith(("a ", "an ")) else 0] for phrase in phrases}
    assert subjects & set(NOUNS)
    for phrase in phrases:
        subject = next((w for w in phrase.split() if w in NOUNS), None)  # "owl left of the frog" is of the owl
        assert subject not in HELD_OUT, phrase


def test_items_are_a_function_of_seed_and_index(recipe):
    data, _, _ = recipe
    for dataset in (data.Captions(9, 5), data.Regions(9, 5), data.Regions(9, 5, "crops")):
        first, again = dataset[3], dataset[3]
        for a, b in zip(*([x] if not isinstance(x, list) else x for x in (first, again)), strict=True):
            assert a.text == b.text
            assert torch.equal(a.image, b.image)
            assert (a.alpha is None) == (b.alpha is None)


def test_about_a_tenth_of_the_samples_are_whole_pictures(recipe):
    data, _, _ = recipe
    regions = data.Regions(600, 0)
    whole = [s.alpha is None for i in range(600) for s in regions[i]]
    assert 0.07 < np.mean(whole) < 0.13


def test_background_samples_lie_on_background(recipe):
    data, _, _ = recipe
    found = 0
    for seed in range(60):
        scene = draw_scene(seed, data.SIZE, objects=(1, 2))
        rng = np.random.default_rng(seed)
        for sample in data.background_sample(scene, rng):
            mask = sample.alpha[0].numpy() > 0
            assert (scene.masks.max(axis=0)[mask] < 0.5).all()
            assert sample.text == scene.background
            found += 1
    assert found > 10


def test_vocabulary_keeps_order_and_counts_all_else_as_unknown(recipe):
    data, _, _ = recipe
    words = data.Vocabulary(["a cat", "a dog"])
    ids = words(["a cat", "a zebra cat"])
    assert ids.argmax(dim=1).tolist() == [3, 4]  # end of text is still the highest
    assert ids[0, 2] == ids[1, 3] != 0
    assert ids[1, 2] == 0
    assert len(words) == 1 + len(words.token_ids)


def test_varied_texts_repeat_for_the_same_batch(recipe):
    data, _, _ = recipe
    words = data.vocabulary()
    texts = [f"a {noun}" for noun in NOUNS]
    assert torch.equal(words.varied(texts), words.varied(texts))
    assert not torch.equal(words.varied(texts), words.varied(texts[::-1]).flip(0))


def test_cut_out_keeps_the_object_and_nothing_else(recipe):
    data, _, _ = recipe
    image = np.full((48, 48, 3), 200, np.uint8)
    mask = np.zeros((48, 48), np.float32)
    mask[10:20, 5:25] = 1
    image[10:20, 5:25] = (250, 0, 0)
    cut = data.crop(image, mask, context=1.0, fill=7)
    assert cut.shape == image.shape
    middle, edge = cut[24, 24], cut[2, 24]
    assert abs(middle.astype(int) - (250, 0, 0)).max() <= 2
    assert abs(edge.astype(int) - 7).max() <= 2


@pytest.mark.slow
def test_recipe_runs_resumes_and_is_evaluated(recipe, tmp_path, monkeypatch, capsys):
    _, train, evaluate = recipe
    monkeypatch.setattr(train, "STEPS", dict.fromkeys(train.STEPS, 2))
    monkeypatch.setattr(train, "BATCH", 12)
    for extra in ([], ["--control", "phrases"], ["--control", "crops"]):
        monkeypatch.setattr(sys, "argv", ["train.py", "--out", str(tmp_path), "--device", "cpu", *extra])
        train.main()
    arguments = ["--base", f"{tmp_path}/base.safetensors", "--alpha", f"{tmp_path}/alpha.safetensors"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, "--controls", str(tmp_path), "--scenes", "4"])
    evaluate.main()
    out = capsys.readouterr().out
    for row in ("mask", "swap: silhouette named", "held-out nouns, mask", "cosine of alpha = 1", "control: trained on"):
        assert re.search(rf"^\| {row}.* \| ", out, re.M), row


@pytest.fixture
def ablations(recipe):
    return importlib.import_module("ablations")


@pytest.mark.slow
def test_ablations_print_both_tables_and_go_on_with_what_is_missing(ablations, tmp_path, monkeypatch, capsys):
    rows = ("the base, untrained", "crops", "whole pictures coded as alpha = 0", *ablations.OPEN)
    monkeypatch.setattr(ablations, "ROWS", {name: row for name, row in ablations.ROWS.items() if name in rows})
    arguments = ["ablations.py", "--out", str(tmp_path), "--seeds", "2", "--steps", "2", "--scenes", "4", "--jobs", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    ablations.main()
    first = capsys.readouterr().out
    for row in (*rows, "graded: distance", "relation of two"):
        assert re.search(rf"^\| {re.escape(row)}.* \| \d+\.\d+ ± \d+\.\d+ \| ", first, re.M), row
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(written) == 2 * len(rows)
    lost = tmp_path / "crops-1.json"
    lost.unlink()
    ablations.main()
    assert capsys.readouterr().out == first
    assert {path for path, time in written.items() if path.stat().st_mtime_ns != time} == {lost}


@pytest.mark.parametrize("use", ["alpha", "phrases", "crops", "whole is 0"])
def test_scenes_of_the_ablations_are_what_their_row_says(ablations, use):
    data = ablations.Scenes(200, 0, use)
    if use == "alpha":
        phrases = {region.phrase for i in range(200) for region in data[i].regions}
    else:
        items = [data[i] for i in range(200)]
        samples = [sample for item in items for sample in item]
        captions = [s for s in samples if " and " in s.text or ", " in s.text]
        assert 0.03 < len(captions) / len(samples) < 0.2
        without_mask = np.mean([s.alpha is None for s in samples])
        assert 0.03 < without_mask < 0.2 if use == "crops" else without_mask == (use == "phrases")
        phrases = {s.text for s in samples} - {s.text for s in captions}
        if use == "whole is 0":
            assert all((s.alpha < 0).all() for s in captions)
            assert any((s.alpha > 0).any() for s in samples)
    assert not {f"a {noun}" for noun in HELD_OUT} & phrases


def test_questions_are_answered_by_features_of_single_masks_as_by_hand(recipe):
    questions = importlib.import_module("questions")
    model, _ = alpha_clip.load("tiny", "cpu")
    answers = questions.ask(model, 12)
    assert len(answers) == 6
    for question, (found, baseline) in answers.items():
        assert 0 <= found <= 1 and 0 <= baseline <= 1, question
    one = answers["1 of the objects, named among all sets of up to 3"]
    assert one[0] == one[1] > 0.8  # a set of one is its single mask
    graded = answers["graded: distance of the caption's share from b"]
    assert graded[0] != graded[1]
