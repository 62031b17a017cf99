"""What is read from files of every format, what confirms it, what is refused; what is written; and hashes of files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from conftest import in_transformers_names
from privileges import drop_privileges
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from shelf import assert_equal
from torch import Tensor
from torch.testing import assert_close

from alpha_clip import hashes
from alpha_clip.checkpoints import METADATA, WEIGHT_FILES, Checkpoint, read, write
from alpha_clip.errors import IncompatibleCheckpoint, WeightsError
from alpha_clip.hashes import forget, known_sha256, sha256
from alpha_clip.model import build_model

State = dict[str, Tensor]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@cache
def both() -> State:
    """A CLIP as OpenAI's, both towers."""
    return checkpoints.distinct(checkpoints.plain_clip())


@cache
def tower() -> State:
    """An image tower with alpha weights."""
    return {k: v for k, v in checkpoints.distinct(checkpoints.clip()).items() if k.startswith("visual.")}


def without(prefix: str, state: State) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items()}


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{k}": v for k, v in state.items()}


def in_authors_names(state: State) -> State:
    return {k.replace("attn.in_proj_", "attn.in_proj."): v for k, v in state.items()}


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def beside(path: Path, name: str, content: object) -> Path:
    """`path`, with `content` as JSON in the file `name` next to it."""
    path.with_name(name).write_text(json.dumps(content))
    return path


WRITERS: dict[str, Callable[[State, Path], None]] = {
    "safetensors": save_file,
    "torch.save": torch.save,
    "torch.save before 1.6": partial(torch.save, _use_new_zipfile_serialization=False),
}


# --- one state dict out of every format ---


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "model.bin", "model"])
@pytest.mark.parametrize("format", WRITERS)
def test_a_format_is_recognised_by_content_whatever_the_files_name(tmp_path, format, name):
    WRITERS[format](both(), tmp_path / name)
    checkpoint = read(tmp_path / name)
    assert_equal(checkpoint.tensors, both())
    assert (checkpoint.path, checkpoint.format, checkpoint.confirmed) == (tmp_path / name, format, None)


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_in_a_folder_the_file_of_weights_is_found(tmp_path, name):
    (tmp_path / "vocab.json").touch()
    write(both(), tmp_path / name)
    assert read(tmp_path).path == tmp_path / name


def test_of_several_files_in_a_folder_the_first_of_the_list_is_read(tmp_path):
    for name in WEIGHT_FILES:
        write(both(), tmp_path / name)
    assert read(tmp_path).path == tmp_path / WEIGHT_FILES[0]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {0: torch.zeros(1)}}},
        partial(prefixed, "module."),
        partial(prefixed, "_orig_mod."),
        partial(prefixed, "module._orig_mod."),
        partial(prefixed, "_orig_mod.module."),
        lambda state: {"state_dict": prefixed("module.", state)},
        lambda state: {"model": prefixed("_orig_mod.", state)},
    ],
    ids=["bare", "state_dict", "model", "module", "orig_mod", "module_orig", "orig_module", "both", "model_orig"],
)
@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (both(), both()),
        (without("visual.", tower()), tower()),
        (in_authors_names(without("visual.", tower())), tower()),
        (in_authors_names(tower()), tower()),
    ],
    ids=["plain", "tower", "authors", "authors_visual"],
)
def test_wrappers_of_training_scripts_are_taken_off(tmp_path, wrap, state, expected):
    checkpoint = read(saved(wrap(state), tmp_path / "model.pt"))
    assert_equal(checkpoint.tensors, expected)
    assert checkpoint.is_image_tower == (expected is not both())


def test_our_training_checkpoints_are_read_and_confirm_themselves(tmp_path):
    model = build_model(checkpoints.clip())
    optimizer = torch.optim.AdamW(model.parameters())
    content = {"model": model.state_dict(), "optimizers": [optimizer.state_dict()], "config": {"lr": 1e-3}, "step": 3}
    checkpoint = read(saved(content | {"alpha_clip": METADATA}, tmp_path / "last.pt"))
    assert_equal(checkpoint.tensors, checkpoints.clip())
    assert checkpoint.confirmed == "its metadata"


@pytest.mark.parametrize("value", ["ViT-L/14", 3, None, torch.ones(2), both()], ids=["str", "int", "None", "1d", "2d"])
def test_a_key_of_our_name_that_is_not_our_metadata_confirms_nothing(tmp_path, value):
    checkpoint = read(saved({"model": both(), "alpha_clip": value}, tmp_path / "model.pt"))
    assert_equal(checkpoint.tensors, both())
    assert checkpoint.confirmed is None


def test_what_openai_keeps_beside_the_weights_is_left_out(tmp_path):
    idle = {k: torch.tensor(7) for k in ("input_resolution", "context_length", "vocab_size")}
    assert_equal(read(saved(both() | idle, tmp_path / "model.pt")).tensors, both())


def test_a_packed_vocabulary_keeps_its_ids(tmp_path):
    packed = checkpoints.packed_clip()
    assert_equal(read(saved(packed, tmp_path / "model.pt")).tensors, packed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("format", WRITERS)
def test_tensors_keep_their_dtypes(tmp_path, format, dtype):
    state = {k: v.to(dtype) for k, v in both().items()}
    WRITERS[format](state, tmp_path / "model")
    tensors = read(tmp_path / "model").tensors
    assert_equal(tensors, state)
    assert {v.dtype for v in tensors.values()} == {dtype}


# --- open_clip ---


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_open_clips_files(tmp_path, plain, open_clip_model, name):
    WRITERS["torch.save" if name.endswith(".bin") else "safetensors"](open_clip_model.state_dict(), tmp_path / name)
    expected = plain.state_dict()
    del expected["visual.conv1_alpha.weight"]
    assert_equal(read(tmp_path).tensors, expected)


def test_open_clips_other_class_keeps_the_text_tower_under_text(tmp_path, open_clip_model):
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP, convert_to_custom_text_state_dict

    expected = open_clip_model.state_dict()
    vision = CLIPVisionCfg(layers=3, width=128, head_width=64, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=16, vocab_size=512, width=128, heads=2, layers=2)
    theirs = CustomTextCLIP(64, vision, text, quick_gelu=True)
    theirs.load_state_dict(convert_to_custom_text_state_dict(dict(expected)))
    state = theirs.state_dict()
    assert "text.token_embedding.weight" in state
    assert_equal(read(saved(state, tmp_path / "model.bin")).tensors, expected)


# --- transformers ---


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """The folder that transformers' CLIPModel writes when it has the weights of `both`."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("transformers")
    model = CLIPModel(CLIPConfig.from_pretrained(checkpoints.transformers_folder(folder / "config")))
    model.load_state_dict(in_transformers_names(both()))
    model.save_pretrained(folder / "model")
    return folder / "model"


@pytest.mark.parametrize("file", ["", "model.safetensors"])
def test_transformers_folder_and_its_file(theirs, file):
    checkpoint = read(theirs / file)
    assert_equal(checkpoint.tensors, both())
    assert checkpoint.path == theirs / "model.safetensors"
    assert checkpoint.format == "safetensors, in transformers' names"
    assert checkpoint.confirmed == "config.json beside it"


@torch.no_grad()
def test_the_features_are_those_of_transformers(theirs, images):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(theirs).eval()
    tokens = torch.randint(1, 99, (3, 77), generator=torch.Generator().manual_seed(1))
    for row, end in zip(tokens, (1, 20, 76), strict=True):
        row[end], row[end + 1 :] = 99, 0
    ours = build_model(read(theirs).tensors | {"visual.conv1_alpha.weight": torch.zeros(64, 1, 8, 8)})
    assert_close(ours.encode_image(images), model.get_image_features(images).pooler_output, rtol=1e-5, atol=1e-5)
    assert_close(ours.encode_text(tokens), model.get_text_features(tokens).pooler_output, rtol=1e-5, atol=1e-5)
    logits = model(input_ids=tokens, pixel_values=images)
    assert_close(ours(images, tokens), (logits.logits_per_image, logits.logits_per_text), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", ["torch.save", "torch.save before 1.6"])
def test_transformers_older_files_carry_position_ids(tmp_path, format):
    state = in_transformers_names(both())
    for kind, length in (("text", 77), ("vision", 17)):
        state[f"{kind}_model.embeddings.position_ids"] = torch.arange(length)[None]
    WRITERS[format](state, tmp_path / "pytorch_model.bin")
    checkpoint = read(tmp_path)
    assert_equal(checkpoint.tensors, both())
    assert (checkpoint.format, checkpoint.confirmed) == (f"{format}, in transformers' names", None)


@pytest.mark.parametrize("prefix", ["", "vision_model."], ids=["new", "old"])
@pytest.mark.parametrize("kind", ["CLIPVisionModelWithProjection", "CLIPVisionModel"])
def test_transformers_image_tower_alone_in_old_and_new_names(theirs, tmp_path, kind, prefix):
    import transformers

    getattr(transformers, kind).from_pretrained(theirs, projection_dim=32).save_pretrained(tmp_path)
    state = without("vision_model.", read_safetensors(tmp_path / "model.safetensors"))
    projection = {k: state.pop(k) for k in ("visual_projection.weight",) if k in state}
    checkpoint = read(saved(prefixed(prefix, state) | projection, tmp_path / "tower.bin"))
    expected = {k: v for k, v in both().items() if k.startswith("visual.")}
    if kind == "CLIPVisionModel":
        del expected["visual.proj"]
    assert_equal(checkpoint.tensors, expected)
    assert checkpoint.is_image_tower and checkpoint.confirmed == "config.json beside it"


def read_safetensors(path: Path) -> State:
    with safe_open(path, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 not a dict


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


# --- memory-mapping ---


def mapping(tensor: Tensor) -> tuple[str, str]:
    """Of the memory that `tensor` lies in: permissions, and the file that is mapped there, or nothing."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, _, _, _, *file = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in span.split("-"))
        if start <= tensor.data_ptr() < end:
            return permissions, "".join(file)
    raise AssertionError("no memory there")


@linux
@pytest.mark.parametrize("format", ["safetensors", "torch.save"])
def test_tensors_are_mapped_and_copied_on_write(tmp_path, format):
    path = tmp_path / "model"
    WRITERS[format](both(), path)
    for tensor in read(path).tensors.values():
        assert mapping(tensor) == ("rw-p", str(path))  # p: private


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("format", WRITERS)
def test_training_a_model_leaves_its_file_as_it_was(tmp_path, images, format, optimizer):
    WRITERS[format](checkpoints.clip(), tmp_path / "model")
    before = (tmp_path / "model").read_bytes()
    model = build_model(read(tmp_path / "model").tensors)
    optimizer = optimizer(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(images, torch.tensor([[5, 99, 0]]))[0].square().sum().backward()
        optimizer.step()
    trained = [k for k, v in model.state_dict().items() if not torch.equal(v, checkpoints.clip()[k])]
    assert "visual.conv1_alpha.weight" in trained and "token_embedding.weight" in trained
    assert (tmp_path / "model").read_bytes() == before


@pytest.mark.parametrize("format", WRITERS)
def test_tensors_outlive_their_file(tmp_path, format):
    """A mapped file may be replaced or deleted, not cut short."""
    WRITERS[format](both(), tmp_path / "model")
    tensors = read(tmp_path / "model").tensors
    write({"other": torch.zeros(3)}, tmp_path / "model")
    (tmp_path / "model").unlink()
    assert_equal(tensors, both())


# --- TorchScript ---


@pytest.fixture
def archive(tmp_path) -> Path:
    """Opening it warns that torch.jit.load is deprecated, which would be an error here."""
    return checkpoints.torchscript(both(), tmp_path / "ViT-B-32.pt")


def refused(path: Path) -> str:
    """What is said of an archive that is not trusted."""
    remedy = re.escape(f"python -m alpha_clip.weights convert {path} {path.with_suffix('.safetensors')} --trust; or")
    return (
        rf"{path.name} is a TorchScript archive, which can only be read by running code from it, and its SHA-256 "
        rf"{sha256(path)} is none of OpenAI's\. If you trust who made it, convert it once: {remedy} pass trust=True"
    )


@pytest.mark.parametrize("trusted", [(), ("0" * 64,)])
def test_an_unknown_torchscript_archive_is_refused_with_its_hash_and_the_remedy(archive, trusted):
    with pytest.raises(IncompatibleCheckpoint, match=refused(archive)):
        read(archive, trusted=trusted)


@pytest.mark.parametrize("name", ["ViT-B-32.pt", "model.safetensors"])
@pytest.mark.parametrize("by", ["hash", "user"])
def test_a_trusted_torchscript_archive_is_read(archive, name, by):
    path = archive.rename(archive.with_name(name))
    checkpoint = read(path, trust=True) if by == "user" else read(path, trusted={"0" * 64, sha256(path)})
    assert_equal(checkpoint.tensors, both())
    assert (checkpoint.format, checkpoint.confirmed) == ("TorchScript", None)
    assert not any(v.requires_grad for v in checkpoint.tensors.values())


def test_an_archive_that_changed_is_refused_whatever_is_remembered_of_it(archive):
    trusted = known_sha256(archive)
    before = archive.stat()
    checkpoints.torchscript(checkpoints.distinct(both()), archive)
    assert archive.stat().st_size == before.st_size
    os.utime(archive, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert known_sha256(archive) == trusted  # by the record beside it
    with pytest.raises(IncompatibleCheckpoint, match=refused(archive)):
        read(archive, trusted={trusted})


def test_an_archive_in_disguise_is_not_run(archive, tmp_path):
    """Without its folder of code it is no TorchScript to us, and torch.load must not take it for one either."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(tmp_path / "model.pt", "w") as new:
        for name in old.namelist():
            if "/code/" not in name:
                new.writestr(name, old.read(name))
    with pytest.raises(IncompatibleCheckpoint, match=r"model\.pt cannot be read without running code from it"):
        read(tmp_path / "model.pt", trusted={sha256(tmp_path / "model.pt")})


def test_a_torchscript_archive_that_is_not_whole(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as file:
        for name in ("constants.pkl", "code/__torch__.py"):
            file.writestr(f"model/{name}", b"")
    with pytest.raises(IncompatibleCheckpoint, match=r"(?s)model\.pt is not a whole TorchScript archive .*fetch it ag"):
        read(tmp_path / "model.pt", trust=True)


# --- what shapes leave open ---

TWO_TOWERS = {"vision_config": {"num_attention_heads": 1}, "text_config": {"num_attention_heads": 1}}
OPEN_CLIP = {"quick_gelu": True, "vision_cfg": {"width": 64}, "text_cfg": {"width": 64, "heads": 1}}


def test_our_metadata_confirms(tmp_path):
    write(both(), tmp_path / "model.safetensors")
    assert read(tmp_path).confirmed == "its metadata"


@pytest.mark.parametrize("said", [{"activation": "gelu"}, {"head_width": "80"}, {"head_width": "80", "activation": ""}])
@pytest.mark.parametrize("format", ["safetensors", "torch.save"])
def test_metadata_that_says_otherwise_is_refused(tmp_path, format, said):
    if format == "safetensors":
        save_file(both(), tmp_path / "model", METADATA | said)
    else:
        saved({"model": both(), "alpha_clip": METADATA | said}, tmp_path / "model")
    found = "; ".join(f"{k} {said[k]}, needed {METADATA[k]}" for k in METADATA if k in said)
    message = rf"model is another kind of CLIP: its metadata says {found}\. .* wrong features\. Use it with the library"
    with pytest.raises(IncompatibleCheckpoint, match=message):
        read(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, "vision hidden_act gelu, needed quick_gelu; text hidden_act gelu, needed quick_gelu"),
        ({"hidden_size": 128}, "vision num_attention_heads 1, needed 2; text num_attention_heads 1, needed 2"),
        ({"layer_norm_eps": 1e-6}, "vision layer_norm_eps 1e-06, needed 1e-05; text layer_norm_eps 1e-06, needed 1"),
    ],
)
def test_another_kind_of_transformers_model_is_refused(tmp_path, changes, said):
    checkpoints.transformers_folder(tmp_path, **changes)
    message = rf"model\.safetensors is another kind of CLIP: config\.json beside it says {said}"
    with pytest.raises(IncompatibleCheckpoint, match=message):
        read(tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TWO_TOWERS, None),
        (TWO_TOWERS | {"text_config": {"num_attention_heads": 1, "hidden_act": "gelu"}}, "text hidden_act gelu, need"),
        (TWO_TOWERS | {"text_config": {}}, "text num_attention_heads 8, needed 1"),
        (TWO_TOWERS | {"vision_config": {}}, "vision num_attention_heads 12, needed 1"),
    ],
)
def test_what_transformers_left_out_of_its_configuration_is_its_default(tmp_path, config, said):
    path = beside(saved(in_transformers_names(both()), tmp_path / "model.bin"), "config.json", config)
    assert_confirmed(path, "config.json beside it", said)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "clip_vision_model"}, None),
        ({"hidden_act": "gelu"}, "vision hidden_act gelu, needed quick_gelu"),
        ({"num_attention_heads": 16}, "vision num_attention_heads 16, needed 12"),
        ({"vision_config": {"num_attention_heads": 16}, "text_config": {}}, "vision num_attention_heads 16, needed 12"),
    ],
)
def test_the_configuration_of_an_image_tower_alone_is_flat(tmp_path, config, said):
    parts = {"embeddings.class_embedding": (768,), "embeddings.patch_embedding.weight": (768, 3, 1, 1)}
    path = saved({k: torch.zeros(shape) for k, shape in parts.items()}, tmp_path / "model.bin")
    assert_confirmed(beside(path, "config.json", config), "config.json beside it", said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"vision_cfg": {"head_width": 64}}, None),
        ({"vision_cfg": {"head_width": 80}}, "vision head_width 80, needed 64"),
        ({"quick_gelu": False}, "quick_gelu False, needed True"),
        ({"quick_gelu": None}, "quick_gelu None, needed True"),
        ({"text_cfg": {"heads": 4}}, "text heads 4, needed 1"),
        ({"text_cfg": {}}, "text heads 8, needed 1"),
        ({"quick_gelu": False, "text_cfg": {}}, "quick_gelu False, needed True; text heads 8, needed 1"),
    ],
)
@pytest.mark.parametrize("wrap", [dict, lambda config: {"model_cfg": config, "preprocess_cfg": {}}])
def test_open_clips_configuration_confirms_or_refuses(tmp_path, wrap, changes, said):
    path = beside(saved(both(), tmp_path / "model.bin"), "open_clip_config.json", wrap(OPEN_CLIP | changes))
    assert_confirmed(path, "open_clip_config.json beside it", said)


def test_open_clips_activation_is_gelu_where_it_does_not_say(tmp_path):
    config = {k: v for k, v in OPEN_CLIP.items() if k != "quick_gelu"}
    path = beside(saved(both(), tmp_path / "model.bin"), "open_clip_config.json", {"model_cfg": config})
    assert_confirmed(path, "open_clip_config.json beside it", "quick_gelu False, needed True")


def test_the_heads_of_a_text_tower_that_is_not_there_are_not_asked_for(tmp_path):
    path = beside(saved(tower(), tmp_path / "model.bin"), "open_clip_config.json", OPEN_CLIP | {"text_cfg": {}})
    assert_confirmed(path, "open_clip_config.json beside it", None)


def test_half_of_our_metadata_may_contradict_but_does_not_confirm(tmp_path):
    for file, gelu in (("a.safetensors", "gelu"), ("b.safetensors", "quick_gelu")):
        save_file(both(), tmp_path / file, {"activation": gelu})
    assert_confirmed(tmp_path / "a.safetensors", "its metadata", "activation gelu, needed quick_gelu")
    assert read(tmp_path / "b.safetensors").confirmed is None


def test_towers_without_a_configuration_have_open_clips_defaults(tmp_path):
    config = OPEN_CLIP | {"vision_cfg": None, "text_cfg": None}
    path = beside(saved(both(), tmp_path / "model.bin"), "open_clip_config.json", config)
    assert_confirmed(path, "open_clip_config.json beside it", "text heads 8, needed ")


def test_a_text_tower_of_another_kind_is_refused(tmp_path):
    state = tower() | {"text.transformer.embeddings.word_embeddings.weight": torch.zeros(2, 2)}
    with pytest.raises(IncompatibleCheckpoint, match="has a text tower of another kind: load it with open_clip"):
        read(saved(state, tmp_path / "model.bin"))


def assert_confirmed(path: Path, source: str, wrong: str | None) -> None:
    """`path` is confirmed by `source`, or refused because `source` says what is `wrong`."""
    if wrong is None:
        assert read(path).confirmed == source
    else:
        message = rf"{path.name} is another kind of CLIP: {source} says {wrong}.*\(open_clip, transformers\), or"
        with pytest.raises(IncompatibleCheckpoint, match=message):
            read(path)


@pytest.mark.parametrize(
    ("file", "state"), [("config.json", both()), ("open_clip_config.json", in_transformers_names(both()))]
)
def test_the_configuration_of_another_library_is_not_consulted(tmp_path, file, state):
    saved(state, tmp_path / "model.bin").with_name(file).write_text("not even JSON")
    assert read(tmp_path / "model.bin").confirmed is None


@pytest.mark.parametrize("config", [{}, []])
def test_an_empty_configuration_says_nothing(tmp_path, config):
    path = beside(saved(both(), tmp_path / "model.bin"), "open_clip_config.json", config)
    assert read(path).confirmed is None


@pytest.mark.parametrize("content", [b"", b'{"vision_config": ', b"\xff", None], ids=["", "cut", "bytes", "folder"])
@pytest.mark.parametrize(
    ("file", "state"), [("open_clip_config.json", both()), ("config.json", in_transformers_names(both()))]
)
def test_a_configuration_that_cannot_be_read_is_an_error_that_names_it(tmp_path, file, state, content):
    saved(state, tmp_path / "model.bin")
    if content is None:
        (tmp_path / file).mkdir()
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(IncompatibleCheckpoint, match=rf"/{file} cannot be read \(.*\): repair it, or take it away"):
        read(tmp_path / "model.bin")


@pytest.mark.parametrize("names", [lambda state: state, in_transformers_names], ids=["openai", "transformers"])
@pytest.mark.parametrize(
    ("tensor", "kind"), [("visual.class_embedding", "vision"), ("text_projection", "text")], ids=["vision", "text"]
)
def test_a_tower_whose_width_is_no_multiple_of_64_is_refused(tmp_path, names, tensor, kind):
    state = both() | {tensor: torch.zeros(80, *both()[tensor].shape[1:])}
    message = rf"model\.pt: its {kind} tower is 80 wide, which is no multiple of 64, .* Use it with the library that"
    with pytest.raises(IncompatibleCheckpoint, match=message):
        read(saved(names(state), tmp_path / "model.pt"))


# --- what is refused: files ---


class Payload:
    """Makes a folder when it is unpickled by the book."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("format", ["torch.save", "torch.save before 1.6"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, format):
    trap, path = tmp_path / "run", tmp_path / "model.pt"
    WRITERS[format](both() | {"x": Payload(trap)}, path)
    with pytest.raises(IncompatibleCheckpoint, match=r"model\.pt cannot be read without running code from it"):
        read(path, trust=True)  # which is for TorchScript alone
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # it would have


def test_a_pickled_module_is_refused(tmp_path):
    path = saved(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    message = r"running code from it.* \(torch.*Linear\)\. Expected .* as torch\.save\(model\.state_dict\(\), path\)"
    with pytest.raises(IncompatibleCheckpoint, match=message):
        read(path)


WEB_PAGE = "is a web page, not a checkpoint: its download went wrong, fetch it again"
NOT_WHOLE = r"cannot be read without running code from it, or is not whole \(\w+\)\. .* or fetch it again"


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: fetch it again"),
        (b"<!DOCTYPE html><html>", WEB_PAGE),
        (b"\n  <html>\n", WEB_PAGE),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', WEB_PAGE),
        (b"version https://git-lfs.github.com/spec/v1\nsize 5\n", "is a Git LFS pointer, .*: run `git lfs pull` there"),
        (b"hello world\n", r"is not a checkpoint: it begins with b'hello world\\n', expected safetensors or"),
        (bytes(range(1, 255)), r"is not a checkpoint: it begins with b'\\x01\\x02"),
        (b"P", "is not a checkpoint: it begins with b'P'"),
        (b"PK", r"is not whole \(File is not a zip file\): fetch it again"),
        (b"PK\x03\x04" + bytes(range(256)), r"is not whole \(File is not a zip file\): fetch it again"),
        (b"PK\x05\x06" + bytes(18), NOT_WHOLE),  # a zip file with nothing in it
        (b"\x80", NOT_WHOLE),
        (b"\x80\x02" + bytes(range(256)), NOT_WHOLE),
        (b"\x02\0\0\0\0\0\0\0{}", "holds no tensors: expected a state dict"),
        (b"\x02\0\0\0\0\0\0\0{]", "is not a whole safetensors file .*: fetch it again"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IncompatibleCheckpoint, match=rf"/{name} {message}"):
        read(tmp_path / name)


@pytest.mark.parametrize("keep", [20, 1000, 0.3, 0.6, 0.99, -1])
@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("safetensors", "is not a whole safetensors file"),
        ("torch.save", r"is not whole \(File is not a zip file\)"),
        ("torch.save before 1.6", r"or is not whole \(\w+\)"),
    ],
)
def test_a_file_cut_short_is_refused(tmp_path, format, message, keep):
    path = tmp_path / "model"
    WRITERS[format](both(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(IncompatibleCheckpoint, match=rf"/model .*{message}.*fetch it again"):
        read(path)


def entry(start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "claimed"),
    [
        ({"a": entry(0, 16)}, 10**6),  # bytes of header
        ({"a": entry(0, 16)}, 2**63),
        ({"a": entry(0, 16)}, 20),
        ({"a": entry(0, 32)}, None),
        ({"a": entry(16, 32)}, None),
        ({"a": entry(0, 12), "b": entry(8, 16)}, None),
        ({"a": entry(0, 16), "b": entry(0, 16)}, None),
        ({"a": entry(0, 4), "b": entry(12, 16)}, None),
        ({"a": entry(0, 16) | {"shape": [400]}}, None),
        ({"a": entry(0, 16) | {"dtype": "F33"}}, None),
    ],
    ids=["long", "huge", "short", "past", "after", "overlap", "twice", "hole", "shape", "dtype"],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header, claimed):
    """The file has 16 bytes of tensors."""
    text = json.dumps(header).encode()
    length = len(text) if claimed is None else claimed
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", length) + text + bytes(16))
    with pytest.raises(IncompatibleCheckpoint, match=r"model\.safetensors is not a whole safetensors file .*fetch it"):
        read(tmp_path / "model.safetensors")


def with_a_name_that_is_no_text(content: bytes) -> bytes:
    return content.replace(b"data.pkl", b"data\xff\xff\xff\xff")


def from_a_later_version_of_zip(content: bytes) -> bytes:
    at = content.index(b"PK\x01\x02") + 6  # of the first file in the central directory: the version needed
    return content[:at] + b"\xff" + content[at + 1 :]


def without_its_pickle(content: bytes) -> bytes:
    return content.replace(b"data.pkl", b"atad.pkl")


@pytest.mark.parametrize(
    "damage", [with_a_name_that_is_no_text, from_a_later_version_of_zip, without_its_pickle], ids=lambda f: f.__name__
)
def test_a_damaged_zip_file_is_refused(tmp_path, damage):
    path = saved(both(), tmp_path / "model.pt")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IncompatibleCheckpoint, match=r"model\.pt .*is not whole \(.*fetch it again"):
        read(path)


# --- what is refused: contents ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, expected a state dict"),
        ([torch.zeros(3)], "holds a list, expected a state dict"),
        ("weights", "holds a str, expected a state dict"),
        ({}, "holds no tensors: expected a state dict"),
        ({"epoch": 3}, "holds no tensors: expected a state dict"),
        ({"state_dict": {}, "mean": torch.zeros(3)}, "holds no tensors: expected a state dict"),
    ],
)
@pytest.mark.parametrize("format", ["torch.save", "torch.save before 1.6"])
def test_pickles_of_something_else_are_refused(tmp_path, format, content, message):
    WRITERS[format](content, tmp_path / "model.pt")
    with pytest.raises(IncompatibleCheckpoint, match=rf"model\.pt {message}"):
        read(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["fc.weight"], "other names, such as fc.weight"),
        (["d", "c", "b", "a"], "other names, such as a, b, c"),
        (["cls_token", "patch_embed.proj.weight"], "other names, such as cls_token, patch_embed.proj.weight"),
        (["visual.layer1.0.conv1.weight", "visual.conv1.weight"], "a ResNet image tower, and alpha-clip's image tower"),
        (["layer1.0.conv1.weight", "conv1.weight"], "a ResNet image tower, and alpha-clip's image towers are ViTs"),
        (["visual.trunk.cls_token", "text.token_embedding.weight"], "an image tower of timm's: load it with open_clip"),
        (
            ["vision_model.embeddings.patch_embedding.weight", "vision_model.head.probe"],  # SigLIP
            "other names, such as vision_model.embeddings.patch_embedding.weight, vision_model.head.probe",
        ),
    ],
)
def test_the_state_dict_of_something_else_is_refused(tmp_path, names, found):
    path = saved({name: torch.zeros(1) for name in names}, tmp_path / "model.pt")
    message = r"model\.pt does not hold a CLIP with a ViT image tower in OpenAI's names: it has " + re.escape(found)
    with pytest.raises(IncompatibleCheckpoint, match=message):
        read(path)


# --- what is refused: paths ---


@pytest.mark.parametrize("name", ["none.pt", "no/such/folder", "file/none.pt", "n" * 300])
def test_a_path_where_nothing_is(tmp_path, name):
    (tmp_path / "file").touch()
    message = rf"there is no file .*{name}: give the path of a checkpoint, or a name of available_models\(\)"
    with pytest.raises(WeightsError, match=message):
        read(tmp_path / name)


def test_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "gone")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(WeightsError, match=r"there is no file .*/model\.safetensors: give the path"):
            read(path)


@pytest.mark.parametrize(("names", "held"), [([], "nothing"), (["b.pt", "a.txt"], r"a\.txt, b\.pt")])
def test_a_folder_without_weights_says_what_it_holds(tmp_path, names, held):
    for name in names:
        (tmp_path / name).touch()
    message = rf"is a folder without weights: it holds {held}, expected one of {', '.join(WEIGHT_FILES)}\. Give the"
    with pytest.raises(WeightsError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_a_folder_with_weights_in_several_files(tmp_path, name):
    for file in (name, "model-00001-of-00002.safetensors"):
        (tmp_path / file).touch()
    message = r"are split over several files: .*save them as one \(save_pretrained\(folder, max_shard_size='100GB'\)\)"
    with pytest.raises(IncompatibleCheckpoint, match=message):
        read(tmp_path)


def test_transformers_writes_such_a_folder(theirs, tmp_path):
    from transformers import CLIPModel

    CLIPModel.from_pretrained(theirs).save_pretrained(tmp_path, max_shard_size="200KB")
    with pytest.raises(IncompatibleCheckpoint, match="are split over several files"):
        read(tmp_path)


@contextmanager
def permissions(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


def without_privileges(function: Callable[..., Any], *arguments: object) -> Any:
    """What `function` returns to a user whom permissions bind; privileges are a thread's own on Linux."""

    def run() -> Any:
        drop_privileges()
        return function(*arguments)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


@pytest.mark.parametrize(
    ("locked", "given", "message"),
    [
        ("folder/model.safetensors", "folder/model.safetensors", r"model\.safetensors cannot be read"),
        ("folder/model.safetensors", "folder", r"model\.safetensors cannot be read"),
        ("folder", "folder", "the folder .*/folder cannot be read"),
        ("folder", "folder/model.safetensors", r"model\.safetensors cannot be read"),
    ],
)
def test_what_may_not_be_read(tmp_path, locked, given, message):
    write(both(), tmp_path / "folder" / "model.safetensors")
    with (
        permissions(tmp_path / locked, 0),
        pytest.raises(WeightsError, match=rf"{message} \(Permission denied\): see its permissions"),
    ):
        without_privileges(read, tmp_path / given)


def test_a_configuration_that_may_not_be_read(tmp_path):
    path = beside(saved(both(), tmp_path / "model.bin"), "open_clip_config.json", OPEN_CLIP)
    with (
        permissions(tmp_path / "open_clip_config.json", 0),
        pytest.raises(IncompatibleCheckpoint, match=r"open_clip_config\.json cannot be read \(.*Permission denied"),
    ):
        without_privileges(read, path)


# --- what is written ---


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Files end after `size` bytes, as on a disk that is full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("confirmed", "said"), [(True, METADATA), (False, {"format": "pt"})])
def test_what_is_written_is_read_and_says_what_it_knows(tmp_path, confirmed, said):
    path = tmp_path / "new" / "folder" / "model.safetensors"
    write(both(), path, confirmed)
    assert_equal(read(path).tensors, both())
    assert read(path).confirmed == ("its metadata" if confirmed else None)
    assert metadata(path) == said
    assert os.listdir(path.parent) == [path.name]


def test_metadata_has_what_the_model_takes_for_granted():
    assert METADATA == {"format": "pt", "activation": "quick_gelu", "head_width": "64"}


@pytest.mark.parametrize(
    "state",
    [in_transformers_names(both()), dict(build_model(checkpoints.clip()).named_parameters())],
    ids=["views", "parameters"],
)
def test_views_and_parameters_are_written_too(tmp_path, state):
    write(state, tmp_path / "model.safetensors")
    assert_equal(read_safetensors(tmp_path / "model.safetensors"), state)


@pytest.mark.parametrize("format", WRITERS)
def test_a_file_may_be_written_over_by_its_own_tensors(tmp_path, format):
    WRITERS[format](both(), tmp_path / "model")
    tensors = read(tmp_path / "model").tensors
    write(tensors, tmp_path / "model")
    assert_equal(tensors, both())
    assert_equal(read(tmp_path / "model").tensors, both())


def test_what_transformers_wrote_is_written_in_our_names(theirs, tmp_path):
    write(read(theirs).tensors, tmp_path / "model.safetensors")
    assert_equal(read_safetensors(tmp_path / "model.safetensors"), both())


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, size):
    write({"old": torch.ones(3)}, tmp_path / "model.safetensors")
    with full_disk(size), pytest.raises((OSError, SafetensorError), match="File too large"):
        write(both(), tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert_equal(read_safetensors(tmp_path / "model.safetensors"), {"old": torch.ones(3)})


def test_a_name_that_is_a_folders_leaves_nothing_else(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        write(both(), tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_folder_that_cannot_be_written_to_keeps_the_old_file(tmp_path):
    write({"old": torch.ones(3)}, tmp_path / "model.safetensors")
    with permissions(tmp_path, 0o555), pytest.raises((OSError, SafetensorError), match="Permission denied"):
        without_privileges(write, both(), tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert_equal(read_safetensors(tmp_path / "model.safetensors"), {"old": torch.ones(3)})


def test_a_checkpoint_says_whether_it_is_an_image_tower_alone():
    assert Checkpoint(Path("a"), "safetensors", tower(), None).is_image_tower
    assert not Checkpoint(Path("a"), "safetensors", both(), None).is_image_tower


# --- hashes ---


@pytest.fixture
def file(tmp_path) -> Path:
    """5 bytes, with no record beside them."""
    (tmp_path / "model.pt").write_bytes(b"first")
    return tmp_path / "model.pt"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def record(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256.json")


def change(path: Path, content: bytes, later: int = 0) -> None:
    """New content, with the old time of change, or `later` by so many nanoseconds."""
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + later))


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1])
def test_sha256_is_that_of_hashlib(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == known_sha256(tmp_path / "file") == digest(content)


def test_a_file_is_read_once_and_then_its_record(file):
    assert known_sha256(file) == digest(b"first")
    change(file, b"other")
    assert known_sha256(file) == digest(b"first")
    assert sha256(file) == digest(b"other")


@pytest.mark.parametrize(("content", "later"), [(b"longer", 0), (b"other", 1), (b"other", -1)])
def test_a_file_of_another_size_or_time_is_read_again(file, content, later):
    known_sha256(file)
    change(file, content, later)
    assert known_sha256(file) == digest(content)
    change(file, b"x" * len(content))  # and this is remembered
    assert known_sha256(file) == digest(content)


def test_a_file_that_changes_while_it_is_read_is_not_remembered(file, monkeypatch):
    def changing(path: Path) -> str:
        found = sha256(path)
        change(path, b"other", later=1)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(hashes, "sha256", changing)
        assert known_sha256(file) == digest(b"first")
    assert not record(file).exists()
    assert known_sha256(file) == digest(b"other")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"sha256": "0"}'])
def test_a_record_that_is_none_is_written_again(file, content):
    record(file).write_bytes(content)
    assert known_sha256(file) == digest(b"first")
    stat = file.stat()
    written = {"sha256": digest(b"first"), "size": 5, "mtime_ns": stat.st_mtime_ns}
    assert json.loads(record(file).read_text()) == written


def test_a_record_without_a_hash_is_written_again(file):
    known_sha256(file)
    stamp = json.loads(record(file).read_text())
    del stamp["sha256"]
    record(file).write_text(json.dumps(stamp))
    assert known_sha256(file) == digest(b"first")


def test_nothing_but_the_record_is_left_beside_the_file(file):
    known_sha256(file)
    assert sorted(os.listdir(file.parent)) == [record(file).name, file.name]


def test_where_nothing_can_be_written_the_file_is_read_each_time(file):
    with permissions(file.parent, 0o555):
        for content in (b"first", b"other"):
            change(file, content)
            assert without_privileges(known_sha256, file) == digest(content)
    assert os.listdir(file.parent) == [file.name]


def test_on_a_full_disk_the_file_is_read_each_time_and_nothing_is_left(file):
    with full_disk(10):
        assert known_sha256(file) == digest(b"first")
    assert os.listdir(file.parent) == [file.name]


def test_forget_removes_the_record(file):
    known_sha256(file)
    change(file, b"other")
    forget(file)
    assert os.listdir(file.parent) == [file.name]
    forget(file)
    assert known_sha256(file) == digest(b"other")


def test_the_record_of_a_link_lies_beside_the_file_it_leads_to(file, tmp_path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "other.pt"
    link.symlink_to(file)
    assert known_sha256(link) == digest(b"first")
    assert os.listdir(link.parent) == [link.name] and record(file).exists()
    forget(link)
    assert not record(file).exists() and link.exists()


@pytest.mark.parametrize("function", [sha256, known_sha256])
def test_the_hash_of_no_file(tmp_path, function):
    with pytest.raises(FileNotFoundError, match=r"No such file .*none\.pt"):
        function(tmp_path / "none.pt")
