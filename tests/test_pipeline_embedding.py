"""Features of pictures of which nothing is said, and names that are not in UTF-8."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from grit_shards import of_scene, write

from alpha_clip.pipeline import AnnotateGrounding, Embed, fingerprints, inspect, run
from alpha_clip.towers import Tower
from alpha_clip.training.shards import scanned

EXTRA = 'pip install "alpha-clip[pipeline]"'
for needed in ("pycocotools", "webdataset"):
    pytest.importorskip(needed, reason=EXTRA)
parquet = pytest.importorskip("pyarrow.parquet", reason=EXTRA)

ODD = b"caf\xe9".decode("utf-8", "surrogateescape")


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def rows(folder: Path, name: str = "0") -> dict:
    with (folder / f"{name}.parquet").open("rb") as file:
        found: dict = parquet.read_table(file).to_pydict()
    return found


def rejects(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "rejects.jsonl").read_text().splitlines()
    return [(reject["key"], reject["problem"]) for reject in map(json.loads, lines)]


def test_whole_pictures_need_no_regions_no_captions_and_no_records(tmp_path):
    _, picture, record = of_scene(0)
    annotated = {"caption": "x", "regions": [{"phrase": "x", "mask": None, "box": [0, 0, 9, 9]}]}
    lying = {"caption": "x", "regions": [{"phrase": "x", "mask": {"size": [1, 1], "counts": "0"}}]}
    samples = [("grit", record), ("annotated", annotated), ("lying", lying), ("bare", {}), ("broken", b"{")]
    grit = write(tmp_path / "in" / "0.tar", [(name, picture, text) for name, text in samples])
    plain = tar_of(
        tmp_path / "in" / "1.tar", {"a.jpg": picture, "b.png": picture[:200], "c.cls": b"7", "d.jpg": picture}
    )
    out = tmp_path / "out"
    assert run(Embed(of="images"), [grit, plain], out).pictures["written"] == 7
    assert rows(out)["image_id"] == [name for name, _ in samples] and set(rows(out)["mask_id"]) == {-1}
    assert rows(out, "1")["image_id"] == ["a", "d"]
    vectors = np.array(rows(out)["vector"] + rows(out, "1")["vector"])
    np.testing.assert_allclose(vectors, np.repeat(vectors[:1], len(vectors), 0), atol=1e-6)
    assert rejects(out) == [("b", "unreadable picture")]


def test_only_what_is_needed_of_a_sample_must_be_there(tmp_path):
    shard = tar_of(tmp_path / "0.tar", {"a.jpg": b"picture", "b.json": b"{}"})
    assert [bool(entry.wrong) for entry in scanned(shard)] == [True, True]
    first, second = scanned(shard, ("image",))
    assert (first.image_size, first.json_size, first.wrong) == (len(b"picture"), 0, "")
    assert second.wrong == "it has no image file in the shard, expected b.jpg or b.jpeg or b.png or b.webp"


@pytest.mark.parametrize("of", ["regions", "images"])
def test_a_chunk_is_of_several_pictures(of, tmp_path, monkeypatch):
    run(AnnotateGrounding("colour"), [write(tmp_path / "in" / "0.tar", map(of_scene, range(4)))], tmp_path / "out")
    calls, encode = [], Tower.encode
    monkeypatch.setattr(
        Tower, "encode", lambda tower, rgb, *alpha: calls.append(len(rgb)) or encode(tower, rgb, *alpha)
    )
    run(Embed(of=of, chunk=3), [tmp_path / "out" / "0.tar"], tmp_path / "features")
    count = len(rows(tmp_path / "features")["image_id"])
    parts = calls[1:]  # the first was for the width of a vector
    assert sum(parts) == count >= 4 and set(parts[:-1]) == {3}


def test_another_chunk_is_another_setting_for_it_moves_the_last_bits(tmp_path):
    shard = write(tmp_path / "in" / "0.tar", [of_scene(0)])
    run(Embed(of="images"), [shard], tmp_path / "out")
    with pytest.raises(ValueError, match=r"another chunk \(chunk: 32 there, 1 now\): choose another folder"):
        run(Embed(of="images", chunk=1), [shard], tmp_path / "out")
    with pytest.raises(ValueError, match="chunk is 0, expected at least 1"):
        Embed(chunk=0)


# --- names that are not in UTF-8 ---


@pytest.mark.parametrize("of", ["regions", "images"])
def test_a_picture_with_such_a_name_is_rejected_when_embedding(of, tmp_path):
    _, picture, _ = of_scene(0)
    text = json.dumps({"caption": "x", "regions": [{"phrase": "x", "mask": None, "box": [0, 0, 9, 9]}]}).encode()
    files = {f"{key}.{suffix}": data for key in ("a", ODD) for suffix, data in (("jpg", picture), ("json", text))}
    run(Embed(of=of), [tar_of(tmp_path / "in" / "0.tar", files)], tmp_path / "out")
    assert rows(tmp_path / "out")["image_id"] == ["a"]
    assert rejects(tmp_path / "out") == [(r"caf\xe9", "malformed name")]


def test_the_page_shows_it_escaped(tmp_path):
    run(AnnotateGrounding("colour"), [write(tmp_path / "in" / "0.tar", [of_scene(0)])], tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "0.tar") as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    tar_of(tmp_path / "out" / "0.tar", {f"{ODD}.{name.partition('.')[2]}": data for name, data in files.items()})
    assert r"<figcaption>caf\udce9: " in inspect(tmp_path / "out").read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="names are UTF-16 there")
def test_shards_and_what_is_hashed_may_be_called_so(tmp_path):
    shard = write(tmp_path / "in" / f"{ODD}.tar", [of_scene(0)])
    run(AnnotateGrounding("colour"), [shard], tmp_path / "masks")
    run(Embed(), [tmp_path / "masks" / shard.name], tmp_path / "out")
    assert set(rows(tmp_path / "out", ODD)["image_id"]) == {of_scene(0)[0]}
    one = fingerprints.of_files([shard], shard.parent)
    other = shard.rename(shard.with_name("other.tar"))
    assert one != fingerprints.of_files([other], other.parent)
