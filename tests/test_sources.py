"""Where files are found: this disk, a mirror, the Hub, Google Drive; and what is left when that goes wrong.

The Hub's real client runs in processes of its own, against a server on this machine.
"""

from __future__ import annotations

import fcntl
import json
import logging
import logging.handlers
import multiprocessing
import os
import pickle
import pty
import queue
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from hub import COMMIT, Hub
from privileges import drop_privileges
from safetensors.torch import load_file, save_file
from shelf import Shelf, assert_equal, sha256
from torch import Tensor

import alpha_clip
from alpha_clip import catalogue, sources, weights
from alpha_clip.errors import AlphaWeightsNotFound, HashMismatch, WeightsError

LICENCE = "The Alpha-CLIP authors' weights are for research use only (CC BY-NC 4.0)."


@pytest.fixture
def shelf(monkeypatch, tmp_path) -> Shelf:
    """In this process: the catalogue is a shelf's, the caches are empty, and nothing needs the network."""
    for module, names in (
        (catalogue, ("BASES", "ALPHA")),
        (sources, ("OPENAI_CACHE", "OUR_CACHE", "DRIVE", "TIMEOUT")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.delenv("ALPHA_CLIP_REPO", raising=False)
    shelf = Shelf()
    shelf.install(tmp_path)
    for folder in ("clip", "alpha_clip"):
        (tmp_path / folder).mkdir()
    return shelf


def both(shelf: Shelf, root: Path | None) -> dict[str, Tensor]:
    return weights.assemble(shelf.name, "auto", None if root is None else str(root)).tensors


# --- files already on the disk ---


@pytest.mark.parametrize("spelling", Shelf.names)
def test_known_files_in_download_root_are_found_under_any_spelling(shelf, tmp_path, spelling):
    (tmp_path / "base.pt").write_bytes(shelf.base_file)
    (tmp_path / spelling).write_bytes(shelf.alpha_file)
    assert_equal(both(shelf, tmp_path), shelf.expected())


@pytest.mark.parametrize("cache", ["clip", "alpha_clip"])
def test_known_files_in_the_caches_are_found(shelf, tmp_path, cache):
    (tmp_path / cache / "base.pt").write_bytes(shelf.base_file)
    (tmp_path / cache / Shelf.names[0]).write_bytes(shelf.alpha_file)
    assert_equal(both(shelf, None), shelf.expected())


def test_openais_own_archive_in_its_cache_serves_as_the_base(shelf, tmp_path):
    archive = checkpoints.torchscript(checkpoints.plain_clip(), tmp_path / "clip" / "ViT-L-14-336px.pt")
    catalogue.BASES[shelf.name] = replace(shelf.base, original=(archive.name, sha256(archive.read_bytes())))
    (tmp_path / Shelf.names[0]).write_bytes(shelf.alpha_file)
    assert_equal(both(shelf, tmp_path), shelf.expected())


def test_wrong_bytes_are_left_alone_and_skipped_with_a_log(shelf, tmp_path, caplog):
    (tmp_path / "base.pt").write_bytes(shelf.base_file)
    (tmp_path / Shelf.names[0]).write_bytes(b"wrong")
    (tmp_path / Shelf.names[-1]).write_bytes(shelf.alpha_file)
    with caplog.at_level(logging.WARNING, "alpha_clip"):
        assert_equal(both(shelf, tmp_path), shelf.expected())
    assert (tmp_path / Shelf.names[0]).read_bytes() == b"wrong"
    assert f"{Shelf.names[0]} does not have the SHA-256 {shelf.alpha.sha256}" in caplog.text


def test_a_file_is_hashed_once(shelf, tmp_path, monkeypatch):
    hashed: list[Path] = []
    (tmp_path / "base.pt").write_bytes(shelf.base_file)
    (tmp_path / Shelf.names[0]).write_bytes(shelf.alpha_file)
    original = alpha_clip.hashes.sha256
    monkeypatch.setattr(alpha_clip.hashes, "sha256", lambda path: hashed.append(path) or original(path))
    for _ in range(2):
        both(shelf, tmp_path)
    assert sorted(path.name for path in hashed) == sorted(["base.pt", Shelf.names[0]])


def test_a_file_that_changed_since_it_was_hashed_is_noticed(shelf, tmp_path):
    (tmp_path / "base.pt").write_bytes(shelf.base_file)
    (tmp_path / Shelf.names[0]).write_bytes(shelf.alpha_file)
    both(shelf, tmp_path)
    (tmp_path / Shelf.names[0]).write_bytes(shelf.alpha_file[:-1] + b"!")
    with pytest.raises(WeightsError, match=r"(?s)could not be found or downloaded.*on this disk: not there"):
        both(shelf, tmp_path)


def test_a_file_of_unknown_hash_is_not_taken_from_a_folder(shelf, tmp_path):
    catalogue.BASES[shelf.name] = replace(shelf.base, sha256=None)
    (tmp_path / "base.pt").write_bytes(shelf.base_file)
    with pytest.raises(WeightsError, match=r"base\.pt could not be found or downloaded\. Try again; or pass the path"):
        weights.assemble(shelf.name, None, str(tmp_path))


def test_a_local_mirror_is_searched_in_all_its_folders(shelf, tmp_path, monkeypatch):
    mirror = tmp_path / "mirror" / "alpha" / "l14"
    mirror.mkdir(parents=True)
    (tmp_path / "mirror" / "base.pt").write_bytes(shelf.base_file)
    (mirror / Shelf.names[1]).write_bytes(shelf.alpha_file)
    monkeypatch.setenv("ALPHA_CLIP_REPO", str(tmp_path / "mirror"))
    assert_equal(both(shelf, None), shelf.expected())


def not_found(shelf: Shelf, reason: str = "") -> str:
    return (
        rf"(?s){re.escape(shelf.alpha.file)} \(SHA-256 {shelf.alpha.sha256}\) could not be found or downloaded\. Get "
        r".* from https://github\.com/SunzeY/AlphaCLIP \(.* https://drive\.google\.com/file/d/[\w-]+/view\) "
        r"and put it into download_root, name a repository .* in ALPHA_CLIP_REPO, "
        rf"or pass its path as alpha_vision_ckpt_pth=; pass None for plain CLIP, which ignores masks\. Tried:.*{reason}"
    )


def test_missing_alpha_weights_are_noticed_before_the_base_is_fetched(shelf):
    """The base cannot be had here either, but is not asked for."""
    shelf.publish(drive="id")
    catalogue.ALPHA[shelf.name] = {shelf.tag: shelf.alpha}
    sources.DRIVE = "http://127.0.0.1:9/"  # nothing listens there
    with pytest.raises(AlphaWeightsNotFound, match=not_found(shelf, "on the authors' Google Drive: .*refused")):
        both(shelf, None)
    with pytest.raises(WeightsError, match="alpha weights 'no_such_tag' are neither a file nor a tag"):
        weights.assemble(shelf.name, "no_such_tag", None)


def test_the_time_limit_for_google_drive_ends_with_it(shelf, tmp_path):
    shelf.publish(drive="id")
    sources.DRIVE = "http://127.0.0.1:9/"
    with pytest.raises(AlphaWeightsNotFound, match="Google Drive"):
        sources.locate(shelf.alpha, str(tmp_path))
    assert socket.getdefaulttimeout() is None


# --- the network: functions that run in a client's process ---


def load_there(shelf: Shelf, root: Path) -> dict[str, np.ndarray]:
    """Everything by name."""
    shelf.install(root / "home")
    model, _ = alpha_clip.load(shelf.name, "cpu", download_root=str(root))
    return {k: v.numpy() for k, v in model.state_dict().items()}


def log_there(shelf: Shelf, root: Path, level: int) -> list[str]:
    """What a load logs from `level` on."""
    handler = logging.handlers.QueueHandler(queue.SimpleQueue())
    logger = logging.getLogger("alpha_clip")
    logger.addHandler(handler)
    logger.setLevel(level)
    load_there(shelf, root)
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)
    return [handler.queue.get().getMessage() for _ in range(handler.queue.qsize())]


def load_without_privileges(shelf: Shelf, root: Path) -> dict[str, np.ndarray]:
    drop_privileges()
    return load_there(shelf, root)


def load_with_a_full_disk(shelf: Shelf, root: Path) -> dict[str, np.ndarray]:
    """Files end after 20 kB, as on a disk that is full then."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    return load_there(shelf, root)


def load_into(shelf: Shelf, root: Path) -> None:
    """Not with the other caches below `root`."""
    shelf.install(root.parent / "home")
    alpha_clip.load(shelf.name, "cpu", download_root=root)


def load_in_threads_there(shelf: Shelf, root: Path, threads: int) -> list[dict[str, np.ndarray]]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda _: load_there(shelf, root), range(threads)))


def load_repository_there(name: str, root: Path) -> dict[str, np.ndarray]:
    model, _ = alpha_clip.load(name, "cpu", download_root=str(root))
    return {k: v.numpy() for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def environment(server, tmp_path_factory) -> dict[str, str]:
    """What the client of this server needs; everything else of its environment is ours."""
    return {
        "NO_PROXY": "127.0.0.1",
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
    }


@contextmanager
def in_new_process(
    shelf: Shelf, root: Path, environment: dict[str, str], stderr: int = subprocess.PIPE
) -> Iterator[subprocess.Popen[bytes]]:
    """`load_there` in a process that ends with it."""
    (root / "arguments").write_bytes(pickle.dumps((shelf, root)))
    code = (  # where the tests run in the background, Ctrl-C is ignored, and so it would be there
        "import pickle, signal, sys; from test_sources import load_there; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); load_there(*pickle.load(open(sys.argv[1], 'rb')))"
    )
    command = [sys.executable, "-c", code, str(root / "arguments")]
    env = os.environ | environment | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=stderr) as run:
        try:
            yield run
        finally:
            run.kill()


@contextmanager
def process(environment: dict[str, str], **more: str) -> Iterator[ProcessPoolExecutor]:
    """A process that has not imported the Hub's client yet, which reads this environment when it is imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torchvision.transforms.v2", "pytest"])  # which takes longest
    with ProcessPoolExecutor(1, context, become, (environment | more,)) as pool:
        assert not pool.submit(imported, "huggingface_hub").result()
        yield pool


def become(environment: dict[str, str]) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE", "HF_TOKEN", "ALPHA_CLIP_REPO"):
        os.environ.pop(name, None)
        os.environ.pop(name.lower(), None)
    os.environ.update(environment)


def imported(module: str) -> bool:
    return module in sys.modules


@pytest.fixture(scope="module")
def client(environment) -> Iterator[ProcessPoolExecutor]:
    with process(environment) as pool:
        yield pool


@pytest.fixture
def hub(server) -> Hub:
    server.clear()
    return server


@pytest.fixture
def published(hub) -> Shelf:
    """A shelf whose two files are on the Hub, and whose alpha file the server's Google Drive does not have."""
    shelf = Shelf()
    shelf.base = replace(shelf.base, repo="our/base", revision=COMMIT)
    shelf.publish(repo="our/alpha", revision=COMMIT, drive="drive-id")
    shelf.drive_url = hub.drive_url
    hub.files["model", "our/base"] = {"README.md": b"", "base.pt": shelf.base_file}
    hub.files["model", "our/alpha"] = {"README.md": b"", shelf.alpha.file: shelf.alpha_file}
    return shelf


Load = Callable[..., dict[str, Tensor]]


@pytest.fixture
def load(client, tmp_path) -> Load:
    """Loads in the client's process, or in that of `pool`, with its caches in this test's folder."""

    def load(
        shelf: Shelf, pool: ProcessPoolExecutor = client, how: Callable[..., Any] = load_there
    ) -> dict[str, Tensor]:
        arrays = pool.submit(how, shelf, tmp_path).result()
        return {k: torch.from_numpy(v) for k, v in arrays.items()}

    return load


def leftovers(folder: Path, whole: tuple[int, ...] = ()) -> set[str]:
    """Files of weights below `folder`, under whatever name, but for those of the sizes in `whole`."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > 10_000)
    return {str(path) for path in files if path.stat().st_size not in whole}


# --- the Hub ---


def test_the_first_load_fetches_both_files_and_the_second_needs_no_server(published, load, hub):
    assert_equal(load(published), published.expected())
    hub.requests.clear()
    assert_equal(load(published), published.expected())
    assert hub.requests == []
    hub.stop()
    assert_equal(load(published), published.expected())


def test_a_cached_file_loads_offline_and_one_that_is_not_says_so(published, load, environment):
    with process(environment, HF_HUB_OFFLINE="1") as offline:
        with pytest.raises(AlphaWeightsNotFound, match=not_found(published, "HF_HUB_OFFLINE is set")):
            load(published, offline)
        load(published)
        assert_equal(load(published, offline), published.expected())


def test_the_licence_is_named_when_the_authors_weights_are_fetched_and_not_again(published, client, tmp_path):
    first, second = (client.submit(log_there, published, tmp_path, logging.WARNING).result() for _ in range(2))
    assert first == [LICENCE]
    assert second == []


def test_every_source_is_a_line_of_log(published, hub, client, tmp_path):
    hub.files["model", "our/alpha"].clear()
    hub.drive["drive-id"] = published.alpha_file
    lines = client.submit(log_there, published, tmp_path, logging.INFO).result()
    file = re.escape(published.alpha.file)
    expected = [
        rf"{file}: not found on this disk: not there",
        rf"{file}: not found in our/alpha on the Hugging Face Hub: not there",
        LICENCE.replace("(", r"\(").replace(")", r"\)"),
        rf"{file}: found on the authors' Google Drive as .*{file}",
        r"base\.pt: not found on this disk: not there",
        r"base\.pt: found in our/base on the Hugging Face Hub as .*base\.pt",
    ]
    assert len(lines) == len(expected)
    assert [line for line, wanted in zip(lines, expected, strict=True) if not re.fullmatch(wanted, line)] == []


@pytest.mark.parametrize("revision", [COMMIT, None])
def test_a_copy_may_lie_in_a_folder_of_a_space_under_another_name(published, load, hub, revision):
    published.publish(repo="our/space", repo_type="space", revision=revision)
    hub.files["space", "our/space"] = {"app.py": b"", f"checkpoints/{Shelf.names[-1]}": published.alpha_file}
    assert_equal(load(published), published.expected())
    hub.stop()
    assert_equal(load(published), published.expected())


def test_a_mirror_on_the_hub_comes_before_the_pinned_copy(published, load, hub, environment):
    hub.files["model", "my/mirror"] = {Shelf.names[-1]: published.alpha_file}
    with process(environment, ALPHA_CLIP_REPO="my/mirror") as pool:
        assert_equal(load(published, pool), published.expected())
    assert not any("our/alpha" in request for request in hub.requests)


def test_a_mirror_without_the_file_is_passed_over(published, load, hub, environment):
    hub.files["model", "my/mirror"] = {"README.md": b""}
    with process(environment, ALPHA_CLIP_REPO="my/mirror") as pool:
        assert_equal(load(published, pool), published.expected())


def test_wrong_bytes_name_both_hashes_and_are_fetched_again(published, load, hub, tmp_path):
    files = hub.files["model", "our/alpha"]
    files[published.alpha.file] = wrong = published.alpha_file[:-1] + b"!"
    message = rf"fetched with SHA-256 {sha256(wrong)}, expected {published.alpha.sha256}.* deleted; load again"
    with pytest.raises(HashMismatch, match=message):
        load(published)
    assert leftovers(tmp_path) == set()
    files[published.alpha.file] = published.alpha_file
    assert_equal(load(published), published.expected())


def test_wrong_bytes_at_one_source_do_not_keep_the_next_from_being_asked(published, load, hub):
    hub.files["model", "our/alpha"][published.alpha.file] = b"wrong"
    hub.drive["drive-id"] = published.alpha_file
    assert_equal(load(published), published.expected())


def test_a_file_of_the_users_own_is_not_replaced(on_drive, load, tmp_path):
    (tmp_path / on_drive.alpha.file).write_bytes(b"my own")
    with pytest.raises(AlphaWeightsNotFound, match="is another file, and would be replaced: move it away"):
        load(on_drive)
    assert (tmp_path / on_drive.alpha.file).read_bytes() == b"my own"


@pytest.mark.parametrize("mirror", ["/no/such/folder", "my", "a/b/c"])
def test_a_mirror_that_cannot_be_one_is_an_error(published, load, environment, mirror):
    with process(environment, ALPHA_CLIP_REPO=mirror) as pool, pytest.raises(WeightsError, match="correct or unset it"):
        load(published, pool)


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:a/b/c", "hf-hub:foo bar"])
def test_a_malformed_repository_is_an_error(name):
    with pytest.raises(WeightsError, match=r"names no repository on the Hub .*: expected user/repo"):
        alpha_clip.load(name, "cpu")


def test_a_base_of_wrong_bytes_is_a_mismatch_too(published, load, hub):
    hub.files["model", "our/base"]["base.pt"] = b"wrong"
    message = rf"base\.pt was fetched with SHA-256 {sha256(b'wrong')}, expected {published.base.sha256}"
    with pytest.raises(HashMismatch, match=message):
        load(published)


def test_where_no_hash_is_known_the_hubs_own_is_checked(published, load, hub):
    published.base = replace(published.base, sha256=None)
    hub.etags["base.pt"] = sha256(b"what the Hub says it has")
    with pytest.raises(HashMismatch, match=rf"expected {hub.etags['base.pt']}"):
        load(published)
    hub.etags["base.pt"] = sha256(published.base_file)
    assert_equal(load(published), published.expected())


def test_a_deleted_file_is_fetched_again(published, load, tmp_path):
    load(published)
    for path in tmp_path.rglob("*.pth"):
        path.resolve().unlink()
    assert_equal(load(published), published.expected())


def test_a_file_cut_short_in_the_cache_is_noticed(published, load, tmp_path):
    load(published)
    (path,) = tmp_path.rglob("*.pth")
    path.resolve().write_bytes(published.alpha_file[:-1000])
    with pytest.raises(HashMismatch, match="deleted; load again"):
        load(published)
    assert_equal(load(published), published.expected())


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (401, "GatedRepo", "Ask for access on the repository's page, then log in: `hf auth login`, or HF_TOKEN"),
        (403, "GatedRepo", "Ask for access on the repository's page, then log in"),
        (401, "RepoNotFound", "If it is private, log in"),
        (403, "", "403"),
        (404, "RepoNotFound", "our/alpha"),
        (404, "EntryNotFound", "not there"),
        (400, "", "Bad request"),
    ],
)
def test_what_the_hub_refuses_is_named_and_the_next_source_asked(published, load, hub, status, code, reason):
    for name in Shelf.names:
        hub.refused[name] = (status, code)
    if code == "EntryNotFound":
        hub.files["model", "our/alpha"].clear()
    with pytest.raises(
        AlphaWeightsNotFound, match=not_found(published, f"our/alpha on the Hugging Face Hub: .*{reason}")
    ):
        load(published)
    hub.drive["drive-id"] = published.alpha_file
    assert_equal(load(published), published.expected())


def test_a_repository_that_is_gone(published, load, hub):
    del hub.files["model", "our/alpha"]
    with pytest.raises(AlphaWeightsNotFound, match=not_found(published, "our/alpha")):
        load(published)


def test_a_base_that_is_gone(published, load, hub):
    del hub.files["model", "our/base"]
    address = rf"https://huggingface\.co/our/base/resolve/{COMMIT}/base\.pt"
    message = rf"(?s)could not be found or .* Try again; or get {address}, .* put it into .*our/base on the Hugging"
    with pytest.raises(WeightsError, match=message):
        load(published)


def test_no_server_and_nothing_cached(published, load, hub):
    hub.stop()
    with pytest.raises(AlphaWeightsNotFound, match=not_found(published)):
        load(published)
    hub.start()
    assert_equal(load(published), published.expected())


def test_a_connection_that_breaks_leaves_nothing_to_be_taken_for_the_file(published, load, hub):
    hub.cut_short.add(published.alpha.file)
    with pytest.raises(AlphaWeightsNotFound, match=not_found(published)):
        load(published)
    hub.cut_short.clear()
    assert_equal(load(published), published.expected())


SLOW = r"our/alpha on the Hugging Face Hub: its server did not answer in time \(.*HF_HUB_ETAG_TIMEOUT"


def hang_at_the_file(hub: Hub) -> None:
    hub.hanging.update(Shelf.names)


def hang_in_the_listing(hub: Hub) -> None:
    hub.files["model", "our/alpha"].clear()
    hub.hanging.add("our/alpha")


def stall_in_the_middle(hub: Hub) -> None:
    hub.stalling.update(Shelf.names)


@pytest.mark.parametrize(
    ("hang", "times"),
    [(hang_at_the_file, 1), (hang_in_the_listing, 1), pytest.param(stall_in_the_middle, 6, marks=pytest.mark.slow)],
)
def test_a_hub_that_hangs_is_given_up(published, load, hub, hang, times):
    """Once bytes have come, the client asks six times for the rest."""
    files = dict(hub.files["model", "our/alpha"])
    hang(hub)
    with pytest.raises(AlphaWeightsNotFound, match=not_found(published, SLOW)):
        load(published)
    assert sum(request.startswith("hanging") for request in hub.requests) == times
    hub.hanging.clear()
    hub.stalling.clear()
    hub.files["model", "our/alpha"] = files
    assert_equal(load(published), published.expected())


@pytest.mark.parametrize("hang", [hang_at_the_file, hang_in_the_listing])
def test_the_source_after_a_hanging_hub_is_used(published, load, hub, hang):
    hang(hub)
    hub.drive["drive-id"] = published.alpha_file
    assert_equal(load(published), published.expected())


def test_cached_files_do_not_wait_for_a_hanging_hub(published, load, hub):
    load(published)
    hub.hanging |= {*Shelf.names, "base.pt", "our/alpha", "our/base"}
    hub.requests.clear()
    assert_equal(load(published), published.expected())
    assert hub.requests == []


def test_two_processes_at_once(published, client, environment, tmp_path):
    with process(environment) as other:
        loads = [pool.submit(load_there, published, tmp_path) for pool in (client, other)]
        for result in loads:
            assert_equal({k: torch.from_numpy(v) for k, v in result.result().items()}, published.expected())
    assert leftovers(tmp_path, (len(published.base_file), len(published.alpha_file))) == set()


def test_a_cache_that_cannot_be_written_to(published, load, environment, tmp_path):
    with process(environment) as pool:
        tmp_path.chmod(0o555)
        with pytest.raises(
            AlphaWeightsNotFound,
            match=not_found(published, "pass a download_root= that is a folder and can be written"),
        ):
            load(published, pool, load_without_privileges)
        tmp_path.chmod(0o755)
        load(published)
        for folder in (tmp_path, *tmp_path.rglob("*")):
            folder.chmod(0o555)
        assert_equal(load(published, pool), published.expected())
        for folder in (tmp_path, *tmp_path.rglob("*")):
            folder.chmod(0o755)


def test_a_download_root_that_is_a_file(published, client, load, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AlphaWeightsNotFound, match=not_found(published, "pass a download_root= that is a folder")):
        client.submit(load_into, published, tmp_path / "file").result()
    assert_equal(load(published), published.expected())


def test_two_threads_at_once(published, hub, client, tmp_path):
    hub.files["model", "our/alpha"].clear()
    hub.drive["drive-id"] = published.alpha_file
    for arrays in client.submit(load_in_threads_there, published, tmp_path, 4).result():
        assert_equal({k: torch.from_numpy(v) for k, v in arrays.items()}, published.expected())
    assert not any(path.name.endswith(".part") for path in tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("source", ["hub", "drive"])
def test_an_interrupted_download_leaves_nothing_to_be_taken_for_the_file(
    published, load, hub, environment, tmp_path, source
):
    if source == "drive":
        hub.files["model", "our/alpha"].clear()
        hub.drive["drive-id"] = published.alpha_file
    hub.stalling = {"drive-id", published.alpha.file}
    with in_new_process(published, tmp_path, environment | {"HF_HUB_DOWNLOAD_TIMEOUT": "60"}) as run:
        while not any(request.startswith("hanging") for request in hub.requests):
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in run.communicate(timeout=300)[1].decode()
    assert not any("pth" in path.name for path in tmp_path.iterdir())
    hub.stalling.clear()
    assert_equal(load(published), published.expected())


def test_a_full_disk(published, load, environment, hub, tmp_path):
    with (
        process(environment) as pool,
        pytest.raises(
            AlphaWeightsNotFound,
            match=not_found(published, "File too large.*free some space, or pass a download_root="),
        ),
    ):
        load(published, pool, load_with_a_full_disk)
    hub.drive["drive-id"] = published.alpha_file
    with process(environment) as pool, pytest.raises(WeightsError, match="File too large"):
        load(published, pool, load_with_a_full_disk)
    assert_equal(load(published), published.expected())
    assert leftovers(tmp_path, (len(published.base_file), len(published.alpha_file))) == set()


@pytest.mark.slow
def test_without_a_terminal_no_progress_is_shown(published, environment, tmp_path):
    with in_new_process(published, tmp_path, environment) as run:
        out, err = run.communicate(timeout=300)
    assert (run.returncode, out.decode(), err.decode().strip()) == (0, "", LICENCE)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["hub", "drive"])
@pytest.mark.parametrize("disabled", [False, True])
def test_a_terminal_shows_progress_unless_told_not_to(published, hub, environment, tmp_path, source, disabled):
    if source == "drive":
        hub.files["model", "our/alpha"].clear()
        hub.drive["drive-id"] = published.alpha_file
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # on none at all, a bar has no room
    more = {"HF_HUB_DISABLE_PROGRESS_BARS": "1"} if disabled else {}
    with in_new_process(published, tmp_path, environment | more, stderr=theirs) as run:
        assert run.wait() == 0
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert LICENCE in shown
    assert ("100%" in shown) is not disabled


# --- Google Drive ---


@pytest.fixture
def on_drive(published, hub) -> Shelf:
    """The alpha file is on Google Drive alone."""
    published.publish(repo=None)
    hub.drive["drive-id"] = published.alpha_file
    return published


def test_google_drive_is_asked_last_and_once(on_drive, load, hub, tmp_path):
    assert_equal(load(on_drive), on_drive.expected())
    assert (tmp_path / on_drive.alpha.file).read_bytes() == on_drive.alpha_file
    hub.stop()
    assert_equal(load(on_drive), on_drive.expected())


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><title>Quota exceeded</title>", b"\n <html>"])
def test_a_web_page_instead_of_the_file(on_drive, load, hub, tmp_path, page):
    hub.drive["drive-id"] = page
    with pytest.raises(AlphaWeightsNotFound, match=not_found(on_drive, "Drive: a web page came instead of the file")):
        load(on_drive)
    assert not any("pth" in path.name for path in tmp_path.iterdir())
    hub.drive["drive-id"] = on_drive.alpha_file
    assert_equal(load(on_drive), on_drive.expected())


@pytest.mark.parametrize("cut", [True, False])
def test_wrong_bytes_or_a_cut_download_from_google_drive(on_drive, load, hub, tmp_path, cut):
    if cut:
        hub.cut_short.add("drive-id")
    else:
        hub.drive["drive-id"] = b"wrong"
    with pytest.raises(HashMismatch, match=rf"expected {on_drive.alpha.sha256}: its download was cut short, or"):
        load(on_drive)
    assert not any("pth" in path.name for path in tmp_path.iterdir())
    hub.cut_short.clear()
    hub.drive["drive-id"] = on_drive.alpha_file
    assert_equal(load(on_drive), on_drive.expected())


def test_google_drive_that_hangs(on_drive, load, hub):
    hub.hanging.add("drive-id")
    with pytest.raises(AlphaWeightsNotFound, match=not_found(on_drive, "Drive: .*timed out")):
        load(on_drive)


def test_google_drive_is_not_asked_offline(on_drive, load, hub, environment):
    with (
        process(environment, HF_HUB_OFFLINE="1") as offline,
        pytest.raises(AlphaWeightsNotFound, match=not_found(on_drive, "Drive: not asked, as HF_HUB_OFFLINE is set")),
    ):
        load(on_drive, offline)
    assert hub.requests == []


# --- repositories of users ---


def load_repository(client: ProcessPoolExecutor, name: str, root: Path) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in client.submit(load_repository_there, name, root).result().items()}


def push_there(root: Path, repo: str) -> str:
    model, _ = alpha_clip.load(str(root / "model.safetensors"), "cpu")
    return alpha_clip.push_to_hub(model, repo, token="hf_xxx")


@pytest.fixture
def model_file(tmp_path) -> dict[str, Tensor]:
    """`tmp_path` holds this model."""
    alpha_clip.checkpoints.write(checkpoints.clip(), tmp_path / "model.safetensors")
    return checkpoints.clip()


def test_push_to_hub_and_load_from_there(model_file, hub, client, tmp_path):
    address = client.submit(push_there, tmp_path, "me/mine").result()
    assert address == f"{hub.url}/me/mine/commit/{COMMIT}"
    assert set(hub.files["model", "me/mine"]) == {"model.safetensors", "README.md"}
    assert b'alpha_clip.load("hf-hub:me/mine")' in hub.files["model", "me/mine"]["README.md"]
    assert_equal(load_repository(client, "hf-hub:me/mine", tmp_path / "cache"), model_file)
    hub.stop()
    assert_equal(load_repository(client, "hf-hub:me/mine", tmp_path / "cache"), model_file)


def push_unconfirmed_there(root: Path, repo: str) -> str:
    with pytest.warns(UserWarning, match="nothing confirms"):
        model, _ = alpha_clip.load(str(root / "model.pt"), "cpu")
    return alpha_clip.push_to_hub(model, repo, token="hf_xxx")


def test_what_nothing_confirms_is_not_confirmed_by_a_push(hub, client, tmp_path):
    torch.save(checkpoints.clip(), tmp_path / "model.pt")
    client.submit(push_unconfirmed_there, tmp_path, "me/mine").result()
    (tmp_path / "pushed.safetensors").write_bytes(hub.files["model", "me/mine"]["model.safetensors"])
    assert alpha_clip.checkpoints.read(tmp_path / "pushed.safetensors").confirmed is None


def test_push_to_hub_leaves_the_card_that_is_there(model_file, hub, client, tmp_path):
    hub.files["model", "me/mine"] = {"README.md": b"my own words"}
    client.submit(push_there, tmp_path, "me/mine").result()
    assert hub.files["model", "me/mine"]["README.md"] == b"my own words"
    assert "model.safetensors" in hub.files["model", "me/mine"]


def test_a_repository_at_a_revision_with_a_configuration(hub, client, tmp_path):
    folder = checkpoints.transformers_folder(tmp_path / "theirs")
    hub.files["model", "some/clip"] = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.warns(UserWarning, match="alpha weights of zero"):
        expected, _ = alpha_clip.load(str(folder), "cpu")
    assert_equal(load_repository(client, f"hf-hub:some/clip@{COMMIT}", tmp_path), expected.state_dict())
    assert any(f"/{COMMIT}" in request for request in hub.requests)


def open_clip_folder(folder: Path, name: str) -> None:
    state = checkpoints.plain_clip()
    folder.mkdir()
    save_file(state, folder / name) if name.endswith("safetensors") else torch.save(state, folder / name)
    towers = {"vision_cfg": {"head_width": 64}, "text_cfg": {"heads": 1}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True, **towers}}))


def pickled_transformers_folder(folder: Path) -> None:
    checkpoints.transformers_folder(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: open_clip_folder(folder, "open_clip_model.safetensors"),
        lambda folder: open_clip_folder(folder, "open_clip_pytorch_model.bin"),
        checkpoints.transformers_folder,
        pickled_transformers_folder,
    ],
    ids=["open_clip, safetensors", "open_clip, pickled", "transformers, safetensors", "transformers, pickled"],
)
def test_repositories_of_every_kind_load_and_are_confirmed_by_what_lies_beside(hub, client, tmp_path, make):
    make(tmp_path / "theirs")
    hub.files["model", "some/clip"] = {path.name: path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    loaded = load_repository(
        client, "hf-hub:some/clip", tmp_path / "cache"
    )  # a warning of doubt would be an error here
    expected = alpha_clip.checkpoints.read(tmp_path / "theirs").tensors
    loaded.pop("visual.conv1_alpha.weight")
    assert_equal(loaded, expected)


def test_a_repository_without_weights_or_that_is_gone(hub, client, tmp_path):
    hub.files["model", "some/data"] = {"README.md": b""}
    with pytest.raises(WeightsError, match=r"some/data could not be downloaded .*: it holds none of open_clip_model"):
        load_repository(client, "hf-hub:some/data", tmp_path)
    with pytest.raises(WeightsError, match=r"no/such could not be downloaded .*: .*private, log in"):
        load_repository(client, "hf-hub:no/such", tmp_path)


@pytest.mark.parametrize("what", ["some/clip", "model.safetensors"])
def test_a_repository_on_a_hub_that_hangs(model_file, hub, client, tmp_path, what):
    hub.files["model", "some/clip"] = {"model.safetensors": (tmp_path / "model.safetensors").read_bytes()}
    hub.hanging.add(what)
    with pytest.raises(WeightsError, match=r"some/clip could not be downloaded .*: its server did not answer in time"):
        load_repository(client, "hf-hub:some/clip", tmp_path / "cache")
    hub.hanging.clear()
    assert_equal(load_repository(client, "hf-hub:some/clip", tmp_path / "cache"), model_file)
    hub.hanging.add(what)
    assert_equal(load_repository(client, "hf-hub:some/clip", tmp_path / "cache"), model_file)
