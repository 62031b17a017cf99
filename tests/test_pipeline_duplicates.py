"""Pictures that are alike in different shards: counted by the run, left out by another, the same each time."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from grit_shards import contents, of_scene, write

from alpha_clip.pipeline import AnnotateGrounding, Deduplicate, alike, inspect, run
from alpha_clip.pipeline.__main__ import main
from alpha_clip.pipeline.alike import marked
from alpha_clip.pipeline.duplicates import repeated
from alpha_clip.training.pictures import RegionShards

EXTRA = 'pip install "alpha-clip[pipeline]"'
for needed in ("filelock", "pycocotools", "webdataset"):
    pytest.importorskip(needed, reason=EXTRA)

ROOT = Path(__file__).parent.parent
SHARDS = (("0", (0, 1, 2)), ("10", (3, 0)), ("9", (1, 4, 0)))  # of scenes; in the order of names


def renamed(seed: int, key: str, **fields) -> tuple[str, bytes, dict]:
    _, picture, record = of_scene(seed)
    return key, picture, record | fields


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Path]:
    """Three, in which a picture is there three times and another twice; given in another order than their names'."""
    folder = tmp_path_factory.mktemp("grit")
    made = [
        write(folder / f"{name}.tar", [renamed(seed, f"{name}-{seed}") for seed in seeds]) for name, seeds in SHARDS
    ]
    return made[::-1]


@pytest.fixture(scope="module")
def annotated(shards, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    run(AnnotateGrounding("colour"), shards, folder)
    return folder


@pytest.fixture(scope="module")
def distinct(annotated, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distinct")
    work = Deduplicate(annotated)
    run(work, work.shards(), folder)
    return folder


def report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_the_first_of_each_is_left_and_the_others_are_counted(annotated, distinct):
    assert report(annotated)["duplicates"] == 3 and report(annotated)["pictures"] == {"read": 8, "written": 8}
    assert report(distinct)["pictures"] == {"duplicate": 3, "read": 8, "written": 5}
    assert report(distinct)["duplicates"] == 0
    assert RegionShards(distinct).keys == ["0-0", "0-1", "0-2", "10-3", "9-4"]
    before = {picture.key: picture for picture in RegionShards(annotated)}
    for picture in RegionShards(distinct):
        assert (np.asarray(picture.image) == np.asarray(before[picture.key].image)).all()
        assert [r.phrase for r in picture.regions] == [r.phrase for r in before[picture.key].regions]
    regions = {key: len(picture.regions) for key, picture in before.items()}
    counts = report(distinct)["regions"]
    assert counts["read"] == sum(regions.values()) == counts["written"] + counts["of pictures left out"]
    assert counts["of pictures left out"] == regions["10-0"] + regions["9-1"] + regions["9-0"]
    assert report(distinct)["models"] == report(annotated)["models"]


def test_a_shard_without_duplicates_keeps_its_bytes(annotated, distinct):
    assert (distinct / "0.tar").read_bytes() == (annotated / "0.tar").read_bytes()
    assert (distinct / "hashes" / "0.bin").read_bytes() == (annotated / "hashes" / "0.bin").read_bytes()


def test_the_hashes_are_those_of_the_pictures_and_captions_written(annotated):
    data = RegionShards(annotated / "10.tar")
    expected = b"".join(marked(picture.image, picture.caption) for picture in data)
    assert (annotated / "hashes" / "10.bin").read_bytes() == expected
    assert "hashes/10.bin" in json.loads((annotated / "manifests" / "10.json").read_text())["files"]


@pytest.mark.parametrize(("by", "kept"), [("both", "abc"), ("picture", "ab"), ("caption", "ac")])
def test_alike_in_look_or_caption_or_both(by, kept, tmp_path):
    samples = [renamed(0, "a", caption="a cat"), renamed(1, "b", caption="A  cat "), renamed(0, "c", caption="a dog")]
    samples = [(key, picture, record | {"ref_exps": [[0, 5, 0, 0, 1, 1, 1]]}) for key, picture, record in samples]
    shards = [write(tmp_path / "in" / f"{sample[0]}.tar", [sample]) for sample in samples]
    run(AnnotateGrounding("colour", iou=0, area=(0, 1)), shards, tmp_path / "out")
    work = Deduplicate(tmp_path / "out", by)
    run(work, work.shards(), tmp_path / by)
    assert "".join(RegionShards(tmp_path / by).keys) == kept
    with pytest.raises(ValueError, match="by is 'look', expected one of both, picture, caption"):
        Deduplicate(tmp_path, "look")


def marks(*rows: tuple[int, int]) -> bytes:
    """Of pictures in one grey each, with one caption each."""
    return b"".join(bytes([look]) * 192 + text.to_bytes(8, "little") for look, text in rows)


def test_the_first_by_hand(tmp_path):
    for name, rows in {"a": [(10, 1), (20, 1), (11, 1)], "b": [], "c": [(10, 2), (21, 1), (30, 3)]}.items():
        (tmp_path / name).write_bytes(marks(*rows))
    files = [tmp_path / name for name in "abc"]
    found = {by: [again.tolist() for again in repeated(files, by)] for by in ("both", "picture", "caption")}
    assert found["both"] == [[False, False, True], [], [False, True, False]]
    assert found["picture"] == [[False, False, True], [], [True, True, False]]
    assert found["caption"] == [[False, True, True], [], [False, True, False]]
    assert repeated([files[1]])[0].tolist() == repeated([])[0].tolist() == []


def test_what_is_left_out_leaves_no_other_out(tmp_path):
    (tmp_path / "a").write_bytes(marks((10, 1), (12, 1), (14, 1), (16, 1)))
    assert repeated([tmp_path / "a"])[0].tolist() == [False, True, False, True]


def test_of_many_files_each_picture_is_like_those_that_it_is_like_in_one(tmp_path):
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (9000, 200), np.uint8)
    rows[5000:] = rows[random.integers(0, 5000, 4000)]
    rows[5000:, :192] = (rows[5000:, :192].astype(int) + random.integers(-1, 2, (4000, 192))).clip(0, 255)
    for number, part in enumerate(np.split(rows, [10, 8000])):
        part.tofile(tmp_path / f"{number}")
    found = np.concatenate(repeated([tmp_path / f"{number}" for number in range(3)]))
    assert not found[:5000].any() and found[5000:].mean() > 0.9  # noise has a border of coarse steps everywhere
    rows.tofile(tmp_path / "all")
    assert (repeated([tmp_path / "all"])[0] == found).all()


def pale(count: int) -> np.ndarray:
    """Marks of pictures that are nearly white, as scans are, of which no two are alike."""
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (count, 200), np.uint8)
    rows[:, :192] = random.normal(238, 6, (count, 192)).clip(0, 255)
    return rows


@pytest.mark.parametrize("count", [2000, 8000])
def test_a_pale_picture_is_compared_with_few_others(count, tmp_path, monkeypatch):
    compared, is_near = [], alike._is_near
    monkeypatch.setattr(alike, "_is_near", lambda look, others: compared.append(len(others)) or is_near(look, others))
    pale(count).tofile(tmp_path / "a")
    assert not repeated([tmp_path / "a"], "picture")[0].any()
    assert sum(compared) / count < 0.005 * count


@pytest.mark.parametrize(("levels", "share"), [(0.5, 0.99), (1, 0.98), (1.5, 0.94), (1.9, 0.85)])
def test_nearly_all_pairs_that_are_alike_are_found(levels, share, tmp_path):
    rows = pale(2000).astype(float)
    copies = rows.copy()
    copies[:, :192] += np.random.default_rng(1).normal(0, levels, (2000, 192))
    copies = copies.round().clip(0, 255)
    near = np.sqrt(((copies - rows)[:, :192] ** 2).mean(1)) <= alike.NEAR
    np.concatenate([rows, copies]).astype(np.uint8).tofile(tmp_path / "a")
    found = repeated([tmp_path / "a"], "picture")[0]
    assert not found[:2000].any() and not found[2000:][~near].any()
    assert near.mean() > 0.5 and found[2000:][near].mean() > share


def test_many_pictures_need_some_30_bytes_each(tmp_path):
    random = np.random.default_rng(0)
    random.integers(0, 256, (250_000, 200), np.uint8).tofile(tmp_path / "a")
    with (tmp_path / "a").open("rb") as file:
        (tmp_path / "b").write_bytes(file.read(200 * 1000))
    files = [tmp_path / "a", tmp_path / "b"]
    tracemalloc.start()
    found = repeated(files)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found[0].any() and found[1].all()
    assert peak < 35 * 250_000 + 8e6, peak  # and a block of rows


# --- runs ---


def test_a_rerun_does_only_what_is_missing_and_other_pictures_are_refused(shards, annotated, distinct, tmp_path):
    out = tmp_path / "distinct"
    work = Deduplicate(annotated)
    run(work, work.shards(), out)
    assert contents(out) == contents(distinct)
    (out / "9.tar").unlink()
    (out / ".9.tar.1.part").touch()
    run(work, work.shards(), out, 1)
    assert contents(out) == contents(distinct)
    run(AnnotateGrounding("colour"), shards[:1], tmp_path / "fewer")
    fewer = Deduplicate(tmp_path / "fewer")
    with pytest.raises(ValueError, match=r"holds a run with another pictures .*: choose another folder"):
        run(fewer, fewer.shards(), out)
    with pytest.raises(ValueError, match="holds a run with another by"):
        run(Deduplicate(annotated, "picture"), work.shards(), out)


KILLED = """
import os, signal, sys
from pathlib import Path
from alpha_clip.pipeline import Deduplicate, duplicates, run

annotated, out = map(Path, sys.argv[1:])
scanned = duplicates.scanned

def dies(shard):
    if shard.stem == "9":
        os.kill(os.getpid(), signal.SIGKILL)
    return scanned(shard)

duplicates.scanned = dies
work = Deduplicate(annotated)
run(work, work.shards(), out)
"""


@pytest.mark.slow
def test_after_kill_9_the_rerun_leaves_the_files_of_an_uninterrupted_run(annotated, distinct, tmp_path):
    arguments = [sys.executable, "-c", KILLED, str(annotated), str(tmp_path)]
    killed = subprocess.run(arguments, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".9.tar.*.part"))) == 1
    assert sorted(path.name for path in (tmp_path / "manifests").iterdir()) == ["0.json", "10.json"]
    main(["deduplicate", str(annotated), "--output", str(tmp_path)])
    assert contents(tmp_path) == contents(distinct)


def test_a_run_that_has_not_ended_or_was_changed_is_refused(shards, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=r"holds no report\.json: run annotate-\.\.\. to its end first"):
        Deduplicate(tmp_path).shards()
    run(AnnotateGrounding("colour"), shards, out)
    shard = out / "10.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"a report of 3 shards, and 10\.tar is not as it was: run annotate-"):
        Deduplicate(out).shards()
    shard.write_bytes(bytes(len(data)))  # of the same size
    work = Deduplicate(out)
    with pytest.raises(
        ValueError, match=r"10\.tar does not hold the 2 pictures that it had: run annotate-\.\.\. again"
    ):
        run(work, work.shards(), tmp_path / "distinct")
    (out / "manifests" / "0.json").unlink()
    with pytest.raises(ValueError, match=r"a report of 3 shards, and 2 hashes, 2 manifests: run annotate-"):
        Deduplicate(out).shards()


def test_the_commands_say_how_many_there_are_and_leave_them_out(shards, annotated, distinct, tmp_path, capsys):
    out, folder = str(tmp_path / "out"), str(tmp_path / "distinct")
    main(["annotate-grounding", "--input", *map(str, shards), "--output", out, "--segmenter", "colour"])
    remedy = f"`python -m alpha_clip.pipeline deduplicate {out} --output OTHER` leaves them out"
    said = f"3 of the pictures written are like an earlier one in look and caption: {remedy}"
    assert said in capsys.readouterr().out
    main(["deduplicate", out, "--output", folder])
    found = capsys.readouterr().out
    assert re.search(r"^pictures duplicate +3$", found, re.M) and "like an earlier one" not in found
    assert contents(tmp_path / "distinct") == contents(distinct)
    assert "<td>duplicate<td class=n>3" in inspect(tmp_path / "distinct", 2).read_text()
    with pytest.raises(SystemExit, match="2"):
        main(["deduplicate", str(tmp_path), "--output", folder])
    assert "holds no report.json" in capsys.readouterr().err
