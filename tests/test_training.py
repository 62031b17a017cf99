"""The training code: order, masks, objective and loop."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alpha_clip.model import ALPHA_MEAN, ALPHA_STD, CLIP, FOREGROUND
from alpha_clip.scenes import draw_scene
from alpha_clip.training import Sample, TrainConfig, fit, masks
from alpha_clip.training.data import Order, batches, collate
from alpha_clip.training.loop import batch_loss
from alpha_clip.training.loss import contrastive_loss, distillation_loss
from alpha_clip.training.optim import learning_rate_factor, make_optimizers

SIZE = 16
WORDS = ["red", "green", "blue"]


def tiny_model(seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    return CLIP(32, SIZE, 2, 64, 8, 8, 8, 64, 1, 1)


def words_to_ids(texts):
    """Start 5, one id for the word, end 7."""
    return torch.tensor([[5, WORDS.index(t) + 1, 7] for t in texts])


class Halves:
    """Two colours side by side: which one is meant, only the mask says."""

    def __init__(self, length: int = 512) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[Sample]:
        rng = np.random.default_rng(index)
        left, right = rng.permutation(3)[:2]
        image = torch.zeros(3, SIZE, SIZE)
        image[left, :, : SIZE // 2] = 1
        image[right, :, SIZE // 2 :] = 1
        mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
        mask[..., : SIZE // 2] = True
        return [
            Sample(image, WORDS[colour], (m.float() - ALPHA_MEAN) / ALPHA_STD)
            for colour, m in ((left, mask), (right, ~mask))
        ]


def config(**settings) -> TrainConfig:
    return TrainConfig(**({"steps": 4, "batch_size": 8, "workers": 0, "warmup": 2, "lr": 1e-3} | settings))


# ---- config


@pytest.mark.parametrize("name", ["steps", "batch_size", "checkpoint_every"])
def test_config_refuses_zero(name):
    with pytest.raises(ValueError, match=rf"TrainConfig\.{name} is 0, expected at least 1"):
        TrainConfig(**({"steps": 1} | {name: 0}))


def test_config_refuses_an_unknown_optimizer():
    with pytest.raises(ValueError, match=r"TrainConfig\.optimizer is 'sgd', expected 'adamw' or 'muon'"):
        TrainConfig(1, optimizer="sgd")


def test_config_refuses_negative():
    with pytest.raises(ValueError, match=r"TrainConfig\.lr is -1, expected at least 0"):
        TrainConfig(1, lr=-1)


# ---- data


def test_order_visits_every_item_once_an_epoch_and_shuffles_each_anew():
    order = list(Order(10, seed=3, start=0, stop=30))
    epochs = [order[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("start", [0, 1, 9, 10, 17, 30])
def test_order_resumes_where_it_stopped(start):
    assert list(Order(10, 3, start, 30)) == list(Order(10, 3, 0, 30))[start:]


def test_order_depends_on_the_seed():
    assert list(Order(10, 1, 0, 10)) != list(Order(10, 2, 0, 10))


def test_collate_numbers_the_different_texts():
    image = torch.zeros(3, 4, 4)
    alpha = torch.full((1, 4, 4), -FOREGROUND)
    batch = collate([Sample(image, "A  cat", alpha), [Sample(image, "dog"), Sample(image, "a cat ")]])
    assert batch.texts == ["a cat", "dog"]
    assert batch.text_of.tolist() == [0, 1, 0]
    assert batch.whole.tolist() == [False, True, True]
    assert batch.alpha[0].eq(-FOREGROUND).all()
    assert batch.alpha[1].eq(FOREGROUND).all()


def test_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="the training set is empty"):
        batches(Halves(0), config(), 0)


# ---- masks

OBJECT = draw_scene(5, 64, objects=(1, 1), scale=(0.4, 0.6)).regions[0]


def test_box_fills_the_bounds():
    x0, y0, x1, y1 = OBJECT.box
    expected = np.zeros((64, 64), np.float32)
    expected[y0:y1, x0:x1] = 1
    assert np.array_equal(masks.box(OBJECT.mask), expected)
    assert masks.bounds(OBJECT.mask) == OBJECT.box


def test_ellipse_touches_the_bounds_and_has_an_ellipse_s_area():
    ellipse, box = masks.ellipse(OBJECT.mask), masks.box(OBJECT.mask)
    assert ellipse.sum() / box.sum() == pytest.approx(np.pi / 4, rel=0.03)
    assert np.all(ellipse <= box)
    x0, y0, x1, y1 = OBJECT.box
    assert all(side.any() for side in (ellipse[y0], ellipse[y1 - 1], ellipse[:, x0], ellipse[:, x1 - 1]))


def test_jitter_stays_near_and_within_range():
    rng = np.random.default_rng(0)
    for _ in range(50):
        jittered = masks.jitter(OBJECT.mask, rng)
        assert jittered.shape == OBJECT.mask.shape
        assert jittered.dtype == np.float32
        assert jittered.min() >= 0 and jittered.max() <= 1
        both = np.minimum(jittered, OBJECT.mask).sum() / np.maximum(jittered, OBJECT.mask).sum()
        assert both > 0.3


def test_lay_over_puts_the_silhouette_into_the_bounds():
    ring = np.zeros((32, 32), np.float32)
    ring[4:20, 6:30] = 1
    ring[8:16, 12:24] = 0
    laid = masks.lay_over(ring, OBJECT.mask)
    x0, y0, x1, y1 = OBJECT.box
    assert masks.bounds(laid) == OBJECT.box
    assert laid[(y0 + y1) // 2, (x0 + x1) // 2] == 0


@pytest.mark.parametrize("change", [masks.box, masks.ellipse, lambda m: masks.lay_over(m, OBJECT.mask)])
def test_masks_of_nothing_are_refused(change):
    with pytest.raises(ValueError, match=r"no pixel above 0\.5"):
        change(np.zeros((64, 64), np.float32))


# ---- objective


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


def test_contrastive_loss_of_different_texts_is_clip_s():
    image, text, own = unit(6, 8), unit(6, 8, seed=1), torch.arange(6)
    logits = 10 * image @ text.T
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    assert torch.allclose(contrastive_loss(image, text, own, torch.tensor(10.0)), expected)


def test_equal_texts_are_not_negatives():
    """Against the definition, pair by pair."""
    image, text, text_of, scale = unit(5, 8), unit(3, 8, seed=1), torch.tensor([0, 1, 0, 2, 1]), 10.0
    total = 0.0
    for i, u in enumerate(text_of.tolist()):
        positive = scale * image[i] @ text[u]
        to_texts = torch.stack([scale * image[i] @ text[v] for v in range(3)])
        to_images = torch.stack([scale * image[j] @ text[u] for j in range(5) if j == i or text_of[j] != u])
        total += (to_texts.logsumexp(0) - positive + to_images.logsumexp(0) - positive) / 10
    assert torch.allclose(contrastive_loss(image, text, text_of, torch.tensor(scale)), total)


def test_distillation_loss_is_zero_for_equal_features():
    a = unit(4, 8)
    assert distillation_loss(a, a).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(a, -a).item() == pytest.approx(2, abs=1e-6)


# ---- optimizer


def test_frozen_text_tower_has_no_gradient_and_no_group():
    model = tiny_model()
    (optimizer,) = make_optimizers(model, config())
    trained = {id(p) for g in optimizer.param_groups for p in g["params"]}
    assert trained == {id(p) for p in model.visual.parameters()}
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"visual"}


def test_alpha_convolution_has_its_own_rate_and_gains_no_decay():
    model = tiny_model()
    (optimizer,) = make_optimizers(model, config(train_text=True, lr=1e-5, alpha_lr=1e-3))
    alpha, decayed, plain = optimizer.param_groups
    assert [p.shape for p in alpha["params"]] == [model.visual.conv1_alpha.weight.shape]
    assert alpha["lr"] == 1e-3 and decayed["lr"] == plain["lr"] == 1e-5
    undecayed = {id(p) for p in plain["params"]}
    for name, p in model.named_parameters():
        spared = p.ndim < 2 or "embedding" in name
        assert (id(p) in undecayed) == spared, name
    assert plain["weight_decay"] == 0


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = tiny_model()
    adamw, muon = make_optimizers(model, config(optimizer="muon", train_text=True))
    trained = [{id(p) for g in o.param_groups for p in g["params"]} for o in (adamw, muon)]
    for name, p in model.named_parameters():
        assert (id(p) in trained[1]) == ("resblocks" in name and p.ndim == 2), name
        assert (id(p) in trained[0]) != (id(p) in trained[1]), name


def test_learning_rate_warms_up_and_ends_near_zero():
    settings = config(steps=100, warmup=10)
    factors = [learning_rate_factor(s, settings) for s in range(100)]
    assert factors[0] == 0.1 and max(factors) == factors[10] == 1
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[-1] < 1e-3


# ---- loop


CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_training_learns_to_follow_the_mask(device):
    model = tiny_model().to(device)
    before = {n: p.clone() for n, p in model.named_parameters()}
    settings = config(steps=60, batch_size=16, lr=1e-3, alpha_lr=1e-2, train_text=True)
    fit(model, Halves(), settings, tokenize=words_to_ids)
    assert not model.training
    model.cpu()
    batch = collate([Halves()[i] for i in range(1000, 1100)])
    with torch.no_grad():
        text = F.normalize(model.encode_text(words_to_ids(batch.texts)), dim=-1)
        named = (F.normalize(model.encode_image(batch.image, batch.alpha), dim=-1) @ text.T).argmax(dim=1)
    assert (named == batch.text_of).float().mean() > 0.95  # without the mask: one half at best
    assert not torch.equal(before["text_projection"].cpu(), model.text_projection)


def test_frozen_text_tower_does_not_move():
    model = tiny_model()
    before = {n: p.clone() for n, p in model.named_parameters()}
    fit(model, Halves(), config(alpha_lr=1e-2), tokenize=words_to_ids)
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"visual"}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_stopped_run_resumes_to_the_bit(optimizer, tmp_path, monkeypatch):
    settings = config(steps=6, checkpoint_every=2, distill=1.0, optimizer=optimizer)
    straight = fit(tiny_model(), Halves(20), settings, tmp_path / "straight.pt", tokenize=words_to_ids)

    calls = itertools.count()

    def stop_at_fourth(*args):
        if next(calls) == 3:
            raise KeyboardInterrupt("Ctrl-C")
        return batch_loss(*args)

    monkeypatch.setattr("alpha_clip.training.loop.batch_loss", stop_at_fourth)
    with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
        fit(tiny_model(), Halves(20), settings, tmp_path / "stopped.pt", tokenize=words_to_ids)
    monkeypatch.undo()
    assert torch.load(tmp_path / "stopped.pt", weights_only=True)["step"] == 2
    resumed = fit(tiny_model(), Halves(20), settings, tmp_path / "stopped.pt", tokenize=words_to_ids)
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not list(tmp_path.glob("*.part"))


def test_checkpoint_of_other_settings_is_refused(tmp_path):
    fit(tiny_model(), Halves(20), config(), tmp_path / "run.pt", tokenize=words_to_ids)
    with pytest.raises(ValueError, match=r"other settings \(seed: 0 there, 1 here\): name another checkpoint"):
        fit(tiny_model(), Halves(20), config(seed=1), tmp_path / "run.pt", tokenize=words_to_ids)


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    fit(tiny_model(), Halves(20), config(steps=2), path, tokenize=words_to_ids)
    model = tiny_model()
    model.visual.class_embedding.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0: lower the learning rate"):
        fit(model, Halves(20), config(steps=2), tmp_path / "other.pt", tokenize=words_to_ids)
    assert not (tmp_path / "other.pt").exists()
    assert torch.load(path, weights_only=True)["step"] == 2


def test_distillation_keeps_whole_pictures_near_the_start():
    def drift(weight: float) -> float:
        model, start = tiny_model(), tiny_model()
        images = torch.stack([Halves()[i][0].image for i in range(64)])

        class Whole(Halves):
            def __getitem__(self, index):
                first, second = super().__getitem__(index)
                return [first, second, Sample(first.image, first.text)]

        fit(model, Whole(), config(steps=30, alpha_lr=1e-2, distill=weight), tokenize=words_to_ids)
        with torch.no_grad():
            return distillation_loss(
                F.normalize(model.visual(images), dim=-1), F.normalize(start.visual(images), dim=-1)
            )

    assert drift(20.0) < drift(0.0) / 2
