"""What was made with other weights, or of another shard, does not count as done, though all names are the same."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from grit_shards import contents, of_scene, write
from sams import SAMS

import alpha_clip
from alpha_clip.catalogue import BASES
from alpha_clip.evaluation import subjects
from alpha_clip.hashes import sha256
from alpha_clip.pipeline import AnnotateClassification, AnnotateGrounding, Embed, fingerprints, run, tasks
from alpha_clip.pipeline.__main__ import main

EXTRA = 'pip install "alpha-clip[pipeline]"'
for needed in ("filelock", "pycocotools", "pyarrow", "transformers", "webdataset"):
    pytest.importorskip(needed, reason=EXTRA)

TINY = Path(alpha_clip.__file__).with_name("assets") / "tiny.safetensors"
OTHER = r"weights of the {0} \(weights of the {0}: [\w ]+ there, [\w ]+ now\): choose another folder, or delete this"


@pytest.fixture
def shard(tmp_path) -> Path:
    return write(tmp_path / "in" / "00000.tar", map(of_scene, range(2)))


def settings(folder: Path) -> dict:
    return json.loads((folder / "settings.json").read_text())


def alpha_weights(path: Path, scale: float) -> Path:
    """An image tower for `tiny`, as the authors save theirs."""
    model, _ = alpha_clip.load("tiny", device="cpu")
    tower = {f"visual.{name}": tensor for name, tensor in model.visual.state_dict().items()}
    tower["visual.conv1_alpha.weight"] = scale * tower["visual.conv1_alpha.weight"]
    torch.save(tower, path)
    return path


# --- other weights under the same name ---


@pytest.mark.filterwarnings("ignore:nothing confirms")
def test_a_finished_run_with_another_alpha_checkpoint_is_refused(shard, tmp_path):
    out, file = tmp_path / "features", alpha_weights(tmp_path / "alpha.pth", 1.0)
    masks = tmp_path / "masks"
    run(AnnotateGrounding("colour"), [shard], masks)
    work = Embed(f"tiny+{file}")
    run(work, [masks / "00000.tar"], out)
    before = contents(out)
    run(work, [masks / "00000.tar"], out)
    assert contents(out) == before
    alpha_weights(file, 2.0)
    with pytest.raises(ValueError, match="holds a run with another " + OTHER.format("model")):
        run(work, [masks / "00000.tar"], out)
    assert contents(out) == before


def test_a_finished_run_with_another_sam_in_the_same_folder_is_refused(shard, tmp_path):
    SAMS["SamModel"](tmp_path / "sam")
    work = AnnotateGrounding(f"hf:{tmp_path / 'sam'}", area=(0, 1), iou=0)
    run(work, [shard], tmp_path / "out")
    file = tmp_path / "sam" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"else")
    with pytest.raises(ValueError, match="holds a run with another " + OTHER.format("segmenter")):
        run(work, [shard], tmp_path / "out")


def test_another_captioner_in_the_same_folder_is_another_setting(tmp_path):
    (tmp_path / "blip").mkdir()
    (tmp_path / "blip" / "config.json").write_text("{}")
    work = AnnotateClassification("colour", f"hf:{tmp_path / 'blip'}")
    before = work.settings()
    assert work.settings() == before and before["weights of the segmenter"] is None
    (tmp_path / "blip" / "config.json").write_text("{ }")
    after = work.settings()
    assert [name for name in before if before[name] != after[name]] == ["weights of the captioner"]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])  # two processes start
def test_what_was_loaded_is_compared_where_names_and_files_do_not_tell(workers, shard, tmp_path, monkeypatch):
    second = write(tmp_path / "in" / "00001.tar", map(of_scene, range(2, 4)))
    run(Nameless(1.0), [shard], tmp_path / "out")
    run(Nameless(1.0), [shard], tmp_path / "out")
    what = "that is, other weights under the same name, or the same in another precision, as on another device"
    expected = rf"holds a run with other models \(model: scaled by 1.0 there, scaled by 2.0 now\), {what}: choose"
    with pytest.raises(ValueError, match=expected):
        run(Nameless(2.0), [shard, second], tmp_path / "out", workers)
    monkeypatch.setattr(tasks, "prepared", None)
    manifest = tmp_path / "out" / "manifests" / "00000.json"
    (tmp_path / "out" / "manifests" / "00001.json").write_text(manifest.read_text().replace("by 1.0", "by 2.0"))
    (tmp_path / "out" / "rejects" / "00001.jsonl").touch()
    with pytest.raises(RuntimeError, match=r"holds shards of different models, .*by 1.0.*by 2.0.*: choose another"):
        tasks.summarise(tmp_path / "out")


class Nameless:
    """Work whose settings do not tell which weights it uses."""

    suffix = ".txt"

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def settings(self) -> dict:
        return {"weights of the model": None}

    def prepare(self):
        self.models = {"model": f"scaled by {self.scale}"}
        return self

    def __call__(self, shard, file, ledger) -> None:
        file.write(b"x")


# --- fingerprints ---


def test_a_file_a_folder_and_what_is_hidden_in_it(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("a")
    before = fingerprints.of_path(tmp_path)
    assert before == fingerprints.of_files([tmp_path / "deep" / "a.txt"], tmp_path)
    (tmp_path / ".hidden").write_text("b")
    assert fingerprints.of_path(tmp_path) == before
    (tmp_path / "deep" / "a.txt").rename(tmp_path / "a.txt")
    assert fingerprints.of_path(tmp_path) != before
    assert fingerprints.of_path(tmp_path / "none") is None


def test_of_a_large_file_the_hash_is_remembered(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(bytes(1 << 20))
    before = fingerprints.of_path(tmp_path)
    monkeypatch.setattr(fingerprints, "sha256", None)
    monkeypatch.setattr("alpha_clip.hashes.sha256", None)
    assert fingerprints.of_path(tmp_path) == before


def test_names_of_clips(tmp_path):
    of = fingerprints.of_clip
    assert of("tiny") == of("tiny+scenes") != of("tiny+none")
    tags = {name: of(f"ViT-L/14{name}") for name in ("", "+grit1m+mim", "+grit20m")}
    assert tags[""] == tags["+grit1m+mim"] != tags["+grit20m"]
    assert of("ViT-B/32") == BASES["ViT-B/32"].sha256[:16] and of("ViT-L/14@336px") is None  # its hash is not known
    file = tmp_path / "a+b.safetensors"
    shutil.copy(TINY, file)
    assert of(str(file)) == fingerprints.of_path(file)
    assert of(f"open_clip:ViT-B-16:{file}") == fingerprints.of_path(file)
    assert of("open_clip:ViT-B-16:openai") is None and of("") is None and of("hf:") is None
    assert of(f"hf:{tmp_path}") == fingerprints.of_path(tmp_path)


def cached(root: Path, commit: str, weights: bytes) -> None:
    """A repository in the Hub's cache."""
    repo = root / "models--somebody--sam"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(commit)
    folder = repo / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)


def test_a_repository_is_known_by_the_weights_in_the_hubs_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    of = fingerprints.of_transformers
    assert of("somebody/sam") is None
    for name in ("/no/such/folder", "", "a/b/c"):
        with pytest.raises(
            FileNotFoundError, match=f"there is no folder {name}: expected one that save_pretrained wrote"
        ):
            of(name)
    cached(tmp_path, "a" * 40, b"one")
    one = of("somebody/sam")
    assert one is not None and fingerprints.of_clip("hf-hub:somebody/sam") == one
    (tmp_path / "models--somebody--sam" / "snapshots" / ("a" * 40) / "README.md").write_text("of another program")
    cached(tmp_path, "b" * 40, b"one")
    assert of("somebody/sam") == one
    cached(tmp_path, "c" * 40, b"two")
    assert of("somebody/sam") not in (None, one)
    assert fingerprints.of_clip(f"hf-hub:somebody/sam@{'a' * 40}") == one


def test_a_repository_that_becomes_known_is_written_down_and_then_compared(shard, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    work, out = Fetching(tmp_path / "cache"), tmp_path / "out"
    run(work, [shard], out)
    assert settings(out)["weights of the model"] == fingerprints.of_transformers("somebody/sam")
    before = contents(out)
    shutil.rmtree(tmp_path / "cache")  # not known any more, which forbids nothing
    run(work, [shard], out)
    assert contents(out) == before
    cached(tmp_path / "cache", "b" * 40, b"two")
    with pytest.raises(ValueError, match="holds a run with another " + OTHER.format("model")):
        run(work, [shard], out)


class Fetching(Nameless):
    """Work that puts its model into the cache first."""

    def __init__(self, cache: Path) -> None:
        super().__init__(1.0)
        self.cache = cache

    def settings(self) -> dict:
        return {"weights of the model": fingerprints.of_transformers("somebody/sam")}

    def prepare(self):
        cached(self.cache, "a" * 40, b"one")
        return super().prepare()


# --- files that are cut off ---


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_file_of_weights_that_is_cut_off_is_named(share, shard, tmp_path):
    folder = tmp_path / "sam"
    SAMS["SamModel"](folder)
    file = folder / "model.safetensors"
    os.truncate(file, int(share * file.stat().st_size))
    with pytest.raises(OSError, match=rf"^{file} is not a whole safetensors file \(.*\): copy or fetch it again$"):
        run(AnnotateGrounding(f"hf:{folder}"), [shard], tmp_path / "out")


@pytest.mark.slow  # two processes start
def test_the_command_says_so_in_a_line_of_workers_too(shard, tmp_path, capsys):
    SAMS["SamModel"](tmp_path / "sam")
    os.truncate(tmp_path / "sam" / "model.safetensors", 999)
    command = ["annotate-grounding", "--input", str(shard), "--segmenter", f"hf:{tmp_path / 'sam'}", "--workers", "2"]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--output", str(tmp_path / "out")])
    assert f"error: {tmp_path / 'sam' / 'model.safetensors'} is not a whole" in capsys.readouterr().err


def test_names_are_taken_apart_to_find_it(tmp_path):
    (whole := tmp_path / "whole.safetensors").write_bytes(TINY.read_bytes())
    (half := tmp_path / "half.safetensors").write_bytes(TINY.read_bytes()[:999])
    (tmp_path / "words.txt").write_text("a cat\n")
    for name in (f"open_clip:ViT-B-32:{half}", f"{whole}+{half}", f"words:{tmp_path / 'words.txt'}@{half}"):
        assert fingerprints.cut_off(["colour", "hf:somebody/sam", name]) == half
    assert fingerprints.cut_off([f"tiny+{whole}", str(whole), "hf:"]) is None


# --- what is loaded ---


def test_no_base_is_loaded_besides_the_models(tmp_path, monkeypatch):
    pytest.importorskip("scipy", reason=EXTRA)
    (tmp_path / "words.txt").write_text("a cat\n")
    loaded, load = [], subjects.load
    monkeypatch.setattr(subjects, "load", lambda *args, **more: loaded.append(more) or load(*args, **more))
    Embed().prepare()
    assert loaded == [{"alpha_vision_ckpt_pth": "auto"}]
    AnnotateClassification("colour", f"words:{tmp_path / 'words.txt'}").prepare()
    assert loaded == [{"alpha_vision_ckpt_pth": "auto"}] * 3  # the captioner's too


# --- another shard of the same name and size ---


def test_a_shard_of_the_same_size_with_other_contents_is_done_again(tmp_path):
    shard, out = tmp_path / "00000.tar", tmp_path / "out"
    write(shard, [of_scene(0)])
    data = shard.read_bytes()
    run(AnnotateGrounding("colour"), [shard], out)
    first = (out / "manifests" / "00000.json").stat()
    os.utime(shard, (first.st_mtime + 60, first.st_mtime + 60))  # as after a copy
    run(AnnotateGrounding("colour"), [shard], out)
    assert (out / "manifests" / "00000.json").stat().st_mtime_ns == first.st_mtime_ns
    assert json.loads((out / "manifests" / "00000.json").read_text())["input"]["sha256"] == sha256(shard)
    shard.write_bytes(data.replace(b"https://example.org/0.jpg", b"https://example.org/1.jpg"))
    assert shard.stat().st_size == len(data)
    os.utime(shard, (first.st_mtime + 60, first.st_mtime + 60))
    run(AnnotateGrounding("colour"), [shard], out)
    assert b"https://example.org/1.jpg" in (out / "00000.tar").read_bytes()


def test_a_class_with_another_picture_of_the_same_size_is_done_again(tmp_path):
    folder = tmp_path / "cat"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"one")
    (folder / "b.jpg").symlink_to("nowhere")
    run(Nameless(1.0), [folder], tmp_path / "out")
    done = (tmp_path / "out" / "manifests" / "cat.json").stat()
    assert tasks.is_done(folder, tmp_path / "out")
    (folder / "a.jpg").write_bytes(b"two")
    os.utime(folder / "a.jpg", (done.st_mtime + 60, done.st_mtime + 60))
    assert not tasks.is_done(folder, tmp_path / "out")
