"""Alpha weights from folders, under the options of the libraries' own `from_pretrained`."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from test_integrations import left, made, pixels, seen, wake
from torch import nn

from alpha_clip.integrations import add_alpha, alpha_weight, from_pretrained, has_alpha

transformers = pytest.importorskip("transformers", reason='pip install "alpha-clip[test]"')


def test_alpha_comes_from_the_format_that_is_asked_for(tmp_path):
    """The two formats in the folder hold different weights."""
    tower = wake(add_alpha(made("clip_vision")))
    tower.save_pretrained(tmp_path)
    expected = alpha_weight(tower).detach().clone()
    torch.save({name: 2 * tensor for name, tensor in tower.state_dict().items()}, tmp_path / "pytorch_model.bin")
    for chosen, times in ((None, 1), (True, 1), (False, 2)):
        again = from_pretrained(type(tower), tmp_path, use_safetensors=chosen)
        assert torch.equal(alpha_weight(again), times * expected)
        assert torch.equal(again.pre_layrnorm.weight, times * tower.pre_layrnorm.weight)
    torch.save(made("clip_vision").state_dict(), tmp_path / "pytorch_model.bin")
    assert not alpha_weight(from_pretrained(type(tower), tmp_path, use_safetensors=False)).any()


def test_with_what_was_loaded_comes_what_was_not(tmp_path):
    tower = wake(add_alpha(made("clip_projected")))
    tower.save_pretrained(tmp_path)
    again, info = from_pretrained(type(tower), tmp_path, output_loading_info=True)
    assert torch.equal(alpha_weight(again), alpha_weight(tower))
    assert not info["unexpected_keys"] and not info["missing_keys"]
    masked = torch.cat([pixels(), left()], dim=1)
    assert torch.equal(seen(again.eval(), masked), seen(tower, masked))
    tower.register_parameter("other", nn.Parameter(torch.zeros(1)))
    tower.save_pretrained(tmp_path)
    _, info = from_pretrained(type(tower), tmp_path, output_loading_info=True)
    assert set(info["unexpected_keys"]) == {"other"}


# --- parts of a pipeline that are passed ---


@pytest.fixture
def small(monkeypatch):
    pytest.importorskip("diffusers", reason='pip install "alpha-clip[diffusion]"')
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples" / "pipelines"))
    return importlib.import_module("small")


def plain_encoder(small):
    torch.manual_seed(0)
    return transformers.CLIPVisionModelWithProjection(small.vision_config()).eval()


def encoder(small):
    tower = wake(add_alpha(plain_encoder(small)))
    alpha_weight(tower).data *= 2  # different from the pipeline's
    return tower


def test_a_part_that_is_passed_keeps_its_alpha(small, tmp_path):
    pipe = small.image_variation()
    kind = type(pipe)
    pipe.save_pretrained(tmp_path / "plain")
    wake(add_alpha(pipe.image_encoder))
    pipe.save_pretrained(tmp_path / "alpha")
    for folder in (tmp_path / "plain", tmp_path / "alpha"):
        own = encoder(small)
        before = alpha_weight(own).detach().clone()
        again = from_pretrained(kind, folder, image_encoder=own)
        assert again.image_encoder is own and torch.equal(alpha_weight(own), before)
    apart = from_pretrained(type(pipe.image_encoder), tmp_path / "alpha" / "image_encoder")
    again = from_pretrained(kind, tmp_path / "alpha", image_encoder=apart, safety_checker=None)
    assert torch.equal(alpha_weight(again.image_encoder), alpha_weight(pipe.image_encoder))


def test_a_part_that_is_passed_without_alpha(small, tmp_path):
    pipe = small.image_variation()
    kind = type(pipe)
    pipe.save_pretrained(tmp_path / "plain")
    again = from_pretrained(kind, tmp_path / "plain", image_encoder=plain_encoder(small))
    assert not alpha_weight(again.image_encoder).any()
    wake(add_alpha(pipe.image_encoder))
    pipe.save_pretrained(tmp_path / "alpha")
    plain = plain_encoder(small)
    with pytest.raises(ValueError, match=r"the image_encoder that is passed has no alpha channel, and .*alpha weights"):
        from_pretrained(kind, tmp_path / "alpha", image_encoder=plain)
    assert not has_alpha(plain)


def test_a_part_that_the_folder_has_not(small, tmp_path):
    """Many Stable Diffusion folders lack the image encoder that an IP-Adapter needs."""
    pipe = small.stable_diffusion()
    kind = type(pipe)
    pipe.register_modules(image_encoder=None)
    pipe.save_pretrained(tmp_path)
    own = encoder(small)
    before = alpha_weight(own).detach().clone()
    again = from_pretrained(kind, tmp_path, image_encoder=own)
    assert again.image_encoder is own and torch.equal(alpha_weight(own), before)
    with pytest.raises(ValueError, match="has no image_encoder: call add_alpha on the part that you mean"):
        from_pretrained(kind, tmp_path)
