"""`load` and `available_models`: OpenAI's signature, and what is refused."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from pathlib import Path

import checkpoints
import pytest
import torch
from torch import Tensor

import alpha_clip
from alpha_clip import catalogue, weights
from alpha_clip.api import available_models, load
from alpha_clip.checkpoints import METADATA
from alpha_clip.checkpoints import write as save
from alpha_clip.errors import MasksIgnored, TunedTower, WeightsError, WordsNeverRead, ZeroAlpha
from alpha_clip.hashes import sha256
from alpha_clip.model import CLIP
from alpha_clip.sources import KnownFile
from alpha_clip.tokenizer import tokenize
from alpha_clip.transforms import Preprocess

SIZE = checkpoints.SIZE
BLIND = "has alpha weights of zero here: it is plain CLIP, and ignores every mask.*alpha_vision_ckpt_pth="


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return checkpoints.write_tiny(tmp_path_factory.mktemp("assets"))


@pytest.fixture
def assets(folder, monkeypatch) -> Path:
    """A folder with a small random "tiny", in place of the bundled one."""
    monkeypatch.setattr(weights, "ASSETS", folder)
    return folder


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def mask() -> Tensor:
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[4:20, 8:24] = True
    return mask


def alpha_weight(model: CLIP) -> Tensor:
    return model.visual.conv1_alpha.weight


# --- the signature ---


def test_the_signature_is_clips_and_two_keywords():
    parameters = inspect.signature(load).parameters
    positional = {k: p.default for k, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    keywords = {k: p.default for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert list(positional) == ["name", "device", "jit", "download_root"]  # the order of clip.load
    assert [*positional.values()][1:] == [None, False, None]
    assert keywords == {"alpha_vision_ckpt_pth": "auto", "dtype": None, "trust": False}


def test_available_models_begin_with_the_bundled_one():
    assert available_models() == ["tiny", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"]


def test_load_returns_a_model_and_its_preprocess(assets):
    model, preprocess = load("tiny", "cpu")
    assert isinstance(model, CLIP) and isinstance(preprocess, Preprocess)
    assert preprocess.n == model.visual.input_resolution == SIZE


def test_the_model_is_in_eval_mode_with_gradients_enabled(assets):
    model, _ = load("tiny", "cpu")
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("device", ["alpha.pth", "weights/alpha.pt", "alpha.safetensors", Path("alpha.pth")])
def test_a_second_positional_that_is_a_checkpoint_is_refused(device):
    message = rf"device is '{device}', a file.*as in clip\.load.*load\('tiny', alpha_vision_ckpt_pth='{device}'\)"
    with pytest.raises(TypeError, match=message):
        load("tiny", device)


def test_a_second_positional_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "epoch_8"
    path.touch()
    with pytest.raises(TypeError, match=r"device is .*epoch_8', a file.*alpha_vision_ckpt_pth="):
        load("tiny", str(path))


def test_jit_is_refused():
    with pytest.raises(ValueError, match=r"jit=True is not supported.*torch\.compile\(model\)"):
        load("tiny", "cpu", True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, "float16"])
def test_a_dtype_that_is_not_floating_is_refused(dtype):
    with pytest.raises(TypeError, match=rf"dtype is '?{dtype}'?, expected a floating torch\.dtype"):
        load("tiny", "cpu", dtype=dtype)


# --- device and dtype ---


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_device_that_is_not_in_this_computer_is_refused_before_any_weights_are_looked_for():
    with pytest.raises(ValueError, match="device is 'cuda', which cannot be used here"):
        load("ViT-L/14", "cuda")


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("hpu", r", which cannot be used here \(.*\): pass '\w+', or leave it out$"),
        pytest.param(
            "mps",
            r", which cannot be used here \(.{,120}\): pass '\w+', or leave it out$",
            marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is MPS"),
        ),
        ("meta", ", which holds no values, expected one that computes: pass 'cpu'$"),
    ],
)
def test_a_device_without_its_software_or_without_values_is_refused_in_one_line(device, reason):
    with pytest.raises(ValueError, match=f"^device is '{device}'{reason}"):
        load("tiny", device)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", ""])
def test_a_device_that_torch_does_not_know_is_refused_before_any_weights_are_looked_for(device):
    with pytest.raises(ValueError, match=f"device is '{device}', expected 'cpu', 'cuda', 'cuda:1', 'mps' or None"):
        load("ViT-B/16", device)


@pytest.mark.parametrize(
    ("cuda", "mps", "device", "dtype"),
    [
        (True, True, "cuda", torch.float16),
        (True, False, "cuda", torch.float16),
        (False, True, "mps", torch.float32),
        (False, False, "cpu", torch.float32),
    ],
)
def test_the_default_device_is_chosen_at_call_time(assets, monkeypatch, cuda, mps, device, dtype):
    moves: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(CLIP, "to", lambda self, to: moves.append(to) or self)
    model, _ = load("tiny")
    assert moves == [] if device == "cpu" else [torch.device(device)]  # where the weights are already
    assert model.dtype == dtype


def test_float32_is_the_default_on_the_cpu(assets):
    model, _ = load("tiny", "cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_leaves_norms_and_embeddings_in_float32(assets, dtype):
    model, _ = load("tiny", "cpu", dtype=dtype)
    parameters = dict(model.named_parameters())
    kept = {k for k, p in parameters.items() if p.dtype == torch.float32}
    halved = {k for k, p in parameters.items() if p.dtype == dtype}
    assert kept == {k for k in parameters if "ln_" in k or "embedding" in k or k == "logit_scale"}
    assert halved == parameters.keys() - kept
    assert model.dtype == dtype


def test_float64_is_float64_throughout(assets):
    model, _ = load("tiny", "cpu", dtype=torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


# --- where the alpha weights come from ---


def test_auto_is_the_best_tag_and_a_path_is_the_same(assets):
    auto = load("tiny", "cpu")[0].state_dict()
    for given in ("scenes", assets / "tiny_alpha.safetensors", str(assets / "tiny_alpha.safetensors")):
        same = load("tiny", "cpu", alpha_vision_ckpt_pth=given)[0].state_dict()
        assert all(torch.equal(same[k], auto[k]) for k in auto)


def test_the_image_tower_is_the_alpha_files_and_the_text_tower_the_bases(assets):
    state = load("tiny", "cpu")[0].state_dict()
    for name, tensor in checkpoints.image_tower().items():
        assert torch.equal(state[f"visual.{name}"], tensor.half().float())
    for name, tensor in checkpoints.plain_clip(vocab_size=len(checkpoints.packed_clip()["token_ids"]) + 1).items():
        if not name.startswith(("visual.", "token_embedding")):
            assert torch.equal(state[name], tensor.half().float())


@pytest.mark.parametrize("none", [None, "None"])
def test_none_is_plain_clip(assets, none):
    with pytest.warns(ZeroAlpha, match=f"^tiny {BLIND}") as caught:
        model, _ = load("tiny", "cpu", alpha_vision_ckpt_pth=none)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert not alpha_weight(model).any()
    base = checkpoints.packed_clip()
    assert torch.equal(model.visual.conv1.weight, base["visual.conv1.weight"].float())


def test_the_first_masked_call_of_a_blind_model_warns_again(assets, picture, mask):
    with pytest.warns(ZeroAlpha, match=BLIND):
        model, _ = load("tiny", "cpu", alpha_vision_ckpt_pth=None)
    whole = model.encode_image(picture)
    with pytest.warns(MasksIgnored, match="every mask is ignored"):
        masked = model.encode_image(picture, mask)
    assert torch.equal(masked, whole)
    model.encode_image(picture, mask)  # once is enough


def test_alpha_weights_do_not_warn_and_look_at_the_mask(assets, picture, mask):
    model, _ = load("tiny", "cpu")
    assert not torch.allclose(model.encode_image(picture, mask), model.encode_image(picture), atol=1e-2)


def test_auto_without_released_alpha_weights_is_plain_clip(monkeypatch, tmp_path):
    path = write(checkpoints.plain_clip(), tmp_path / "b32.safetensors")
    monkeypatch.setitem(catalogue.BASES, "ViT-B/32", KnownFile(path.name, sha256(path)))
    with pytest.warns(ZeroAlpha, match=f"^ViT-B/32 {BLIND}"):
        model, _ = load("ViT-B/32", "cpu", download_root=str(tmp_path))
    assert not alpha_weight(model).any()


# --- names ---


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"])
def test_resnets_are_refused(name):
    with pytest.raises(RuntimeError, match=rf"{name} has a ResNet image tower.*image towers are ViTs.*ViT-B/16"):
        load(name, "cpu")


@pytest.mark.parametrize("name", ["ViT-H/14", "no_such_file", "vit-b/32"])
def test_an_unknown_name_lists_the_known_ones(name):
    message = rf"Model {name} not found; available models = \['tiny', 'ViT-B/32', .*'ViT-L/14@336px'\], or a path"
    with pytest.raises(RuntimeError, match=message):
        load(name, "cpu")


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(WeightsError, match=r"without weights: it holds notes\.txt, expected one of open"):
        load(str(tmp_path), "cpu")


# --- paths ---


def write(state: dict[str, Tensor], path: Path) -> Path:
    """As we write it ourselves, so that `load` has nothing to warn of."""
    if path.suffix == ".safetensors":
        save(state, path)
    else:
        torch.save({"model": state, "alpha_clip": METADATA}, path)
    return path


@pytest.mark.parametrize("file", ["model.pt", "model.safetensors"])
@pytest.mark.parametrize("as_type", [str, Path])
def test_a_path_loads_with_the_alpha_weights_inside(tmp_path, file, as_type):
    state = checkpoints.clip()
    model, preprocess = load(as_type(write(state, tmp_path / file)), "cpu")
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[k], state[k]) for k in state)
    assert preprocess.n == SIZE


@pytest.mark.parametrize("as_type", [str, Path])
def test_a_tilde_is_the_users_home(tmp_path, monkeypatch, as_type):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(checkpoints.plain_clip(), tmp_path / "base.safetensors")
    write(checkpoints.image_tower(), tmp_path / "alpha.safetensors")
    model, _ = load(as_type("~/base.safetensors"), "cpu", alpha_vision_ckpt_pth=as_type("~/alpha.safetensors"))
    assert alpha_weight(model).any()


@pytest.mark.parametrize("wrong", [3, True, b"model.pt"])
def test_what_is_no_name_is_refused(wrong):
    with pytest.raises(TypeError, match=f"^name is {type(wrong).__name__}, expected a name or a path"):
        load(wrong, "cpu")
    with pytest.raises(TypeError, match=f"^alpha_vision_ckpt_pth is {type(wrong).__name__}, expected a name or a path"):
        load("tiny", "cpu", alpha_vision_ckpt_pth=wrong)


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_folders_are_found_through_links_and_relative_paths(tmp_path, monkeypatch, slashes):
    write(checkpoints.clip(), tmp_path / "folder" / "model.safetensors")
    (tmp_path / "link").symlink_to("folder")
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "./folder", "link", "folder/../link"):
        assert alpha_weight(load(name + slashes, "cpu")[0]).any()


def test_none_zeroes_the_alpha_weights_inside_and_says_that_this_is_not_plain_clip(tmp_path):
    path = write(checkpoints.clip(), tmp_path / "model.pt")
    message = r"the alpha weights in .*model\.pt are set to zero here: .* not plain CLIP: the rest .* stays tuned"
    with pytest.warns(TunedTower, match=message) as caught:
        model, _ = load(str(path), "cpu", alpha_vision_ckpt_pth=None)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert not alpha_weight(model).any()
    assert torch.equal(model.visual.conv1.weight, checkpoints.clip()["visual.conv1.weight"])


def test_none_with_a_file_whose_alpha_weights_are_zero_is_plain_clip(tmp_path):
    path = write(checkpoints.blind_clip(), tmp_path / "model.pt")
    with pytest.warns(ZeroAlpha, match=BLIND):
        load(str(path), "cpu", alpha_vision_ckpt_pth=None)


def test_a_path_without_alpha_weights_is_plain_clip(tmp_path):
    path = write(checkpoints.plain_clip(), tmp_path / "finetuned.pt")
    with pytest.warns(ZeroAlpha, match=BLIND):
        model, _ = load(str(path), "cpu")
    assert not alpha_weight(model).any()


def test_a_path_with_alpha_weights_from_another(tmp_path):
    path = write(checkpoints.plain_clip(), tmp_path / "finetuned.pt")
    tower = write(checkpoints.authors_tower(), tmp_path / "alpha.pth")
    model, _ = load(str(path), "cpu", alpha_vision_ckpt_pth=tower)
    assert torch.equal(alpha_weight(model), checkpoints.image_tower()["conv1_alpha.weight"])


def test_openais_three_extra_tensors_are_dropped(tmp_path):
    extra = {"input_resolution": SIZE, "context_length": 77, "vocab_size": 100}
    state = checkpoints.clip() | {k: torch.tensor(v) for k, v in extra.items()}
    model, _ = load(str(write(state, tmp_path / "model.pt")), "cpu")
    assert model.state_dict().keys() == checkpoints.clip().keys()


def test_missing_and_unexpected_keys_are_reported_together(tmp_path):
    state = checkpoints.clip() | {"visual.extra": torch.zeros(1)}
    del state["ln_final.bias"]
    with pytest.raises(RuntimeError, match=r"ln_final\.bias: nothing there, .*; visual\.extra: \(1,\) there, nothing"):
        load(str(write(state, tmp_path / "model.pt")), "cpu")


def test_a_resnets_state_dict_is_refused(tmp_path):
    state = {"visual.layer1.0.conv1.weight": torch.zeros(1), "visual.conv1.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match="a ResNet image tower, and alpha-clip's image towers are ViTs"):
        load(str(write(state, tmp_path / "rn50.pt")), "cpu")


# --- the packed vocabulary ---


def unknown(*words: str) -> str:
    return rf"this model has never read {', '.join(map(repr, words))}: such words all mean the same to it"


def test_an_unknown_word_is_named(assets):
    model, _ = load("tiny", "cpu")
    with pytest.warns(WordsNeverRead, match=unknown("hippopotamus")):
        model.encode_text(tokenize(["a dog", "a hippopotamus, a cat."]))


def test_all_unknown_words_are_named_in_one_warning(assets):
    model, _ = load("tiny", "cpu")
    with pytest.warns(WordsNeverRead, match=unknown("brown", "giraffe", "zebra")) as caught:
        model.encode_text(tokenize(["a brown zebra.", "a giraffe"]))
    assert len(caught) == 1


def test_unknown_words_all_mean_the_same(assets):
    model, _ = load("tiny", "cpu")
    with pytest.warns(WordsNeverRead, match=unknown("giraffe", "zebra")):
        features = model.encode_text(tokenize(["a zebra", "a giraffe", "a dog"]))
    assert torch.equal(features[0], features[1])
    assert not torch.allclose(features[0], features[2], atol=1e-3)


@pytest.mark.parametrize("texts", ["a dog", ["a dog, a cat.", "a", ""]])
def test_known_words_and_padding_do_not_warn(assets, texts):
    load("tiny", "cpu")[0].encode_text(tokenize(texts))


def test_ids_of_any_shape_are_checked(assets):
    zebra = tokenize("zebra")[0, 1]
    for ids in (zebra, zebra[None], zebra[None, None, None]):
        embedding = load("tiny", "cpu")[0].token_embedding
        with pytest.warns(WordsNeverRead, match=unknown("zebra")):
            embedding(ids)
        embedding(ids)  # each word is told of once
    assert embedding(torch.zeros(0, 77, dtype=torch.int32)).shape == (0, 77, 64)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_the_warning_survives_a_copy(assets, duplicate):
    model = duplicate(load("tiny", "cpu")[0])
    with pytest.warns(WordsNeverRead, match=unknown("zebra")):
        model.encode_text(tokenize("a zebra"))


def test_no_warning_and_no_graph_break_under_compile(assets):
    embedding = load("tiny", "cpu")[0].token_embedding
    tokens = tokenize("a zebra")
    compiled = torch.compile(embedding, backend="eager", fullgraph=True)(tokens)  # the warning would be an error here
    with pytest.warns(WordsNeverRead, match=unknown("zebra")):
        assert torch.equal(compiled, embedding(tokens))


def test_a_full_vocabulary_does_not_warn(tmp_path):
    path = write(checkpoints.clip(vocab_size=49408), tmp_path / "model.pt")
    load(str(path), "cpu")[0].encode_text(tokenize("a zebra"))


# --- the bundled model itself ---


@pytest.fixture(scope="module")
def tiny():
    return load("tiny", "cpu")


def test_tiny_has_clips_vocabulary_and_context(tiny):
    model, preprocess = tiny
    assert (model.vocab_size, model.context_length) == (49408, 77)
    assert preprocess.n == model.visual.input_resolution


def test_tiny_loads_without_a_warning_and_is_not_blind(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, preprocess = load("tiny", "cpu")
    assert alpha_weight(model).any()
    left = torch.zeros(preprocess.n, preprocess.n, dtype=torch.bool)
    left[:, : preprocess.n // 2] = True
    noise = torch.randn(1, 3, preprocess.n, preprocess.n, generator=torch.Generator().manual_seed(0))
    features = torch.nn.functional.normalize(model.encode_image(noise, torch.stack([left, ~left])), dim=-1)
    assert features[0] @ features[1] < 0.99


def test_tiny_has_read_the_words_of_its_world(tiny):
    model, _ = tiny
    model.encode_text(tokenize(["a dog", "a photo of a red car.", "an umbrella"]))


def test_tiny_text_tower_is_the_bases(tiny):
    with pytest.warns(ZeroAlpha, match=BLIND):
        base, _ = load("tiny", "cpu", alpha_vision_ckpt_pth=None)
    tokens = tokenize(["a dog", "a cat"])
    assert torch.equal(base.encode_text(tokens), tiny[0].encode_text(tokens))


def test_the_package_level_load_is_this_one():
    assert alpha_clip.load is load and alpha_clip.available_models is available_models
