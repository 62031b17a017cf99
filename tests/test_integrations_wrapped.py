"""Towers that hooks, PEFT adapters, offloading or a compiler have changed."""

from __future__ import annotations

import pytest
import torch
from test_integrations import left, made, pixels, seen, small_clip, wake
from torch import nn
from torch.nn.utils import prune

from alpha_clip.integrations import add_alpha, alpha_weight, copy_tower, focus, from_pretrained, has_alpha, remove_alpha


def masked() -> torch.Tensor:
    return torch.cat([pixels(), left()], dim=1)


def patches_of(tower) -> nn.Module:
    return tower.get_input_embeddings()


# --- hooks ---


@pytest.mark.parametrize("name", ["clip_vision", "dinov3"])
def test_hooks_of_the_patch_embedding_stay_where_it_is_replaced_and_brought_back(name):
    tower, calls = made(name), []
    first = patches_of(tower).register_forward_hook(lambda *_: calls.append("first"))
    add_alpha(tower)
    second = patches_of(tower).register_forward_pre_hook(lambda *_: calls.append("second"))
    seen(tower, pixels())
    assert calls == ["second", "first"]
    first.remove()
    seen(tower, pixels())
    assert calls == ["second", "first", "second"]
    remove_alpha(tower)
    seen(tower, pixels())
    assert calls == ["second", "first", "second", "second"]
    second.remove()
    assert not patches_of(tower)._forward_pre_hooks and not patches_of(tower)._forward_hooks


def test_gradients_that_transformers_asks_for_at_the_input_are_still_there():
    """PEFT asks for them to checkpoint the blocks of a frozen tower."""
    tower = made("clip_vision").requires_grad_(False)
    tower.enable_input_require_grads()
    assert seen(add_alpha(tower).requires_grad_(False), pixels()).requires_grad


# --- what would be lost ---


def test_a_patch_embedding_that_is_not_its_own_any_more_is_refused():
    computed, other = made("clip_vision"), made("clip_vision")
    prune.l1_unstructured(patches_of(computed), "weight", 0.5)
    patches_of(other).forward = lambda pixels: pixels
    for tower in (computed, other):
        before = str(tower)
        with pytest.raises(ValueError, match="is Conv2d with another forward or a computed weight, expected a plain"):
            add_alpha(tower)
        assert str(tower) == before


def test_weights_that_are_not_there_yet_are_refused():
    with torch.device("meta"):
        empty = made("clip_vision")
    with pytest.raises(ValueError, match="has no values, its weight is on the meta device: add alpha when they are"):
        add_alpha(empty)
    for tower in (empty, made("clip_vision")):
        tower.encoder.to("meta")  # where offloaded weights are
        with pytest.raises(
            ValueError, match=r"CLIPVisionModel has no values in .* on the meta device: put the weights"
        ):
            copy_tower(small_clip().visual, tower)
        assert not has_alpha(tower)


@torch.no_grad()
def test_offloading_after_alpha_and_not_before():
    accelerate = pytest.importorskip("accelerate", reason='pip install "alpha-clip[diffusion]"')
    tower = wake(add_alpha(made("clip_vision")))
    expected = seen(tower, masked())
    accelerate.cpu_offload(tower, torch.device("cpu"))
    assert alpha_weight(tower).is_meta
    assert torch.equal(seen(tower, masked()), expected)
    with focus(tower, left()):
        assert torch.equal(seen(tower, pixels()), expected)
    before = accelerate.cpu_offload(made("clip_vision"), torch.device("cpu"))
    with pytest.raises(ValueError, match="its weight is on the meta device"):
        add_alpha(before)
    spread = accelerate.dispatch_model(made("clip_vision"), {"": "cpu"}, force_hooks=True)  # nothing is offloaded
    assert torch.equal(seen(wake(add_alpha(spread)), masked()), expected)


# --- adapters ---

with_adapters = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's


@with_adapters
@torch.no_grad()
def test_adapters_of_peft_beside_alpha(tmp_path):
    peft = pytest.importorskip("peft", reason='pip install "alpha-clip[test]"')
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["patch_embedding"])
    tower = peft.get_peft_model(add_alpha(made("clip_vision")), settings)
    trained = {name for name, p in tower.named_parameters() if p.requires_grad and "lora" not in name}
    assert {name.rpartition(".default.")[2] for name in trained} == {"weight", "alpha"}
    wake(tower)
    expected = seen(wake(add_alpha(made("clip_vision"))), masked())  # untrained adapters change nothing
    assert torch.equal(seen(tower, masked()), expected)
    with focus(tower, left()):
        assert torch.equal(seen(tower, pixels()), expected)
        with tower.disable_adapter():
            assert torch.equal(seen(tower, pixels()), seen(made("clip_vision"), pixels()))
    with pytest.raises(ValueError, match=r"has copies of .*patch_embedding.* for adapters: merge or unload them first"):
        remove_alpha(tower)

    tower.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(add_alpha(made("clip_vision")), tmp_path / "adapter")
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    for each in (merged, from_pretrained(type(merged), tmp_path / "merged").eval()):
        torch.testing.assert_close(seen(each, masked()), expected, rtol=1e-5, atol=1e-5)
    remove_alpha(merged)


@with_adapters
@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "saved"),
    [("dinov2", "projection"), ("dinov2", "patch_embeddings"), ("vit", "projection"), ("siglip", "patch_embedding")],
)
def test_the_copy_of_the_patch_embedding_that_is_in_use_counts(name, saved):
    """PEFT copies the convolution, or the module around it that counts channels."""
    peft = pytest.importorskip("peft", reason='pip install "alpha-clip[test]"')
    settings = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=[saved])
    plain, whole = made(name), seen(made(name), pixels())
    if not any(n.endswith("q_proj") for n, _ in plain.named_modules()):  # before transformers 5
        settings.target_modules = {"query", "value"}
    tower = peft.get_peft_model(add_alpha(plain), settings).eval()
    tower.add_adapter("second", settings)
    assert torch.equal(seen(tower, masked()), whole)  # zero as yet
    alphas = {}
    for i, adapter in enumerate(("default", "second")):
        tower.set_adapter(adapter)
        alphas[adapter] = alpha_weight(tower)
        alphas[adapter].fill_(0.01 * (i + 1))
        expected = made(name)
        alpha_weight(add_alpha(expected)).fill_(0.01 * (i + 1))
        expected = seen(expected, masked())
        assert torch.equal(seen(tower, masked()), expected)
        with focus(tower, left()):
            assert torch.equal(seen(tower, pixels()), expected)
            with tower.disable_adapter():
                assert not alpha_weight(tower).any()
                assert torch.equal(seen(tower, pixels()), whole)
    assert alphas["default"] is not alphas["second"]
    merged = tower.merge_and_unload()
    torch.testing.assert_close(seen(merged, masked()), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(seen(remove_alpha(merged), pixels()), whole)


@with_adapters
@torch.no_grad()
def test_weights_go_in_under_adapters():
    peft = pytest.importorskip("peft", reason='pip install "alpha-clip[test]"')
    model = small_clip()
    tower = peft.get_peft_model(made("clip_vision"), peft.LoraConfig(target_modules=["q_proj", "fc1"]))
    copy_tower(model.visual, tower)
    torch.testing.assert_close(seen(tower, masked()), model.visual.tokens(pixels(), left()), rtol=1e-5, atol=1e-5)


# --- a compiler ---


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", ["clip_vision", "dinov2", "vit"])
def test_a_compiled_tower_sees_each_mask_in_focus(name):
    tower = wake(add_alpha(made(name)))
    compiled = torch.compile(tower, backend="eager", fullgraph=True)
    assert torch.equal(seen(compiled, pixels()), seen(tower, pixels()))
    for alpha in (left(), -left(), left()):
        expected = seen(tower, torch.cat([pixels(), alpha], dim=1))
        assert torch.equal(seen(compiled, torch.cat([pixels(), alpha], dim=1)), expected)
        with focus(compiled, alpha):
            assert torch.equal(seen(compiled, pixels()), expected)
    torch.compiler.reset()
