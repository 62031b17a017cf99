"""Names and templates to classifier weights, against open_clip's builder and the loop of CLIP's notebook."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import alpha_clip
from alpha_clip import tokenize, zero_shot, zero_shot_classifier
from alpha_clip.model import build_model

pytestmark = pytest.mark.filterwarnings("ignore:this model has never read")  # tiny knows few words

NAMES = ["cat", "traffic light", "hot-air balloon", "{} in braces"]
TEMPLATES = ["a photo of a {}.", "{}", "there is a {} in the scene, seen from far away on a cloudy day."]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def tiny():
    return alpha_clip.load("tiny", device="cpu")[0]


@torch.no_grad()
def by_hand(model, names, templates):
    weights = []
    for name in names:
        features = model.encode_text(tokenize([template.replace("{}", name) for template in templates]))
        features /= features.norm(dim=-1, keepdim=True)
        mean = features.mean(dim=0)
        weights.append(mean / mean.norm())
    return torch.stack(weights)


@pytest.mark.parametrize("at_once", [1, 6, 1600])
def test_weights_are_those_of_clip_s_notebook(tiny, monkeypatch, at_once):
    monkeypatch.setattr(zero_shot, "_TEXTS", at_once)
    weights = zero_shot_classifier(tiny, NAMES, TEMPLATES)
    assert weights.shape == (4, 128) and not weights.requires_grad
    assert_close(weights, by_hand(tiny, NAMES, TEMPLATES), **TOLERANCE)
    assert_close(weights.norm(dim=-1), torch.ones(4), **TOLERANCE)


def test_weights_are_open_clip_s(tiny):
    open_clip = pytest.importorskip("open_clip", reason="pip install -e '.[test]'")

    class Theirs(torch.nn.Module):
        def encode_text(self, text, normalize):
            return F.normalize(tiny.encode_text(text), dim=-1) if normalize else tiny.encode_text(text)

    theirs = open_clip.build_zero_shot_classifier(Theirs(), tokenize, NAMES[:3], TEMPLATES)
    assert_close(zero_shot_classifier(tiny, NAMES[:3], TEMPLATES), theirs.T, **TOLERANCE)


def test_one_template_is_the_default(tiny):
    assert_close(zero_shot_classifier(tiny, NAMES), by_hand(tiny, NAMES, ["a photo of a {}."]), **TOLERANCE)


def test_the_80_templates_of_clip(tiny):
    open_clip = pytest.importorskip("open_clip", reason="pip install -e '.[test]'")
    templates = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert len(templates) == 80
    assert_close(zero_shot_classifier(tiny, ["cat"], "openai80"), by_hand(tiny, ["cat"], templates), **TOLERANCE)


def test_the_80_templates_need_open_clip(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match="pip install open_clip_torch"):
        zero_shot_classifier(tiny, ["cat"], "openai80")


@pytest.mark.parametrize("at_once", [1, 6, 1600])
def test_negatives_are_more_rows_at_the_end(tiny, monkeypatch, at_once):
    monkeypatch.setattr(zero_shot, "_TEXTS", at_once)
    weights = zero_shot_classifier(tiny, NAMES, TEMPLATES, negatives=("background", "object"))
    assert_close(weights, by_hand(tiny, [*NAMES, "background", "object"], TEMPLATES), **TOLERANCE)
    assert_close(weights[: len(NAMES)], zero_shot_classifier(tiny, NAMES, TEMPLATES), **TOLERANCE)


@pytest.mark.parametrize(
    ("negatives", "error", "message"),
    [
        (["object", "cat"], ValueError, "negatives repeats 'cat' of names, expected other things: leave it out"),
        ("background", TypeError, "negatives is 'background', expected a list of strings"),
        (None, TypeError, "negatives is None, expected a list of strings"),
        (["background", 3], TypeError, r"negatives\[1\] is int, expected a string"),
    ],
)
def test_what_is_wrong_with_negatives(tiny, negatives, error, message):
    with pytest.raises(error, match=message):
        zero_shot_classifier(tiny, NAMES, TEMPLATES, negatives=negatives)


def test_weights_have_the_dtype_of_the_model(tiny):
    half = build_model({name: value.bfloat16() for name, value in tiny.state_dict().items()})
    weights = zero_shot_classifier(half, NAMES, TEMPLATES)
    assert weights.dtype == torch.bfloat16
    assert_close(weights.float(), by_hand(tiny, NAMES, TEMPLATES), rtol=0, atol=2e-2)


def theirs_of(tiny, vocabulary=49408):
    """open_clip's model with the weights of `tiny`."""
    model = pytest.importorskip("open_clip.model", reason="pip install -e '.[test]'")
    vision = model.CLIPVisionCfg(layers=4, width=128, head_width=64, patch_size=8, image_size=48)
    text = model.CLIPTextCfg(context_length=77, vocab_size=vocabulary, width=128, heads=2, layers=2)
    theirs = model.CLIP(128, vision, text, quick_gelu=True)
    if vocabulary == 49408:
        theirs.load_state_dict({name: value for name, value in tiny.state_dict().items() if "alpha" not in name})
    return theirs.eval()


def test_a_model_of_open_clip_gives_the_same(tiny):
    weights = zero_shot_classifier(theirs_of(tiny), NAMES, TEMPLATES)
    assert not weights.requires_grad
    assert_close(weights, zero_shot_classifier(tiny, NAMES, TEMPLATES), **TOLERANCE)


def test_models_that_do_not_read_our_tokens_are_refused(tiny, transformers_model):
    with pytest.raises(TypeError, match=r"the model is CLIP with a vocabulary of 32000, .*build_zero_shot_classifier"):
        zero_shot_classifier(theirs_of(tiny, 32000), NAMES)
    with pytest.raises(
        TypeError, match=r"the model is CLIPModel, expected one from alpha_clip\.load or onnx\.load, or"
    ):
        zero_shot_classifier(transformers_model, NAMES)
    with pytest.raises(TypeError, match="the model is str, expected one"):
        zero_shot_classifier("tiny", NAMES)


def test_sentences_may_be_cut(tiny):
    names = ["cat " * 100, "cat " * 200]
    with pytest.raises(RuntimeError, match=r"too long for context length 77.*or pass truncate=True to cut it"):
        zero_shot_classifier(tiny, names)
    first, second = zero_shot_classifier(tiny, names, truncate=True)
    assert_close(first, second)


@pytest.mark.parametrize(
    ("names", "templates", "error", "message"),
    [
        ("cat", TEMPLATES, TypeError, "names is 'cat', expected a list of strings: put a single one in brackets"),
        (["cat"], "a {}", TypeError, "templates is 'a {}', expected a list of strings"),
        (5, TEMPLATES, TypeError, "names is 5, expected a list of strings"),
        ([], TEMPLATES, ValueError, "names is empty, expected one string or more"),
        (["cat"], [], ValueError, "templates is empty"),
        (["cat", 3], TEMPLATES, TypeError, r"names\[1\] is int, expected a string: convert it with str\(\)"),
        (["cat"], [len], TypeError, r"templates\[0\] is builtin_function_or_method, expected a string"),
        (["cat"], ["a {}", "a photo"], ValueError, "template 'a photo' has 0 places {}, expected 1"),
        (["cat"], ["{} and {}"], ValueError, "template '{} and {}' has 2 places {}, expected 1"),
        (["cat " * 80], TEMPLATES, RuntimeError, "too long for context length 77"),
    ],
)
def test_errors(tiny, names, templates, error, message):
    with pytest.raises(error, match=message):
        zero_shot_classifier(tiny, names, templates)
