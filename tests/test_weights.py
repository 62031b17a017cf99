"""Files and the Hub to one state dict: what is read, what is refused, and where files are found."""

from __future__ import annotations

import hashlib
import io
import logging.handlers
import multiprocessing
import os
import queue
import re
import string
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from hub import COMMIT, Hub
from safetensors.torch import save_file
from torch import Tensor

import alpha_clip
from alpha_clip import weights
from alpha_clip.weights import AlphaWeightsNotFound, HashMismatch, IncompatibleCheckpoint, Weights, WeightsError

ALPHA_KEY = "visual.conv1_alpha.weight"


def assert_equal(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[k], expected[k]) for k in expected)


@pytest.fixture
def base(tmp_path) -> str:
    """The path of a plain CLIP."""
    torch.save(checkpoints.plain_clip(), tmp_path / "base.pt")
    return str(tmp_path / "base.pt")


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


# --- the catalogue ---

# Copied from the research behind the project, which could not download the files: the code must check.
AUTHORS_FILES = {
    ("ViT-B/16", "grit1m"): (
        "clip_b16_grit1m_fultune_8xe.pth",
        "9f6ffac9044f641b09975f9c782a34a02a2b52ffd8de4a3d3394404b38794c16",
    ),
    ("ViT-B/16", "grit20m"): (
        "clip_b16_grit20m_fultune_2xe.pth",
        "6ff9e3c5735aa34bcbd386ba4d1b99e5efc5deffab077d3d2f2911d1f1c43a57",
    ),
    ("ViT-B/16", "grit1m+mim"): (
        "clip_b16_grit+mim_fultune_4xe.pth",
        "a00f7bfd80944dacbb77e238eb2c0f055ec3274201023b2e781d9f0d180d9630",
    ),
    ("ViT-L/14", "grit1m"): (
        "clip_l14_grit1m_fultune_8xe.pth",
        "05254743d5fc12e24f947fb92ba3737e3bc86a9c190dc6608fc9926a0eb64b91",
    ),
    ("ViT-L/14", "grit20m"): (
        "clip_l14_grit20m_fultune_2xe.pth",
        "42c621bb5bac89a511ab625a878f026c11de4de8cf7abf52db5dfd11862bdb8e",
    ),
    ("ViT-L/14", "grit1m+mim"): (
        "clip_l14_grit+mim_fultune_6xe.pth",
        "a5f3f2e24459e9764d9f4b4c053fb354dc9d508bd8f647b952402d6860bc9c3d",
    ),
    ("ViT-L/14@336px", "grit1m"): (
        "clip_l14_336_grit1m_fultune_8xe.pth",
        "fa701cf18a3e19a1e5e81668885b15bf75337e59b0788405999e889b7aa775d0",
    ),
    ("ViT-L/14@336px", "grit20m"): (
        "clip_l14_336_grit_20m_4xe.pth",
        "b0e9c4d5d33bfa2724a0864f8e4b2b92f99aba3a4daf43084114c8caecfbadd9",
    ),
}
BASE_FILES = {
    "ViT-B/32": (
        "timm/vit_base_patch32_clip_224.openai",
        "a6f597a30f7b82c51704746581f9a4e41421e878",
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
    ),
    "ViT-B/16": (
        "timm/vit_base_patch16_clip_224.openai",
        "977e3dd0ec55ab8da155f2fbeb6b5f54948b6e3d",
        "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f",
    ),
    "ViT-L/14": (
        "timm/vit_large_patch14_clip_224.openai",
        "18d0535469bb561bf468d76c1d73aa35156c922b",
        "9ce2e8a8ebfff3793d7d375ad6d3c35cb9aebf3de7ace0fc7308accab7cd207e",
    ),
    "ViT-L/14@336px": (
        "timm/vit_large_patch14_clip_336.openai",
        "81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
        None,
    ),
}
HUB_COPIES = {
    ("ViT-L/14", "grit1m+mim"): ("space", "bedead/CLIPAway", None),
    ("ViT-L/14@336px", "grit1m"): ("model", "omeregev/click2mask-alphaclip-weights", None),
    ("ViT-L/14@336px", "grit20m"): (
        "model",
        "YaTharThShaRma999/PromptTest",
        "8fbe1684f2bcd0e2bf227f41a69e28f68f851fab",
    ),
}
SPELLINGS = {
    ("ViT-B/16", "grit1m+mim"): {"clip_b16_grit1m+mim_fultune_4xe.pth"},
    ("ViT-L/14", "grit1m+mim"): {"clip_l14_grit1m+mim_fultune_6xe.pth"},
    ("ViT-L/14@336px", "grit1m"): {"clip_l14@336_grit1m_fultune_8xe.pth"},
    ("ViT-L/14@336px", "grit20m"): {
        "clip_l14_336_grit20m_fultune_4xe.pth",
        "clip_l14@336_grit20m_fultune_4xe.pth",
        "clip_l14@336_grit_20m_4xe.pth",
    },
}


def authors_entries() -> dict[tuple[str, str], Weights]:
    tables = {name: table for name, table in weights.ALPHA.items() if name != weights.BUNDLED}
    return {(name, tag): entry for name, table in tables.items() for tag, entry in table.items()}


def test_the_authors_files_have_their_hashes():
    assert {k: (entry.file, entry.sha256) for k, entry in authors_entries().items()} == AUTHORS_FILES


def test_the_hub_copies_and_other_spellings_are_listed():
    entries = authors_entries()
    copies = {k: (e.repo_type, e.repo, e.revision) for k, e in entries.items() if e.repo}
    assert copies == HUB_COPIES
    assert {k: set(e.other_names) for k, e in entries.items() if e.other_names} == SPELLINGS


def test_the_bases_have_their_repositories_revisions_and_hashes():
    entries = {k: entry for k, entry in weights.BASES.items() if k != weights.BUNDLED}
    assert {k: (e.repo, e.revision, e.sha256) for k, e in entries.items()} == BASE_FILES


def test_hashes_are_sha256():
    entries = [*weights.BASES.values(), *authors_entries().values()]
    hashes = [e.sha256 for e in entries if e.sha256]
    assert len(set(hashes)) == len(hashes) == 11
    assert all(len(h) == 64 and set(h) <= set(string.hexdigits.lower()) for h in hashes)


def test_every_base_has_a_table_of_alpha_weights_best_first():
    """By the figures of the paper's model zoo on ImageNet-S."""
    assert {name: list(table) for name, table in weights.ALPHA.items()} == {
        "tiny": ["scenes"],
        "ViT-B/32": [],
        "ViT-B/16": ["grit1m+mim", "grit20m", "grit1m"],  # 69.40, 68.89, 68.31
        "ViT-L/14": ["grit1m+mim", "grit20m", "grit1m"],  # 77.80, 77.41, 77.22
        "ViT-L/14@336px": ["grit20m", "grit1m"],  # 79.61, 78.15
    }
    assert weights.ALPHA.keys() == weights.BASES.keys()


def test_the_bundled_files_are_there_in_half_precision():
    for entry in (weights.BASES["tiny"], weights.ALPHA["tiny"]["scenes"]):
        tensors = weights.read(weights.ASSETS / entry.file)
        assert {t.dtype for k, t in tensors.items() if k != "token_ids"} == {torch.float16}


def test_the_bundled_alpha_file_is_an_image_tower_as_the_authors_save_it():
    tower = weights.read(weights.ASSETS / weights.ALPHA["tiny"]["scenes"].file)
    assert "conv1_alpha.weight" in tower
    assert not any(k.startswith("visual.") for k in tower)


# --- one state dict ---


def test_the_authors_tower_replaces_the_bases(base, tmp_path):
    alpha = saved(checkpoints.authors_tower(), tmp_path / "alpha.pth")
    state = weights.state_dict(base, alpha, None)
    expected = {f"visual.{k}": v for k, v in checkpoints.image_tower().items()}
    assert_equal(state, checkpoints.plain_clip() | expected)


@pytest.mark.parametrize("make", [checkpoints.image_tower, lambda: checkpoints.clip(1)])
def test_alpha_weights_may_be_a_tower_in_our_names_or_a_whole_model(base, tmp_path, make):
    ours = weights.state_dict(base, saved(make(), tmp_path / "alpha.pth"), None)
    authors = weights.state_dict(base, saved(checkpoints.authors_tower(), tmp_path / "theirs.pth"), None)
    assert_equal(ours, authors)


def test_expand_vocabulary_gives_each_id_its_row_or_the_unknown_one():
    packed = checkpoints.packed_clip()
    rows, ids = packed["token_embedding.weight"], packed["token_ids"].tolist()
    full = weights.expand_vocabulary(packed)
    assert full["token_embedding.weight"].shape == (49408, rows.shape[1])
    for i, row in enumerate(full["token_embedding.weight"]):
        assert torch.equal(row, rows[1 + ids.index(i)] if i in ids else rows[0])


def test_expand_vocabulary_keeps_the_rest_and_its_argument():
    packed = checkpoints.packed_clip()
    full = weights.expand_vocabulary(packed)
    assert full.keys() == packed.keys() - {"token_ids"}
    assert all(full[k] is packed[k] for k in full if k != "token_embedding.weight")
    assert len(packed["token_embedding.weight"]) == 1 + len(packed["token_ids"])


# --- what is read ---


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {0: torch.zeros(1)}}},
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    ],
)
def test_wrappers_of_training_scripts_are_taken_off(tmp_path, wrap):
    state = checkpoints.clip()
    assert_equal(weights.read(saved(wrap(state), tmp_path / "model.pt")), state)


def test_safetensors(tmp_path):
    state = checkpoints.clip()
    save_file(state, tmp_path / "model.safetensors")
    assert_equal(weights.read(tmp_path / "model.safetensors"), state)


# --- what is refused ---


class Payload:
    """Makes a folder when it is unpickled by the book."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path):
    trap = tmp_path / "run"
    path = saved(checkpoints.clip() | {"x": Payload(trap)}, tmp_path / "model.pt")
    with pytest.raises(IncompatibleCheckpoint, match=r"model\.pt cannot be read without running code from it"):
        weights.read(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # it would have


def test_a_pickled_module_is_refused(tmp_path):
    path = saved(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(
        IncompatibleCheckpoint, match=r"running code from it.*torch\.save\(model\.state_dict\(\), path\)"
    ):
        weights.read(path)


@pytest.fixture
def torchscript(tmp_path) -> Path:
    path = tmp_path / "ViT-B-32.pt"
    module = torch.nn.Linear(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but OpenAI's files are made with it
        torch.jit.save(torch.jit.script(module), path)
    return path


def test_torchscript_is_refused_with_the_remedy(torchscript):
    remedy = re.escape("torch.save(torch.jit.load(path).state_dict(), new_path)")
    with pytest.raises(IncompatibleCheckpoint, match=rf"ViT-B-32\.pt is a TorchScript archive.*trust it: {remedy}"):
        weights.read(torchscript)


def test_the_remedy_for_torchscript_works(torchscript, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(torch.jit.load(torchscript).state_dict(), tmp_path / "new.pt")
    assert weights.read(tmp_path / "new.pt").keys() == {"weight", "bias"}


@pytest.mark.parametrize("content", [b"", b"hello world\n", b"<!DOCTYPE html>", b"0", b"\x80\x02"])
def test_files_that_are_no_checkpoint_are_refused(tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(IncompatibleCheckpoint, match=r"model\.pt cannot be read .*or is not whole.*or fetch it again"):
        weights.read(tmp_path / "model.pt")


def test_a_truncated_pickle_is_refused(tmp_path):
    path = saved(checkpoints.clip(), tmp_path / "model.pt")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(IncompatibleCheckpoint, match=r"is not whole \(RuntimeError\).*fetch it again"):
        weights.read(path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_or_empty_safetensors_file_is_refused(tmp_path, keep):
    path = tmp_path / "model.safetensors"
    save_file(checkpoints.clip(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        IncompatibleCheckpoint, match=r"model\.safetensors is not a whole safetensors file.*fetch it again"
    ):
        weights.read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, expected a state dict"),
        ([torch.zeros(3)], "holds a list, expected a state dict"),
        ({}, "holds no tensors: expected a state dict"),
        ({"epoch": 3}, "holds no tensors: expected a state dict"),
    ],
)
def test_pickles_of_something_else_are_refused(tmp_path, content, message):
    with pytest.raises(IncompatibleCheckpoint, match=message):
        weights.read(saved(content, tmp_path / "model.pt"))


def test_a_path_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"is not a file: give the path of a checkpoint, or a name of available_m"):
        weights.read(tmp_path)


@pytest.mark.parametrize("tower", [checkpoints.image_tower, checkpoints.authors_tower])
def test_an_image_tower_given_as_the_model_is_refused(tmp_path, tower):
    path = str(saved(tower(), tmp_path / "alpha.pth"))
    message = (
        r"alpha\.pth holds an image tower alone: load its base by name and pass this file as alpha_vision_ckpt_pth="
    )
    with pytest.raises(IncompatibleCheckpoint, match=message):
        weights.state_dict(path, "auto", None)


def test_a_state_dict_of_something_else_is_refused(tmp_path):
    path = str(saved({"fc.weight": torch.zeros(1)}, tmp_path / "resnet.pt"))
    with pytest.raises(IncompatibleCheckpoint, match=r"resnet\.pt does not hold a CLIP with a ViT image tower"):
        weights.state_dict(path, "auto", None)


def test_an_alpha_file_without_alpha_weights_is_refused(base, tmp_path):
    path = saved(checkpoints.plain_clip(1), tmp_path / "plain.pt")
    with pytest.raises(IncompatibleCheckpoint, match=r"plain\.pt holds no alpha weights \(conv1_alpha\.weight\)"):
        weights.state_dict(base, path, None)


def test_an_alpha_file_of_another_width_lists_the_sizes(base, tmp_path):
    path = saved(checkpoints.authors_tower(vision_width=128), tmp_path / "alpha.pth")
    message = (
        r"alpha\.pth is not an image tower for this base: visual\.class_embedding: \(128,\) there, \(64,\) needed; "
        r".*; and \d+ more\. Load the base it was trained on"
    )
    with pytest.raises(IncompatibleCheckpoint, match=message):
        weights.state_dict(base, path, None)


@pytest.mark.parametrize(
    ("layers", "sizes"), [(1, r"nothing there, \(64,\) needed"), (3, r"\(64,\) there, nothing needed")]
)
def test_an_alpha_file_of_another_depth_lists_the_blocks(base, tmp_path, layers, sizes):
    path = saved(checkpoints.authors_tower(vision_layers=layers), tmp_path / "alpha.pth")
    block = min(layers, 2)
    with pytest.raises(IncompatibleCheckpoint, match=rf"resblocks\.{block}\.ln_1\.bias: {sizes}"):
        weights.state_dict(base, path, None)


@pytest.mark.parametrize("alpha", ["grit40m", "no/such/file.pth", "GRIT20M"])
def test_a_wrong_tag_lists_the_tags(alpha):
    message = rf"alpha weights '{alpha}' are neither a file nor a tag for ViT-L/14@336px \(tags: 'grit20m', 'grit1m'\)"
    with pytest.raises(WeightsError, match=message):
        weights.state_dict("ViT-L/14@336px", alpha, None)


@pytest.mark.parametrize("name", ["ViT-B/32", "base.pt"])
def test_where_there_are_no_tags_the_error_says_so(name):
    with pytest.raises(WeightsError, match=r"neither a file nor a tag for .* \(tags: none\)"):
        weights.state_dict(name, "grit20m", None)


# --- files already on the disk ---


class Shelf:
    """A catalogue of one base and its alpha weights, and the bytes of both."""

    name, tag = "ViT-L/14@336px", "grit20m"

    def __init__(self) -> None:
        self.base = _bytes(checkpoints.plain_clip())
        self.alpha = _bytes(checkpoints.authors_tower())
        self.bases = {self.name: Weights("base.pt", _sha256(self.base), "our/base", COMMIT)}
        self.entry = replace(weights.ALPHA[self.name][self.tag], sha256=_sha256(self.alpha), repo=None, revision=None)

    @property
    def alphas(self) -> dict[str, dict[str, Weights]]:
        return {self.name: {self.tag: self.entry}}

    def expected(self) -> dict[str, Tensor]:
        return checkpoints.plain_clip() | {f"visual.{k}": v for k, v in checkpoints.image_tower().items()}


def _bytes(state: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def shelf(monkeypatch, tmp_path) -> Shelf:
    """The catalogue is a shelf's, OpenAI's cache is an empty folder, and there is no network."""
    shelf = Shelf()
    monkeypatch.setattr(weights, "BASES", shelf.bases)
    monkeypatch.setattr(weights, "ALPHA", shelf.alphas)
    (tmp_path / "cache").mkdir()
    monkeypatch.setattr(weights, "OPENAI_CACHE", str(tmp_path / "cache"))

    def no_network(entry: Weights, download_root: str | None) -> Path:
        raise ConnectionError("no network")

    monkeypatch.setattr(weights, "_from_hub", no_network)
    return shelf


ENTRY_NAMES = [
    weights.ALPHA[Shelf.name][Shelf.tag].file,
    *weights.ALPHA[Shelf.name][Shelf.tag].other_names,
]


@pytest.mark.parametrize("spelling", ENTRY_NAMES)
def test_known_files_in_download_root_are_found_under_any_spelling(shelf, tmp_path, spelling):
    (tmp_path / "base.pt").write_bytes(shelf.base)
    (tmp_path / spelling).write_bytes(shelf.alpha)
    assert_equal(weights.state_dict(shelf.name, "auto", str(tmp_path)), shelf.expected())


def test_known_files_in_openais_cache_are_found(shelf, tmp_path):
    (tmp_path / "cache" / "base.pt").write_bytes(shelf.base)
    (tmp_path / "cache" / ENTRY_NAMES[0]).write_bytes(shelf.alpha)
    assert_equal(weights.state_dict(shelf.name, "auto", None), shelf.expected())


def test_wrong_bytes_are_left_alone_and_skipped_with_a_log(shelf, tmp_path, caplog):
    (tmp_path / "base.pt").write_bytes(shelf.base)
    (tmp_path / ENTRY_NAMES[0]).write_bytes(b"wrong")
    (tmp_path / ENTRY_NAMES[-1]).write_bytes(shelf.alpha)
    with caplog.at_level(logging.WARNING, "alpha_clip.weights"):
        state = weights.state_dict(shelf.name, "auto", str(tmp_path))
    assert_equal(state, shelf.expected())
    assert (tmp_path / ENTRY_NAMES[0]).read_bytes() == b"wrong"
    assert f"{ENTRY_NAMES[0]} does not have the SHA-256 {shelf.entry.sha256}" in caplog.text


def test_a_file_of_unknown_hash_is_not_taken_from_a_folder(shelf, tmp_path):
    weights.BASES[shelf.name] = replace(weights.BASES[shelf.name], sha256=None)
    (tmp_path / "base.pt").write_bytes(shelf.base)
    with pytest.raises(WeightsError, match=r"base\.pt could not be fetched from our/base"):
        weights.state_dict(shelf.name, None, str(tmp_path))


def not_found(entry: Weights, reason: str = "") -> str:
    return (
        rf"{re.escape(entry.file)} \(SHA-256 {entry.sha256}\) could not be had\. Get the file from "
        r"https://github\.com/SunzeY/AlphaCLIP and put it into download_root, or pass its path as "
        rf"alpha_vision_ckpt_pth=; pass None for plain CLIP, which ignores masks\. Reason: (?s:.*){reason}"
    )


def test_without_any_source_the_error_names_file_hash_link_and_remedy(shelf):
    with pytest.raises(AlphaWeightsNotFound, match=not_found(shelf.entry, "no copy on the Hub is known")):
        weights.state_dict(shelf.name, "auto", None)


def test_missing_alpha_weights_are_noticed_before_the_base_is_fetched(shelf):
    """The base cannot be had here either, but is not asked for."""
    for alpha, error in (("auto", AlphaWeightsNotFound), ("no_such_tag", WeightsError)):
        with pytest.raises(error, match="alpha weights"):
            weights.state_dict(shelf.name, alpha, None)


def test_the_errors_are_runtime_errors():
    for error in (AlphaWeightsNotFound, HashMismatch, IncompatibleCheckpoint):
        assert issubclass(error, WeightsError) and issubclass(error, RuntimeError)
    assert alpha_clip.WeightsError is WeightsError


# --- the Hub: its real client in a process of its own, against a server on this machine ---


def load_there(shelf: Shelf, root: Path) -> dict[str, np.ndarray]:
    """Runs in the client's process: load everything by name."""
    weights.BASES, weights.ALPHA = shelf.bases, shelf.alphas
    weights.OPENAI_CACHE = str(root / "no such folder")
    model, _ = alpha_clip.load(shelf.name, "cpu", download_root=str(root))
    return {k: v.numpy() for k, v in model.state_dict().items()}


def log_there(shelf: Shelf, root: Path) -> list[str]:
    """Runs in the client's process: what a load logs."""
    handler = logging.handlers.QueueHandler(queue.SimpleQueue())
    logging.getLogger("alpha_clip").addHandler(handler)
    load_there(shelf, root)
    logging.getLogger("alpha_clip").removeHandler(handler)
    return [handler.queue.get().getMessage() for _ in range(handler.queue.qsize())]


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.stop()


@pytest.fixture(scope="module")
def client(server, tmp_path_factory) -> Iterator[ProcessPoolExecutor]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE", "HF_TOKEN"):
            patch.delenv(name, raising=False)
            patch.delenv(name.lower(), raising=False)
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(os.getpid).result()  # started here, with this environment
            yield pool


@pytest.fixture
def hub(server) -> Iterator[Hub]:
    """The server, up and with nothing on it."""
    server.start()
    server.files.clear()
    server.cut_short.clear()
    yield server
    server.start()


@pytest.fixture
def published(hub) -> Shelf:
    """A shelf whose two files are on the Hub."""
    shelf = Shelf()
    shelf.entry = replace(shelf.entry, repo="our/alpha", revision=COMMIT)
    hub.files[("model", "our/base")] = {"README.md": b"", "base.pt": shelf.base}
    hub.files[("model", "our/alpha")] = {"README.md": b"", shelf.entry.file: shelf.alpha}
    return shelf


@pytest.fixture
def load(client, tmp_path) -> Callable[[Shelf], dict[str, Tensor]]:
    """Loads in the client's process, which caches in this test's folder."""

    def load(shelf: Shelf) -> dict[str, Tensor]:
        arrays = client.submit(load_there, shelf, tmp_path).result()
        return {k: torch.from_numpy(v) for k, v in arrays.items()}

    return load


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*.pt*")}


def test_the_first_load_fetches_both_files(published, load):
    assert_equal(load(published), published.expected())


def test_the_second_load_works_without_the_server(published, load, hub):
    load(published)
    hub.stop()
    assert_equal(load(published), published.expected())


def test_the_second_load_asks_for_nothing(published, load, hub):
    load(published)
    hub.requests.clear()
    load(published)
    assert hub.requests == []


def test_the_licence_is_named_when_the_authors_weights_are_fetched(published, client, tmp_path):
    first, second = (client.submit(log_there, published, tmp_path).result() for _ in range(2))
    assert first == ["The Alpha-CLIP authors' weights are for research use only (CC BY-NC 4.0)."]
    assert second == []


def test_a_copy_may_lie_in_a_folder_of_a_space_under_another_name_and_no_revision(published, load, hub):
    published.entry = replace(published.entry, repo="our/space", repo_type="space", revision=None)
    hub.files[("space", "our/space")] = {"app.py": b"", f"checkpoints/{ENTRY_NAMES[-1]}": published.alpha}
    assert_equal(load(published), published.expected())
    hub.stop()
    assert_equal(load(published), published.expected())


def test_wrong_bytes_are_deleted_and_both_hashes_named(published, load, hub, tmp_path):
    wrong = published.alpha[:-1] + b"!"
    hub.files[("model", "our/alpha")][published.entry.file] = wrong
    message = rf"had SHA-256 {_sha256(wrong)}, expected {published.entry.sha256}: deleted; load again"
    with pytest.raises(HashMismatch, match=message):
        load(published)
    assert files_in(tmp_path) == set()
    assert len(wrong) not in {path.stat().st_size for path in tmp_path.rglob("*")}


def test_after_wrong_bytes_the_next_load_fetches_again(published, load, hub):
    files = hub.files[("model", "our/alpha")]
    files[published.entry.file] = published.alpha[:-1] + b"!"
    with pytest.raises(HashMismatch, match="deleted; load again to fetch it"):
        load(published)
    files[published.entry.file] = published.alpha
    assert_equal(load(published), published.expected())


def test_a_base_of_wrong_bytes_is_a_mismatch_too(published, load, hub):
    hub.files[("model", "our/base")]["base.pt"] = b"wrong"
    with pytest.raises(HashMismatch, match=rf"had SHA-256 {_sha256(b'wrong')}, expected {_sha256(published.base)}"):
        load(published)


def test_a_deleted_file_is_fetched_again(published, load, tmp_path):
    load(published)
    for path in tmp_path.rglob("*.pth"):
        path.resolve().unlink()
    assert_equal(load(published), published.expected())


def test_a_file_that_is_gone_from_its_repository(published, load, hub):
    del hub.files[("model", "our/alpha")][published.entry.file]
    with pytest.raises(AlphaWeightsNotFound, match=not_found(published.entry, "our/alpha has no file")):
        load(published)


def test_a_repository_that_is_gone(published, load, hub):
    del hub.files[("model", "our/alpha")]
    with pytest.raises(AlphaWeightsNotFound, match=not_found(published.entry, "our/alpha")):
        load(published)


def test_a_base_that_is_gone(published, load, hub):
    del hub.files[("model", "our/base")]
    message = r"base\.pt could not be fetched from our/base on the Hugging Face Hub\. .*pass the path of a copy"
    with pytest.raises(WeightsError, match=message):
        load(published)


@pytest.mark.slow  # the Hub's client tries for 20 seconds
def test_no_server_and_nothing_cached(published, load, hub):
    hub.stop()
    with pytest.raises(AlphaWeightsNotFound, match=not_found(published.entry)):
        load(published)


def test_a_connection_that_breaks_leaves_nothing_to_be_taken_for_the_file(published, load, hub):
    hub.cut_short.add(published.entry.file)
    with pytest.raises(AlphaWeightsNotFound, match=not_found(published.entry)):
        load(published)
    hub.cut_short.clear()
    assert_equal(load(published), published.expected())
