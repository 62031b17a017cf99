"""Exported models against the model in torch, and what keeps their files whole."""

import copy
import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import alpha_clip
from alpha_clip.errors import IncompatibleCheckpoint, MasksIgnored, WeightsError, WordsNeverRead, ZeroAlpha
from alpha_clip.model import CLIP, FOREGROUND

onnx = pytest.importorskip("onnx", reason='pip install "alpha-clip[onnx]"')
pytest.importorskip("onnxruntime", reason='pip install "alpha-clip[onnx]"')

from alpha_clip.onnx import OnnxCLIP, export, load  # noqa: E402
from alpha_clip.onnx.__main__ import main  # noqa: E402
from alpha_clip.onnx.graph import IR_VERSION, OPSET  # noqa: E402

PARITY = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture
def folder(model, shelf) -> Path:
    """`model` exported, once for all tests: it has the same weights in each."""
    if not (shelf / "served").exists():
        export(model, shelf / "served", name="small")
    return shelf / "served"


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "served"))


@pytest.fixture
def served(folder) -> OnnxCLIP:
    return load(folder, threads=1)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "served"
    main(["tiny", "--out", str(folder)])
    return folder


# --- parity ---


@pytest.mark.parametrize(("images", "masks"), [(1, 1), (1, 3), (3, 1), (3, 3), (2, 2), (0, 1), (1, 0), (0, 0)])
@torch.no_grad()
def test_image_features_are_the_model_s_for_every_pair_of_batches(model, served, images, masks):
    generator = torch.Generator().manual_seed(images + 10 * masks)
    image = torch.randn(images, 3, 32, 32, generator=generator)
    mask = torch.rand(masks, 1, 32, 32, generator=generator) > 0.5
    features = served.encode_image(image, mask)
    assert len(features) == (max(images, masks) if images and masks else 0)
    assert_close(features, model.encode_image(image, mask), **PARITY)


@torch.no_grad()
def test_alpha_may_be_left_out_bool_or_floating_and_of_any_shape(model, served, images, masks):
    floats = torch.where(masks, FOREGROUND, -FOREGROUND)
    soft = floats * torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(3))
    for alpha in (None, masks, masks[0], masks[:, None], floats, floats[:1], soft, soft.double(), soft.half()):
        assert_close(served.encode_image(images, alpha), model.encode_image(images, alpha), **PARITY)
    assert_close(served.encode_image(images[0], masks[0]), model.encode_image(images[0], masks[0]), **PARITY)
    assert_close(served.encode_image(images.double()), model.encode_image(images), **PARITY)
    assert not torch.allclose(served.encode_image(images, masks), served.encode_image(images), atol=1e-2)


@pytest.mark.parametrize("length", range(1, 17))
@torch.no_grad()
def test_text_features_are_the_model_s_at_every_length(model, served, length):
    text = torch.randint(0, 511, (3, length), generator=torch.Generator().manual_seed(length))
    text[0, -1] = text[1, length // 2] = 511  # the third has no end: its highest id is read
    assert_close(served.encode_text(text), model.encode_text(text), **PARITY)


@pytest.mark.parametrize("count", range(5))
@torch.no_grad()
def test_text_features_are_the_model_s_for_every_batch(model, served, tokens, count):
    for dtype in (torch.int32, torch.int64, torch.int16):
        assert_close(served.encode_text(tokens[:count].to(dtype)), model.encode_text(tokens[:count]), **PARITY)


def test_the_first_of_equal_ends_is_read(model, served):
    text = torch.tensor([[5, 511, 7, 511, 0]])
    with torch.no_grad():
        assert_close(served.encode_text(text), model.encode_text(text[:, :2]), **PARITY)


def test_nothing_behind_the_longest_text_reaches_the_graph(served, tokens, monkeypatch):
    lengths = []

    class Session:
        def run(self, names, inputs):
            lengths.append(inputs["text"].shape[1])
            return [np.zeros((len(inputs["text"]), 64), np.float32)]

    monkeypatch.setattr(served, "_text", Session())
    served.encode_text(tokens[:2])
    served.encode_text(tokens)
    assert lengths == [6, 16]


@torch.no_grad()
def test_logits_are_the_model_s(model, served, images, masks, tokens):
    for ours, theirs in zip(served(images, tokens, masks), model(images, tokens, masks), strict=True):
        assert_close(ours, theirs, **PARITY)
    assert_close(served.logit_scale, model.logit_scale.detach())


def test_arrays_give_arrays_of_the_same_values(served, images, masks, tokens):
    pairs = [
        (served.encode_image(images.numpy(), masks.numpy()), served.encode_image(images, masks)),
        (served.encode_image(images.numpy()), served.encode_image(images)),
        (served.encode_text(tokens.numpy()), served.encode_text(tokens)),
        (served(images.numpy(), tokens.numpy(), masks.numpy())[1], served(images, tokens, masks)[1]),
    ]
    for array, tensor in pairs:
        assert isinstance(array, np.ndarray) and isinstance(tensor, torch.Tensor)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, tensor.numpy())


def test_arrays_may_be_read_only_and_of_any_strides(served, images, masks):
    array = images.numpy()[:, ::-1]
    locked = array.copy()
    locked.flags.writeable = False
    expected = served.encode_image(images.flip(1), masks.flip(2))
    np.testing.assert_array_equal(served.encode_image(array, masks.numpy()[:, :, ::-1]), expected.numpy())
    np.testing.assert_array_equal(served.encode_image(locked, masks.numpy()[:, :, ::-1]), expected.numpy())


def test_tensors_that_require_gradients_are_taken(served, images):
    assert not served.encode_image(images.clone().requires_grad_()).requires_grad


@torch.no_grad()
def test_a_tower_without_projection_is_exported_as_it_is(model, images, tmp_path):
    model.visual.proj = None
    export(model, tmp_path / "served")
    assert_close(load(tmp_path / "served").encode_image(images), model.encode_image(images), **PARITY)


@torch.no_grad()
def test_8_bit_weights_give_nearly_the_same_features(model, images, masks, tokens, tmp_path):
    similarities = export(model, tmp_path / "served", int8=True)
    served = load(tmp_path / "served")
    assert served.description.weights == "int8"
    for tower, ours, theirs in (
        ("image", served.encode_image(images, masks), model.encode_image(images, masks)),
        ("text", served.encode_text(tokens), model.encode_text(tokens)),
    ):
        assert torch.nn.functional.cosine_similarity(ours, theirs).min() > 0.998
        assert 0.998 < similarities[tower] < 1
        assert not torch.allclose(ours, theirs, atol=1e-4)  # they are not float32's


def test_8_bit_weights_have_a_scale_for_each_output(model, tmp_path):
    export(model, tmp_path / "served", int8=True)
    graph = onnx.load(tmp_path / "served" / "image.onnx").graph
    weights = [x for x in graph.initializer if x.data_type == onnx.TensorProto.INT8 and x.name.endswith("_quantized")]
    scales = {x.name: list(x.dims) for x in graph.initializer if x.name.endswith("_scale")}
    assert len(weights) == 3 * 6 + 1  # of each block, and the projection
    for weight in weights:
        assert scales[weight.name.replace("_quantized", "_scale")] == [weight.dims[1]]


def test_8_bit_weights_are_a_quarter_of_the_size(tmp_path, model, folder):
    export(model, tmp_path / "int8", int8=True)
    small, large = ((path / "image.onnx.data").stat().st_size for path in (tmp_path / "int8", folder))
    assert small < 0.3 * large


# --- tiny ---


def test_tiny_names_the_objects_of_the_sample(tiny_folder):
    assets = files("alpha_clip") / "assets"
    image, objects = (Image.open(str(assets / name)) for name in ("sample.png", "sample_masks.png"))
    served = load(tiny_folder)
    rgb, alpha = served.preprocess(image, [np.array(objects) == i for i in (1, 2, 3, 4)])
    text = alpha_clip.tokenize(["a cat", "a car", "a tree", "a balloon"])
    logits, _ = served(rgb, text, alpha)
    assert logits.argmax(dim=1).tolist() == [0, 1, 2, 3]
    model, _ = alpha_clip.load("tiny", "cpu")
    with torch.no_grad():
        assert_close(logits, model(rgb, text, alpha)[0], **PARITY)


def test_tiny_weighs_names_as_the_model_does(tiny_folder):
    weights = alpha_clip.zero_shot_classifier(load(tiny_folder), ["cat", "car"])
    assert_close(weights, alpha_clip.zero_shot_classifier(alpha_clip.load("tiny", "cpu")[0], ["cat", "car"]), **PARITY)


def test_tiny_warns_of_words_it_has_never_read(tiny_folder):
    served = load(tiny_folder)
    with pytest.warns(WordsNeverRead, match="this model has never read 'xylophone'"):
        served.encode_text(alpha_clip.tokenize(["a xylophone"]))
    served.encode_text(alpha_clip.tokenize(["a dog"]))  # and of no others


def test_the_command_says_what_it_made(tmp_path, capsys):
    main(["tiny", "--out", str(tmp_path / "served"), "--int8"])
    printed = capsys.readouterr().out
    assert printed.startswith("tiny in int8: ")
    assert printed.count("at least 0.999") == 2
    assert load(tmp_path / "served").description.name == "tiny"


def test_the_command_takes_alpha_weights(tmp_path):
    with pytest.warns(ZeroAlpha, match="alpha weights of zero"):
        main(["tiny", "--out", str(tmp_path / "served"), "--alpha", "None"])
    with pytest.warns(MasksIgnored, match="every mask is ignored"):
        load(tmp_path / "served")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lode", "--out", "served"], "Model lode not found"),
        (["tiny", "--out", "."], "already exists, and is not empty"),
    ],
)
def test_the_command_s_errors_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert message in capsys.readouterr().err


# --- what is refused ---


@pytest.mark.parametrize(
    ("image", "alpha", "error", "message"),
    [
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), None, TypeError, "image is torch.uint8, expected a floating"),
        (np.zeros((1, 3, 32, 32), np.int64), None, TypeError, "image is torch.int64, expected a floating"),
        ([[1.0]], None, TypeError, "image is list"),
        (torch.zeros(1, 4, 32, 32), None, ValueError, r"image is \(1, 4, 32, 32\), expected \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 40, 32), None, ValueError, r"image is \(1, 3, 40, 32\), .* exported for 32 x 32 pixels"),
        (torch.zeros(1, 3, 32, 32), torch.ones(1, 32, 32).int(), TypeError, "alpha is torch.int32, expected a bool"),
        (torch.zeros(1, 3, 32, 32), np.ones((32, 32), np.uint8), TypeError, "alpha is torch.uint8, expected a bool"),
        (torch.zeros(1, 3, 32, 32), torch.zeros(1, 24, 24), ValueError, r"alpha is \(1, 24, 24\), expected"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(3, 32, 32), ValueError, "2 images and 3 alphas"),
    ],
)
def test_images_and_masks_are_checked_as_the_model_s(served, image, alpha, error, message):
    with pytest.raises(error, match=message):
        served.encode_image(image, alpha)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (torch.zeros(1, 4), TypeError, "text is torch.float32, expected an integer tensor"),
        (np.zeros((1, 4), bool), TypeError, "text is torch.bool"),
        (["a dog"], TypeError, "text is list"),
        (torch.zeros(4, dtype=torch.int32), ValueError, r"text is \(4,\), expected \(N, L\)"),
        (torch.zeros(1, 17, dtype=torch.int32), ValueError, "with L from 1 to 16"),
        (torch.tensor([[1, 512]]), IndexError, "token ids from 1 to 512, expected 0 to 511"),
        (torch.tensor([[-1, 511]]), IndexError, "token ids from -1 to 511, expected 0 to 511"),
    ],
)
def test_texts_are_checked_as_the_model_s(served, text, error, message):
    with pytest.raises(error, match=message):
        served.encode_text(text)


def test_a_mask_that_was_not_normalised_is_warned_of_once(served, images, masks):
    with pytest.warns(UserWarning, match="almost surely a mask that was not normalised"):
        served.encode_image(images, masks.float())
    served.encode_image(images, masks.float())


def test_a_model_without_alpha_weights_warns_that_masks_are_ignored(plain, images, masks, tmp_path):
    export(plain, tmp_path / "served")  # in silence
    with pytest.warns(MasksIgnored, match=r"served: the alpha weights of this model are all zero"):
        served = load(tmp_path / "served")
    assert_close(served.encode_image(images, masks), served.encode_image(images))


def test_threads_are_at_least_one(folder):
    with pytest.raises(ValueError, match="threads is 0, expected 1 or more"):
        load(folder, threads=0)


def test_threads_reach_the_runtime(folder):
    served = load(folder, threads=3)
    for session in (served._image, served._text):
        assert session.get_session_options().intra_op_num_threads == 3


def test_only_models_of_ours_in_float32_are_exported(model, tmp_path):
    with pytest.raises(TypeError, match="model is Linear, expected what alpha_clip"):
        export(torch.nn.Linear(2, 2), tmp_path / "served")
    with pytest.raises(TypeError, match=r"weights in torch\.bfloat16: load it with dtype=torch\.float32"):
        export(model.bfloat16(), tmp_path / "served")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["hook", "module", "text"])
def test_a_model_that_was_changed_by_more_than_its_weights_is_refused(model, tmp_path, change):
    if change == "hook":
        model.visual.transformer.resblocks[1].register_forward_hook(lambda module, args, output: output * 1.01)
    elif change == "module":
        model.visual.transformer.resblocks[0].mlp.gelu = torch.nn.GELU()
    else:
        model.ln_final.register_forward_hook(lambda module, args, output: output * 1.01)
    with pytest.raises(ValueError, match=r"the graphs' features are off the model's by 0\.0\d"):
        export(model, tmp_path / "served")
    assert list(tmp_path.iterdir()) == []


def test_export_leaves_the_model_as_it_was(model, tmp_path):
    before = copy.deepcopy(model.state_dict())
    export(model, tmp_path / "served")
    for name, tensor in model.state_dict().items():
        assert_close(tensor, before[name], rtol=0, atol=0)


# --- files ---


def test_the_folder_says_what_it_holds(folder, model):
    content = json.loads((folder / "model.json").read_text())
    about = {"name": "small", "version": alpha_clip.__version__, "weights": "float32", "input_resolution": 32}
    about |= {"context_length": 16, "vocab_size": 512, "features": 64, "sees_masks": True, "known_tokens": None}
    assert content.items() >= about.items()
    assert content["bytes"] == {path.name: path.stat().st_size for path in folder.iterdir() if path.suffix != ".json"}
    assert {path.name for path in folder.iterdir()} == {*content["bytes"], "model.json"}
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_graphs_are_valid_and_of_plain_onnx(folder, tower):
    onnx.checker.check_model(folder / f"{tower}.onnx", full_check=True)
    proto = onnx.load(folder / f"{tower}.onnx")
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", OPSET)]
    assert proto.ir_version == IR_VERSION


def test_a_folder_with_something_in_it_stays_as_it_is(model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(FileExistsError, match="already exists, and is not empty: choose another folder"):
            export(model, taken)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_and_missing_parents_are_fine(model, tmp_path):
    (tmp_path / "empty").mkdir()
    export(model, tmp_path / "empty")
    export(model, tmp_path / "a" / "b")
    load(tmp_path / "empty"), load(tmp_path / "a" / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "empty"]


def test_an_export_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", fail)
    with pytest.raises(OSError, match="no space left"):
        export(model, tmp_path / "served", int8=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_model_is_an_error_with_the_command(tmp_path):
    with pytest.raises(WeightsError, match=r"holds no exported model .*python -m alpha_clip.onnx MODEL --out"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["image.onnx", "image.onnx.data", "text.onnx", "text.onnx.data"])
def test_files_that_are_missing_or_cut_are_named(copied, name):
    file = copied / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(IncompatibleCheckpoint, match=rf"{name} has \d+ bytes, expected \d+: copy the folder again"):
        load(copied)
    file.unlink()
    with pytest.raises(IncompatibleCheckpoint, match=f"{name} is not there: copy the folder again"):
        load(copied)


def test_a_graph_of_the_right_size_that_is_none_is_an_error(copied):
    file = copied / "text.onnx"
    file.write_bytes(b"x" * file.stat().st_size)
    with pytest.raises(IncompatibleCheckpoint, match=r"ONNX Runtime cannot read .*text.onnx .*copy the folder again"):
        load(copied)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "model.json is not whole"),
        ("[]", "is of format None, and this package reads 1"),
        ('{"format": 2}', "is of format 2, and this package reads 1"),
        ('{"format": 1, "name": ""}', "does not say bytes, context_length, features"),
    ],
)
def test_a_description_that_is_damaged_is_an_error(copied, content, message):
    (copied / "model.json").write_text(content)
    with pytest.raises(IncompatibleCheckpoint, match=message):
        load(copied)


# --- the extra ---


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_without_the_extra_export_says_how_to_install_it(model, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'ONNX models need {missing}: pip install "alpha-clip\[onnx\]"'):
        export(model, tmp_path / "served")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_load_says_how_to_install_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'ONNX models need onnxruntime: pip install "alpha-clip\[onnx\]"'):
        load(folder)


def test_serving_needs_no_onnx(tiny_folder):
    code = f"import sys, alpha_clip; alpha_clip.onnx.load({str(tiny_folder)!r}); print('onnx' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# --- the released sizes ---


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [336])
@torch.no_grad()
def test_vit_l_14_at_336_is_exported(tmp_path, resolution):
    torch.manual_seed(0)
    model = CLIP(768, resolution, 24, 1024, 14, 77, 49408, 768, 12, 12).eval()
    torch.nn.init.normal_(model.visual.conv1_alpha.weight, std=0.02)
    export(model, tmp_path / "served")
    image = torch.randn(1, 3, resolution, resolution)
    mask = torch.rand(2, resolution, resolution) > 0.5
    text = alpha_clip.tokenize(["a dog", "a photo of a cat"])
    served = load(tmp_path / "served")
    assert_close(served.encode_image(image, mask), model.encode_image(image, mask), **PARITY)
    assert_close(served.encode_text(text), model.encode_text(text), **PARITY)
