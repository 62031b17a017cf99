"""Where a run may write: nothing that is read, and nothing of anybody else's, is written over."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from grit_shards import contents, of_scene, write

from alpha_clip.pipeline import AnnotateClassification, AnnotateGrounding, Deduplicate, Embed, run
from alpha_clip.pipeline.__main__ import main

EXTRA = 'pip install "alpha-clip[pipeline]"'
for needed in ("pycocotools", "pyarrow", "webdataset"):
    pytest.importorskip(needed, reason=EXTRA)

COLOUR = AnnotateGrounding("colour")


@pytest.fixture
def shards(tmp_path) -> list[Path]:
    return [write(tmp_path / "in" / f"{k}.tar", [of_scene(k)]) for k in range(2)]


def assert_refused(message: str, work, shards: list[Path], folder: Path) -> None:
    """And that nothing is written there."""
    before = contents(folder), sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=message):
        run(work, shards, folder)
    assert (contents(folder), sorted(folder.rglob("*"))) == before


READ = "is to be read, and might be written over: choose another output folder"


@pytest.mark.parametrize("work", [COLOUR, Embed()])
def test_no_shard_is_written_over(work, shards, tmp_path):
    assert_refused(READ, work, shards, tmp_path / "in")
    assert_refused(READ, work, shards[:1], tmp_path / "in" / ".." / "in")


@pytest.mark.parametrize("lead", [os.symlink, os.link])
def test_links_to_shards_are_seen_through(lead, shards, tmp_path):
    (tmp_path / "links").mkdir()
    lead(shards[1], tmp_path / "links" / "other.tar")
    assert_refused(READ, COLOUR, [tmp_path / "links" / "other.tar"], tmp_path / "in")
    (tmp_path / "in too").symlink_to(tmp_path / "in")
    assert_refused(READ, COLOUR, shards, tmp_path / "in too")


def test_a_deduplicated_run_is_not_written_over(shards, tmp_path):
    run(COLOUR, shards, tmp_path / "out")
    work = Deduplicate(tmp_path / "out")
    assert_refused(READ, work, work.shards(), tmp_path / "out")


def test_no_class_gets_files_of_a_run(tmp_path):
    (cat := tmp_path / "classes" / "cat").mkdir(parents=True)
    work = AnnotateClassification("colour", "words:none")
    assert_refused(f"cat lies in {cat}, which is to be read", work, [cat], cat)
    with pytest.raises(ValueError, match=f"deep.new lies in {cat}, which is to be read: choose another output"):
        run(work, [cat], cat / "deep" / "new")
    assert_refused(READ, work, [cat], cat.parent)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("settings.json", '{"colour": "red"}', "settings.json is not of a run of this pipeline, and would be"),
        ("settings.json", "{", "settings.json is not of a run of this pipeline, and would be written over: choose"),
        ("report.json", '["all is well"]', "report.json is not of a run of this pipeline, and would be written over"),
        ("rejects.jsonl", "", "holds rejects.jsonl, and no settings.json of a run that wrote it: choose another"),
        ("0.tar", "a tar", "holds 0.tar, and no settings.json of a run that wrote it: choose another output folder"),
        ("1.parquet", "what img2dataset writes", "holds 1.parquet, and no settings.json of a run that wrote it"),
        ("manifests/a.json", "{}", "holds a.json, and no settings.json of a run that wrote it: choose another"),
    ],
)
def test_nobody_elses_files_are_written_over(file, text, message, shards, tmp_path):
    path = tmp_path / "out" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert_refused(message, COLOUR, shards, tmp_path / "out")


def test_files_that_a_run_does_not_write_are_left_alone(shards, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    run(COLOUR, shards, tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_file_on_the_way_is_named(shards, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"file is a file, expected a folder, or a name for a new one"):
        run(COLOUR, shards, tmp_path / "file" / "deep" / "out")


# --- a folder of several runs ---


def test_the_report_is_of_all_shards_in_the_folder(shards, tmp_path, capsys):
    command = ["annotate-grounding", "--segmenter", "colour", "--output", str(tmp_path / "out"), "--input"]
    main([*command, *map(str, shards)])
    assert "other runs" not in capsys.readouterr().out
    before = contents(tmp_path / "out")
    main([*command, str(shards[1])])
    assert f"these are of all 2 shards in {tmp_path / 'out'}, 1 of other runs" in capsys.readouterr().out
    assert contents(tmp_path / "out") == before
    more = write(tmp_path / "more" / "2.tar", [of_scene(2)])
    main([*command, str(more)])
    run(COLOUR, [*shards, more], tmp_path / "at once")
    assert contents(tmp_path / "out") == contents(tmp_path / "at once")


def test_what_was_deleted_is_not_in_the_report(shards, tmp_path):
    run(COLOUR, shards, tmp_path / "out")
    (tmp_path / "out" / "0.tar").unlink()
    assert run(COLOUR, shards[1:], tmp_path / "out").shards == 1
    assert json.loads((tmp_path / "out" / "report.json").read_text())["pictures"] == {"read": 1, "written": 1}


def test_gpus_are_for_ray(shards, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["embed", "--input", str(shards[0]), "--output", str(tmp_path / "out"), "--gpus", "1"])
    assert "--gpus 1 is for workers on Ray: add --ray or --address, or leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
