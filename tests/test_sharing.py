"""`save` writes what `load` takes; the other half, `push_to_hub`, is tested with the Hub in test_sources."""

import os
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import checkpoints
import pytest
import torch
import torch.nn.utils.parametrize

import alpha_clip
from alpha_clip.model import build_model
from alpha_clip.sharing import save


@pytest.fixture
def model():
    return build_model(checkpoints.clip())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_saved_loads_again(model, tmp_path, dtype):
    assert save(model.to(dtype), tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["README.md", "model.safetensors"]
    loaded, preprocess = alpha_clip.load(str(tmp_path / "new" / "folder"), "cpu", dtype=torch.float32)
    assert preprocess.n == checkpoints.SIZE
    expected = model.float().state_dict()
    assert [k for k, v in loaded.state_dict().items() if not torch.equal(v, expected[k])] == []
    stored = alpha_clip.checkpoints.read(tmp_path / "new" / "folder")
    assert {v.dtype for v in stored.tensors.values()} == {dtype}
    assert stored.confirmed == "its metadata"


class Doubled(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def test_what_load_would_not_take_is_not_saved(model, tmp_path):
    torch.nn.utils.parametrize.register_parametrization(
        model.transformer.resblocks[0].attn.out_proj, "weight", Doubled()
    )
    with pytest.raises(
        ValueError, match=r"out_proj\.parametrizations.*: merge or remove parametrisations and adapters"
    ):
        save(model, tmp_path / "adapted")
    assert not (tmp_path / "adapted").exists()


def test_a_model_without_a_projection_is_not_saved(model, tmp_path):
    model.visual.proj = None
    with pytest.raises(ValueError, match=r"\(visual\.proj\)"):
        save(model, tmp_path / "headless")


def test_what_nothing_confirmed_stays_unconfirmed(tmp_path):
    torch.save(checkpoints.clip(), tmp_path / "model.pt")
    for path in (tmp_path / "model.pt", tmp_path / "saved"):
        with pytest.warns(UserWarning, match="nothing confirms"):
            loaded, _ = alpha_clip.load(path, "cpu")
        save(loaded, tmp_path / "saved")


def test_one_unconfirmed_file_of_two_leaves_the_model_unconfirmed(tmp_path):
    alpha_clip.checkpoints.write(checkpoints.plain_clip(), tmp_path / "base.safetensors")
    torch.save(checkpoints.authors_tower(), tmp_path / "alpha.pth")
    with pytest.warns(UserWarning, match="nothing confirms"):
        loaded, _ = alpha_clip.load(tmp_path / "base.safetensors", "cpu", alpha_vision_ckpt_pth=tmp_path / "alpha.pth")
    assert alpha_clip.checkpoints.read(save(loaded, tmp_path / "saved")).confirmed is None


# --- a small vocabulary ---


@pytest.fixture
def small(tmp_path):
    """A model that knows a few words."""
    state = checkpoints.packed_clip() | {f"visual.{k}": v.half() for k, v in checkpoints.image_tower().items()}
    alpha_clip.checkpoints.write(state, tmp_path / "small.safetensors")
    return alpha_clip.load(tmp_path / "small.safetensors", "cpu")[0]


def test_a_small_vocabulary_stays_small_and_warns(small, tmp_path):
    stored = alpha_clip.checkpoints.read(save(small, tmp_path / "saved")).tensors
    packed = checkpoints.packed_clip()
    assert torch.equal(stored["token_ids"], packed["token_ids"])
    assert torch.equal(stored["token_embedding.weight"], packed["token_embedding.weight"].float())
    loaded, _ = alpha_clip.load(tmp_path / "saved", "cpu")
    assert torch.equal(loaded.token_embedding.weight, small.token_embedding.weight)
    with pytest.warns(UserWarning, match="this model has never read 'zebra'"):
        loaded.encode_text(alpha_clip.tokenize("a zebra"))


def test_words_learned_since_are_saved_too(small, tmp_path):
    ids = alpha_clip.tokenize("a zebra, a giraffe.")
    with torch.no_grad():
        small.token_embedding.weight[ids[0, 2]] += 1  # zebra
    loaded, _ = alpha_clip.load(save(small, tmp_path / "saved"), "cpu")
    assert torch.equal(loaded.token_embedding.weight, small.token_embedding.weight)
    assert set(loaded.known_tokens.tolist()) == {*small.known_tokens.tolist(), int(ids[0, 2])}


def test_the_bundled_model_saves_as_small_as_it_is(tmp_path):
    model, _ = alpha_clip.load("tiny", "cpu")
    assert (save(model, tmp_path) / "model.safetensors").stat().st_size < 10e6
    loaded, _ = alpha_clip.load(tmp_path, "cpu")
    assert [k for k, v in loaded.state_dict().items() if not torch.equal(v, model.state_dict()[k])] == []


def test_the_card_says_what_the_model_is(model, tmp_path):
    card = (save(model, tmp_path / "birds") / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: alpha-clip\n")
    assert "# birds\n" in card
    assert f'alpha_clip.load("{tmp_path}/birds")' in card
    assert "| image tower | 32 x 32 pixels, patches of 8, width 64, 2 blocks |" in card
    assert "| alpha weights | yes |" in card


def test_a_folder_may_be_given_in_any_way(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for given, folder in (("~/birds", tmp_path / "birds"), (".", tmp_path / "here"), ("fish/", tmp_path / "here/fish")):
        save(model, given)
        assert f"# {folder.name}\n" in (folder / "README.md").read_text()
        alpha_clip.load(folder, "cpu")


def test_the_card_of_a_blind_model_says_so(tmp_path):
    card = (save(build_model(checkpoints.blind_clip()), tmp_path) / "README.md").read_text()
    assert "all zero: this is plain CLIP, which ignores masks" in card


def test_a_card_that_is_there_stays_and_weights_are_replaced(model, tmp_path):
    (tmp_path / "README.md").write_text("my own words")
    save(build_model(checkpoints.clip(1)), tmp_path)
    save(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"
    loaded, _ = alpha_clip.load(str(tmp_path), "cpu")
    assert torch.equal(loaded.text_projection, model.text_projection)


def test_weights_that_would_be_read_in_place_of_these_are_an_error(model, tmp_path):
    (tmp_path / "open_clip_model.safetensors").touch()
    with pytest.raises(FileExistsError, match=r"open_clip_model\.safetensors already exists, which load would read"):
        save(model, tmp_path)


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "safetensors"])
def test_the_name_of_a_file_is_no_folder(model, tmp_path, suffix):
    with pytest.raises(ValueError, match=rf"folder is '.*birds\.{suffix}', a file's name.* Give '.*/birds', or torch"):
        save(model, tmp_path / f"birds.{suffix}")
    assert os.listdir(tmp_path) == []
    (tmp_path / f"birds.{suffix}").mkdir()  # somebody's folder may be called as they like
    save(model, tmp_path / f"birds.{suffix}")


def test_only_our_models_are_saved(model, tmp_path):
    for save_or_push in (save, alpha_clip.push_to_hub):
        with pytest.raises(TypeError, match=r"model is VisionTransformer, expected what alpha_clip\.load returns"):
            save_or_push(model.visual, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def save_with_a_full_disk(folder: str) -> None:
    """Files end after 20 kB, as on a disk that is full then."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    save(build_model(checkpoints.clip(1)), folder)


def test_a_full_disk_leaves_the_old_weights(model, tmp_path):
    save(model, tmp_path)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool, pytest.raises(Exception, match="File too large"):
        pool.submit(save_with_a_full_disk, str(tmp_path)).result()
    assert sorted(os.listdir(tmp_path)) == ["README.md", "model.safetensors"]
    loaded, _ = alpha_clip.load(str(tmp_path), "cpu")
    assert torch.equal(loaded.text_projection, model.text_projection)
