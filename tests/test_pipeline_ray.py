"""Shards on Ray: the same files as of the plain loop, whoever is killed; what else can go wrong is said."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from grit_shards import contents, of_scene, write

from alpha_clip.pipeline import AnnotateClassification, AnnotateGrounding, Cluster, Embed, Ledger, on_ray, run
from alpha_clip.pipeline import run as run_function
from alpha_clip.pipeline.__main__ import main
from alpha_clip.pipeline.tasks import MANIFESTS

EXTRA = 'pip install "alpha-clip[pipeline]"'
for needed in ("pycocotools", "pyarrow", "webdataset"):
    pytest.importorskip(needed, reason=EXTRA)

ROOT = Path(__file__).parent.parent
COLOUR = AnnotateGrounding("colour")


def shards_in(folder: Path, count: int, size: int) -> list[Path]:
    return [write(folder / f"{k:05d}.tar", map(of_scene, range(size * k, size * k + size))) for k in range(count)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[Path]:
    return shards_in(tmp_path_factory.mktemp("grit"), count=3, size=4)


@contextmanager
def started(script: str, *arguments: Path):
    """A process; what it started ends with it, even if the test fails."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


ON_A_LOCAL_RAY = """
import os, signal, sys
from pathlib import Path

import ray

from alpha_clip.pipeline import AnnotateGrounding, Cluster, Embed, run

out, *shards = map(Path, sys.argv[1:])

class Dies(AnnotateGrounding):
    def prepare(self):
        task = super().prepare()

        class Task:
            suffix, models = task.suffix, task.models

            def __call__(self, shard, file, ledger):
                if shard.stem == "00001" and not Path(out, "died").exists():
                    Path(out, "died").touch()
                    file.write(b"half")
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
                task(shard, file, ledger)

        return Task()

class Never(AnnotateGrounding):
    def prepare(self):
        os.kill(os.getpid(), signal.SIGKILL)

class Wrong(AnnotateGrounding):
    def prepare(self):
        raise OSError("no model here")

run(Dies("colour"), shards, out / "masks", workers=2, cluster=Cluster())
assert not ray.is_initialized()

os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print("begin", flush=True)
run(Embed(), sorted((out / "masks").glob("*.tar")), out / "features", workers=2, cluster=Cluster())
print("end", flush=True)
for work in (Wrong("colour"), Never("colour")):
    try:
        run(work, shards[:1], out / "none", cluster=Cluster())
    except (OSError, RuntimeError) as error:
        print(type(error).__name__, error, error.__cause__)
assert ray.is_initialized()
"""


@pytest.mark.slow  # Ray starts twice
def test_ray_leaves_the_same_bytes_even_if_a_worker_is_killed(shards, tmp_path):
    pytest.importorskip("ray.data", reason=EXTRA)
    with started(ON_A_LOCAL_RAY, tmp_path, *shards) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert (tmp_path / "died").exists()
    run(COLOUR, shards, tmp_path / "plain masks")
    assert contents(tmp_path / "masks") == contents(tmp_path / "plain masks")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as those workers: more would move the last bits
    try:
        run(Embed(), sorted((tmp_path / "masks").glob("*.tar")), tmp_path / "plain features")
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "features") == contents(tmp_path / "plain features")
    assert "begin\nend\nOSError no model here" in output  # Ray was quiet
    assert "in prepare" in output  # where it was raised
    assert f"RuntimeError 4 workers were killed at {shards[0]}, perhaps for want of memory" in output
    assert all("logging.cc" in line for line in errors.splitlines())


ON_NODES = """
import sys, time
from pathlib import Path

from ray.cluster_utils import Cluster as Nodes

from alpha_clip.pipeline import AnnotateGrounding, Cluster, run

NODES = 4

class Slow(AnnotateGrounding):
    def prepare(self):
        task = super().prepare()
        segment = task.segmenter

        class Waits:  # as for a GPU, which such a node would have
            identity = segment.identity

            def __call__(self, image, boxes):
                time.sleep(0.1)
                return segment(image, boxes)

        task.segmenter = Waits()
        return task

small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, **small})
for _ in range(NODES):
    nodes.add_node(num_cpus=1, num_gpus=1, object_store_memory=small["object_store_memory"])
out, *shards = map(Path, sys.argv[1:])
began = time.monotonic()
run(Slow("colour"), shards, out, workers=NODES, cluster=Cluster(nodes.address, gpus=1))
print(time.monotonic() - began)
nodes.shutdown()
"""


@pytest.mark.slow
def test_on_a_cluster_whose_workers_are_killed_no_sample_is_lost_or_doubled(tmp_path):
    pytest.importorskip("ray.data", reason=EXTRA)
    from benchmarks.pipeline import held

    shards = shards_in(tmp_path / "in", count=32, size=25)
    out = tmp_path / "out"
    with started(ON_NODES, out, *shards) as process:
        killed, peak = kill_workers(process, out)
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    sys.stderr.write(f"{output.split()[-1]} s, {len(killed)} kills, at most {peak / 2**30:.2f} GiB\n")
    assert len(killed) >= 5
    assert peak < 4 * 2**30
    assert held(process.pid) == 0

    run(COLOUR, shards, tmp_path / "plain")
    assert contents(out) == contents(tmp_path / "plain")
    keys = Counter(name for shard in out.glob("*.tar") for name in names(shard))
    assert set(keys) == {f"{seed:09d}.{suffix}" for seed in range(800) for suffix in ("jpg", "json")}
    assert set(keys.values()) == {1}
    assert not list(out.rglob("*.part"))


def names(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return tar.getnames()


def kill_workers(process: subprocess.Popen, out: Path) -> tuple[set[str], int]:
    """Until the process ends, kill a worker in the middle of a shard every 4 seconds, if 2 are at work; no shard twice.

    Returns the shards, and the most bytes that the process and all that it started held.
    """
    from benchmarks.pipeline import held

    killed: set[str] = set()
    peak, last = 0, time.monotonic()
    while process.poll() is None:
        peak = max(peak, held(process.pid))
        parts = (part.name.split(".") for part in sorted(out.glob(".*.tar.*.part")))
        working = {shard: int(worker) for _, shard, _, worker, *_ in parts if is_worker(worker)}
        new = sorted(working.keys() - killed)
        if len(working) > 1 and new and time.monotonic() > last + 4:
            with suppress(ProcessLookupError):
                os.kill(working[new[-1]], signal.SIGKILL)
                killed.add(new[-1])
            last = time.monotonic()
        time.sleep(0.5)
    return killed, peak


def is_worker(process: str) -> bool:
    """And not one that was killed, or another that has its number now."""
    with suppress(OSError):
        return b"ray::" in Path(f"/proc/{process}/cmdline").read_bytes()
    return False


# --- what goes wrong, without Ray ---


def test_a_shard_whose_workers_are_killed_again_and_again_is_named(tmp_path):
    (tmp_path / MANIFESTS).mkdir()
    for number in range(4):
        (tmp_path / MANIFESTS / f".00007.attempt-{number}.part").touch()
    row = on_ray._Worker(COLOUR, tmp_path, 1, on_ray._Origin.of(COLOUR))({"item": "/in/00007.tar"})
    with pytest.raises(RuntimeError, match=r"4 workers were killed at /in/00007.tar, perhaps for want of memory: use"):
        raise pickle.loads(row["error"])


def test_a_shard_that_is_not_there_in_the_end_is_named(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(
        run_function.__globals__, "make", lambda shard, *rest: None
    )  # as if into another machine's disk
    message = (
        r"3 shards \(00000.tar, 00001.tar, 00002.tar\) are not in .* though workers did them: see that all machines"
    )
    with pytest.raises(RuntimeError, match=message):
        run(COLOUR, shards, tmp_path)


def test_where_no_cluster_answers_that_is_said_at_once(shards, tmp_path):
    for address in ("127.0.0.1:1", "nowhere.invalid:6379", "ray://127.0.0.1:1"):
        with pytest.raises(ConnectionError, match=rf"no Ray cluster answers at {address} .*start one with `ray start"):
            on_ray._check_address(address)


class RayError(Exception):
    pass


class AuthenticationError(RayError):
    pass


@pytest.mark.parametrize(
    "error", [ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379"), AuthenticationError("no token")]
)
def test_a_cluster_that_asks_for_a_token_is_told_how_to_get_in(error):
    ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=RayError, AuthenticationError=AuthenticationError))
    message = r"at 10.0.0.1:6379 lets nobody in \((Failed|no).*: if it asks for a token, set RAY_AUTH_MODE=token"
    with pytest.raises(ConnectionError, match=message), on_ray._let_in(ray, "10.0.0.1:6379"):
        raise error
    with pytest.raises(RuntimeError, match="Version mismatch"), on_ray._let_in(ray, "10.0.0.1:6379"):
        raise RuntimeError("Version mismatch")


def test_names_stand_for_the_same_files_where_the_workers_are(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for place, words in ((here, "a cat"), (there, "an elephant")):
        place.mkdir()
        (place / "words.txt").write_text(words)
    monkeypatch.chdir(here)
    work = AnnotateClassification("colour", "words:words.txt@tiny")
    origin = pickle.loads(pickle.dumps(on_ray._Origin.of(work)))
    assert origin.needed == (Path("words.txt"),)
    monkeypatch.chdir(there)
    origin.enter(work)
    assert Path.cwd() == here and Path("words.txt").read_text() == "a cat"
    (here / "words.txt").write_text("a dog")  # as on another machine's disk
    with pytest.raises(ValueError, match=r"another captioner than where the run was started \(.*here.words.txt on"):
        origin.enter(work)
    (here / "words.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no .*here.words.txt: see that all machines have it under this"):
        origin.enter(work)


def test_without_the_folder_names_are_not_looked_up_in_another(tmp_path, monkeypatch):
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    origin = on_ray._Origin.of(COLOUR)
    monkeypatch.chdir(tmp_path)
    gone.rmdir()
    origin.enter(COLOUR)
    assert Path.cwd() == Path(os.sep).resolve()


def test_gpus_that_are_not_there_are_an_error_here_and_a_warning_where_they_may_come():
    ray = SimpleNamespace(cluster_resources=lambda: {"CPU": 4.0, "GPU": 1.0})
    on_ray._check_gpus(ray, Cluster(gpus=1), may_grow=False)
    with pytest.raises(ValueError, match="each worker is to have 2 GPUs, and Ray has 1: leave --gpus out"):
        on_ray._check_gpus(ray, Cluster(gpus=2), may_grow=False)
    with pytest.warns(UserWarning, match="and Ray has 1: nothing is done until the cluster has them"):
        on_ray._check_gpus(ray, Cluster(gpus=2), may_grow=True)


def test_the_commands_options_of_ray(shards, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("alpha_clip.pipeline.__main__.run", lambda *arguments: seen.append(arguments) or Ledger())
    command = ["embed", "--input", str(shards[0]), "--output", str(tmp_path), "--workers", "3"]
    for options in ([], ["--ray"], ["--address", "auto", "--gpus", "0.5"]):
        main([*command, *options])
    assert [(workers, cluster) for *_, workers, cluster in seen] == [
        (3, None),
        (3, Cluster("local")),
        (3, Cluster("auto", 0.5)),
    ]


def test_without_ray_the_error_says_what_to_install(monkeypatch, shards, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'Ray is not installed: pip install "alpha-clip\[pipeline\]"'):
        run(COLOUR, shards, tmp_path, cluster=Cluster())
