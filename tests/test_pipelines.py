"""Alpha in LLaVA, LLaVA-Next, BLIP-2 and pipelines of diffusers: their own classes, small and random."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import alpha_clip
from alpha_clip.errors import IncompatibleCheckpoint
from alpha_clip.integrations import (
    add_alpha,
    alpha_of,
    copy_tower,
    focus,
    from_pretrained,
    load_alpha_weights,
    processor_with_mask,
    remove_alpha,
)
from alpha_clip.model import FOREGROUND

transformers = pytest.importorskip("transformers", reason='pip install "alpha-clip[test]"')
sys.path.append(str(Path(__file__).parent.parent / "examples" / "pipelines"))
ask_region, caption_region, region, small, speakers, swap_clip = map(
    importlib.import_module, ("ask_region", "caption_region", "region", "small", "speakers", "swap_clip")
)

WORDS = 8  # of an answer


@pytest.fixture(scope="module")
def ours():
    return alpha_clip.load("tiny", "cpu")[0]


def picture(seed: int = 0, width: int = 96, height: int = 60) -> Image.Image:
    scene = alpha_clip.scenes.draw_scene(seed, (height, width), objects=(2, 2), overlap=0.0)
    return Image.fromarray(scene.image)


def mask(width: int = 96, height: int = 60) -> np.ndarray:
    """A mask of the left third, and a corner on the right."""
    made = np.zeros((height, width), bool)
    made[:, : width // 3] = made[:10, -10:] = True
    return made


# --- LLaVA, LLaVA-Next, BLIP-2 ---

SPEAKERS = {f.__name__: f for f in (small.llava, small.llava_next, small.blip2, small.blip2_with_clip)}
every_speaker = pytest.mark.parametrize("name", SPEAKERS)
with_clip = pytest.mark.parametrize("name", ["llava", "llava_next", "blip2_with_clip"])


def speaker(name):
    """Return a model, and a function from a picture and a mask to its inputs."""
    model, processor = SPEAKERS[name]()
    prepare = processor_with_mask(processor)
    text = speakers.question(prepare, "what is in this picture?")
    assert ("<image>" in text) == name.startswith("llava")
    return model, lambda image, mask=None: prepare(image, mask, text=text)


@torch.no_grad()
def said(model, inputs):
    """Return the logits, and the tokens of the answer."""
    options = {"max_new_tokens": WORDS, "min_new_tokens": WORDS, "do_sample": False}
    tokens = model.generate(**inputs, **options)
    return model(**inputs).logits, tokens[:, -WORDS:]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@every_speaker
def test_a_random_model_reacts_to_its_picture(name):
    model, prepare = speaker(name)
    (logits, tokens), (others, other_tokens) = (said(model, prepare(picture(seed))) for seed in (0, 1))
    assert (logits[0, -1] - others[0, -1]).abs().max() > 0.1
    assert not torch.equal(tokens, other_tokens)


@every_speaker
def test_without_a_mask_logits_and_words_are_the_untouched_model_s(name):
    model, prepare = speaker(name)
    inputs = prepare(picture())
    before = said(model, inputs)
    pixels = SPEAKERS[name]()[1].image_processor(picture(), return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], pixels)
    add_alpha(model)
    assert same(said(model, inputs), before)
    assert same(said(model, prepare(picture(), mask())), before)  # alpha weights are zero as yet
    remove_alpha(model)
    assert same(said(model, inputs), before)


@every_speaker
def test_a_mask_changes_what_is_said_and_all_of_the_picture_does_not(name):
    model, prepare = speaker(name)
    if name == "blip2":  # there are none for EVA's tower
        nn.init.normal_(alpha_of(add_alpha(model))[1].alpha, std=0.05)
    else:
        load_alpha_weights(model, "tiny", "scenes")
    shown = picture(height=48)  # it fills LLaVA-Next's tiles, whose padding would be in no mask
    whole, words = said(model, prepare(shown))
    everything, same_words = said(model, prepare(shown, np.ones((48, 96), bool)))
    torch.testing.assert_close(everything, whole, rtol=1e-4, atol=1e-4)
    assert torch.equal(same_words, words)
    masked, other_words = said(model, prepare(shown, mask(height=48)))
    assert (masked[0, -1] - whole[0, -1]).abs().max() > 0.1
    assert not torch.equal(other_words, words)


@with_clip
@torch.no_grad()
def test_inside_the_model_the_tower_sees_as_ours_does_and_the_words_come_of_that(name, ours):
    model, prepare = speaker(name)
    copy_tower(ours.visual, model)
    inputs = prepare(picture(), mask())
    seen = []
    if name == "blip2_with_clip":
        handle = model.qformer.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
        )
    else:
        handle = model.model.multi_modal_projector.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits, words = said(model, inputs)
    handle.remove()

    pixels = inputs["pixel_values"].flatten(0, -4)  # tiles are pictures too
    assert pixels[:, 3].amin() < -1.9 and pixels[:, 3].amax() > 1.9
    layer = -1 if name == "blip2_with_clip" else -2
    tokens = ours.visual.tokens(pixels[:, :3], pixels[:, 3:], layer=layer)
    features = tokens if name == "blip2_with_clip" else tokens[:, 1:]  # "default" leaves the class token out
    assert len(seen) == 2  # the words' and the logits'
    for found in seen:
        torch.testing.assert_close(found, features, rtol=1e-5, atol=1e-5)

    embeds, language_model = by_hand(name, model, inputs, features)
    options = {"max_new_tokens": WORDS, "min_new_tokens": WORDS, "do_sample": False}
    given = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    assert torch.equal(language_model.generate(**given, **options), words)
    torch.testing.assert_close(language_model(**given).logits, logits, rtol=1e-4, atol=1e-4)


def by_hand(name, model, inputs, features):
    """Return the input of the language model, computed step by step, and the language model."""
    if name == "blip2_with_clip":
        asked = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=features).last_hidden_state
        projected, language_model = model.language_projection(asked), model.language_model
    else:
        projected, language_model = model.model.multi_modal_projector(features), model
    if name == "llava_next":
        (projected,), _ = model.model.pack_image_features(
            [projected], inputs["image_sizes"], "default", model.model.image_newline
        )
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    place = (inputs["input_ids"] == model.config.image_token_id)[..., None]
    assert place.sum() == projected.shape[-2]
    return embeds.masked_scatter(place, projected), language_model


@every_speaker
def test_gradients_reach_the_alpha_weights_through_the_language_model_s_loss(name):
    model, prepare = speaker(name)
    add_alpha(model)
    inputs = prepare(picture(), mask())
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert alpha_of(model)[1].alpha.grad.abs().max() > 1e-6


def test_tiles_have_the_mask_where_they_have_the_picture():
    """If the picture shows its own mask, its pixels equal the mask in every tile of LLaVA-Next's processor."""
    _, prepare = speaker("llava_next")
    for width, height in ((200, 90), (70, 150), (96, 96)):
        shown = mask(width, height)
        white = Image.fromarray(np.where(shown, 255, 0).astype(np.uint8)).convert("RGB")
        pixels = prepare(white, shown)["pixel_values"]
        plain = SPEAKERS["llava_next"]()[1].image_processor
        red = pixels[:, :, 0] * plain.image_std[0] + plain.image_mean[0]
        torch.testing.assert_close(pixels[:, :, 3] * 0.26 + 0.5, red, rtol=0, atol=2 / 255)
        assert pixels.shape[1] == 3 and pixels[0, 1:, 3].std() > 0.5


def test_padding_is_background_in_a_mask_and_foreground_without():
    prepare = processor_with_mask(SPEAKERS["llava_next"]()[1].image_processor)
    pixels = prepare([picture(), picture()], [np.ones((60, 96), bool), None])["pixel_values"]
    assert (pixels[1, :, 3] == FOREGROUND).all()
    whole, left, right = pixels[0, :, 3].sign()  # the first is not padded, the others at the picture's sides
    assert whole.eq(1).all()
    for tile in (left, right.flip(-1)):
        assert tile[:, :8].eq(-1).all() and tile[:, 12:].eq(1).all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_chats_of_several_pictures_have_their_masks(name):
    model, _ = speaker(name)
    load_alpha_weights(model, "tiny", "scenes")
    prepare = processor_with_mask(SPEAKERS[name]()[1])
    pictures, masks = [picture(seed) for seed in range(3)], [mask(), None, ~mask()]
    texts = ["what is in <image> picture <image> ?", "what is <image> ?"]
    found = prepare([pictures[:2], pictures[2:]], [masks[:2], masks[2:]], text=texts, padding=True)
    flat = prepare(pictures, masks, text=texts, padding=True)
    assert found.keys() == flat.keys() and all(torch.equal(found[key], flat[key]) for key in flat)
    assert found["pixel_values"].shape[-3] == 4 and torch.equal(model(**found).logits, model(**flat).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "llava_next", "blip2"])
def test_a_saved_model_comes_back_with_its_alpha_weights(name, tmp_path):
    model, prepare = speaker(name)
    nn.init.normal_(alpha_of(add_alpha(model))[1].alpha, std=0.05)
    model.save_pretrained(tmp_path)
    inputs = prepare(picture(), mask())
    expected = said(model, inputs)
    for cls in (type(model), transformers.AutoModelForImageTextToText):
        again = from_pretrained(cls, tmp_path).eval()
        assert type(again) is type(model)
        assert same(said(again, inputs), expected)
    remove_alpha(model).save_pretrained(tmp_path / "plain")
    assert not alpha_of(from_pretrained(type(model), tmp_path / "plain"))[1].alpha.any()


def test_the_authors_weights_do_not_fit_eva_s_tower_and_it_says_so(ours):
    model, _ = small.blip2()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(IncompatibleCheckpoint, match=r"Blip2ForConditionalGeneration has no CLIP ViT .*EVA's \(BLIP-2"):
        copy_tower(ours.visual, model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# --- diffusers ---


@pytest.fixture(autouse=True)
def _needs(request):
    if "kind" in request.fixturenames:
        pytest.importorskip("diffusers", reason='pip install "alpha-clip[diffusion]"')


PAINTERS = {
    "variation": small.image_variation,
    "unclip": small.unclip,
    "ip-adapter": small.ip_adapter,
    "ip-adapter-plus": lambda: small.ip_adapter(plus=True),
}
every_painter = pytest.mark.parametrize("kind", PAINTERS)
OPTIONS = {"num_inference_steps": 2, "output_type": "latent"}


def options(kind, image):
    """Arguments for a pipeline of that kind, including the picture."""
    name = "ip_adapter_image" if kind.startswith("ip-adapter") else "image"
    prompt = {} if kind == "variation" else {"prompt": "a cat"}
    return {name: image} | prompt | OPTIONS | {"generator": torch.Generator().manual_seed(0)}


def painted(pipe, kind, image, **more):
    return pipe(**options(kind, image) | more).images


def alpha(pipe):
    return processor_with_mask(pipe.feature_extractor)(picture(), mask())["pixel_values"][:, 3:]


@every_painter
def test_a_random_pipeline_reacts_to_its_picture(kind):
    pipe = PAINTERS[kind]()
    assert (painted(pipe, kind, picture(0)) - painted(pipe, kind, picture(1))).abs().max() > 0.1


@every_painter
def test_without_a_mask_what_is_painted_is_the_untouched_pipeline_s(kind):
    pipe = PAINTERS[kind]()
    latents, image = painted(pipe, kind, picture()), painted(pipe, kind, picture(), output_type="np")
    add_alpha(pipe.image_encoder)
    assert torch.equal(painted(pipe, kind, picture()), latents)
    assert np.array_equal(painted(pipe, kind, picture(), output_type="np"), image)
    with focus(pipe.image_encoder, alpha(pipe)):  # alpha weights are zero as yet
        assert torch.equal(painted(pipe, kind, picture()), latents)


@every_painter
def test_a_mask_in_focus_changes_what_is_painted_and_all_of_the_picture_does_not(kind):
    pipe = PAINTERS[kind]()
    load_alpha_weights(pipe.image_encoder, "tiny", "scenes")
    whole = painted(pipe, kind, picture())
    with focus(pipe.image_encoder, torch.full((1, 1, small.SIDE, small.SIDE), FOREGROUND)):
        torch.testing.assert_close(painted(pipe, kind, picture()), whole, rtol=1e-4, atol=1e-4)
    with focus(pipe.image_encoder, alpha(pipe)):
        masked = painted(pipe, kind, picture())
    assert (masked - whole).abs().max() > 0.1
    assert torch.equal(painted(pipe, kind, picture()), whole)


@every_painter
@torch.no_grad()
def test_inside_the_pipeline_the_tower_sees_as_ours_does_and_the_picture_comes_of_that(kind, ours, monkeypatch):
    pipe = PAINTERS[kind]()
    copy_tower(ours.visual, pipe.image_encoder)
    pixels, where, seen = pipe.feature_extractor(picture(), return_tensors="pt").pixel_values, alpha(pipe), []
    handle = pipe.image_encoder.register_forward_hook(lambda *call: seen.append(call[-1]))
    with focus(pipe.image_encoder, where):
        masked = painted(pipe, kind, picture())
    handle.remove()

    if kind == "ip-adapter-plus":  # it shows the tower a picture of zeros too, through the same mask
        features = [ours.visual.tokens(image, where, layer=-2) for image in (pixels, torch.zeros_like(pixels))]
        found = [each.hidden_states[-2] for each in seen]
    else:
        features, found = [ours.encode_image(pixels, where)], [each.image_embeds for each in seen]
    assert len(found) == len(features)
    for one, other in zip(found, features, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    if kind == "variation":  # it takes no features
        monkeypatch.setattr(pipe.image_encoder, "forward", lambda _: SimpleNamespace(image_embeds=features[0]))
        again = painted(pipe, kind, picture(1))
    elif kind == "unclip":
        again = painted(pipe, kind, None, image_embeds=features[0])
    else:
        nothing = features[1] if kind == "ip-adapter-plus" else torch.zeros_like(features[0])
        both = torch.stack([nothing, features[0]])
        again = painted(pipe, kind, None, ip_adapter_image_embeds=[both])
    torch.testing.assert_close(again, masked, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@every_painter
def test_pixels_of_four_channels_are_as_good_as_a_focus(kind):
    pipe = PAINTERS[kind]()
    load_alpha_weights(pipe.image_encoder, "tiny", "scenes")
    with focus(pipe.image_encoder, alpha(pipe)):
        expected = painted(pipe, kind, picture(), guidance_scale=1.0)  # the picture of zeros aside
    pixels = processor_with_mask(pipe.feature_extractor)(picture(), mask())["pixel_values"]
    torch.testing.assert_close(painted(pipe, kind, pixels, guidance_scale=1.0), expected, rtol=1e-4, atol=1e-4)


@every_painter
def test_gradients_reach_the_alpha_weights_through_the_whole_pipeline(kind):
    pipe = PAINTERS[kind]()
    add_alpha(pipe.image_encoder)
    call = type(pipe).__call__.__wrapped__  # as it is without torch.no_grad
    with focus(pipe.image_encoder, alpha(pipe)):
        call(pipe, **options(kind, picture())).images.square().mean().backward()
    assert alpha_of(pipe.image_encoder)[1].alpha.grad.abs().max() > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("kind", ["variation", "unclip", "ip-adapter"])
def test_a_saved_pipeline_comes_back_with_its_alpha_weights(kind, tmp_path):
    pipe = small.stable_diffusion() if kind == "ip-adapter" else PAINTERS[kind]()
    load_alpha_weights(pipe.image_encoder, "tiny", "scenes")
    pipe.save_pretrained(tmp_path)
    again = from_pretrained(type(pipe), tmp_path)
    again.set_progress_bar_config(disable=True)
    if kind == "ip-adapter":  # its weights are not the pipeline's
        weights = small.adapter(pipe)
        for each in (pipe, again):
            each.load_ip_adapter(weights, subfolder="", weight_name="")
    before, after = (alpha_of(each.image_encoder)[1].alpha for each in (pipe, again))
    assert before.any() and torch.equal(after, before)
    with focus(pipe.image_encoder, alpha(pipe)), focus(again.image_encoder, alpha(pipe)):
        expected = painted(pipe, kind, picture())
        torch.testing.assert_close(painted(again, kind, picture()), expected, rtol=1e-4, atol=1e-4)


# --- the examples ---


def lines(text):
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


@pytest.mark.parametrize("args", [[], ["--next"]])
def test_ask_region_says_other_things_of_a_region(args, capsys):
    ask_region.main(args)
    printed = capsys.readouterr().out
    assert region.NONSENSE in printed
    answers = lines(printed)
    assert len({answers[name] for name in ("whole picture", "the region", "all but it")}) == 3


def test_caption_region_says_other_things_of_a_region(capsys):
    caption_region.main(["--tokens", "8"])
    answers = lines(capsys.readouterr().out)
    assert len({answers[name] for name in ("whole picture", "the region", "all but it")}) == 3


@pytest.fixture
def folder(tmp_path):
    """A folder with saved models and processors, a photo and its mask."""
    for name in ("llava", "blip2"):
        model, processor = SPEAKERS[name]()
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    picture().save(tmp_path / "photo.png")
    Image.fromarray(mask()).save(tmp_path / "mask.png")
    return tmp_path


def test_models_in_folders_go_the_way_of_those_at_full_size(folder, capsys):
    common = ["--image", str(folder / "photo.png"), "--tokens", "6", "--device", "cpu"]
    shown = ["--mask", str(folder / "mask.png")]
    llava = ["--model", str(folder / "llava"), "--weights", "tiny", "--alpha", "scenes"]
    ask_region.main([*llava, *common, *shown])
    answers = lines(capsys.readouterr().out)
    assert answers["whole picture"] != answers["the region"]

    model, prepare = speaker("llava")  # whose own answer is the oracle
    load_alpha_weights(model, "tiny", "scenes")
    _, expected = said(model, prepare(picture(), mask()))
    processor = SPEAKERS["llava"]()[1]
    assert answers["the region"].split() == processor.decode(expected[0, :6], skip_special_tokens=True).split()

    model.save_pretrained(folder / "llava")
    ask_region.main(["--model", str(folder / "llava"), *common, *shown])
    assert lines(capsys.readouterr().out) == answers

    captions = ["--model", str(folder / "blip2"), *common, "--box", "0", "0", "30", "60"]
    eva = small.blip2()[0]
    nn.init.normal_(alpha_of(add_alpha(eva))[1].alpha, std=0.05)
    eva.save_pretrained(folder / "blip2")
    caption_region.main(captions)
    assert "the region" in lines(capsys.readouterr().out)


def test_the_examples_say_what_does_not_fit_or_is_missing(folder, capsys):
    eva = ["--model", str(folder / "blip2"), "--weights", "tiny", "--alpha", "scenes"]
    for example in (caption_region, swap_clip):
        with pytest.raises(
            SystemExit, match=r"tiny scenes does not fit Blip2ForConditional.*EVA's \(BLIP-2 with ViT-g"
        ):
            example.main([*eva, "--device", "cpu"])
    for args, message in (
        (["--box", "0", "0", "9", "9"], "give --image too"),
        (["--image", str(folder / "photo.png")], "where to look?"),
        (["--image", "x", "--mask", "y", "--box", "0", "0", "9", "9"], "one of the two"),
    ):
        with pytest.raises(SystemExit, match="2"):
            ask_region.main(args)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        swap_clip.main(["--model", str(folder / "llava")])
    assert "give --alpha" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("example", "option"),
    [
        *(("ask_region", "--tokens"), ("caption_region", "--tokens")),
        *(("swap_clip", "--pictures"), ("vary_region", "--steps")),
    ],
)
@pytest.mark.parametrize("count", ["0", "-1", "two"])
def test_a_count_of_none_is_refused_before_anything_is_made(example, option, count, capsys):
    module = pytest.importorskip(example, reason='pip install "alpha-clip[diffusion]"')
    with pytest.raises(SystemExit, match="2"):
        module.main([f"{option}={count}"])
    printed, complaint = capsys.readouterr()
    assert not printed and f"argument {option}: '{count}' is no count, expected 1 or more" in complaint


def test_a_region_that_the_crop_takes_away_is_said_to_be(folder, capsys):
    shown = ["--image", str(folder / "photo.png"), "--box", "0", "0", "9", "60", "--device", "cpu"]
    llava = ["--model", str(folder / "llava"), "--weights", "tiny", "--alpha", "scenes", "--tokens", "6"]
    ask_region.main([*llava, *shown])
    answers = lines(capsys.readouterr().out)
    assert answers["the region"].strip().startswith("not asked") and "not asked" not in answers["all but it"]
    said_in_a_line(swap_clip, [*llava, *shown], "the processor leaves nothing of mask 0", capsys)
    vary_region = pytest.importorskip("vary_region", reason='pip install "alpha-clip[diffusion]"')
    said_in_a_line(vary_region, [*shown, "--steps", "1"], "the processor leaves nothing of mask 0", capsys)


def said_in_a_line(example, args, message, capsys):
    with pytest.raises(SystemExit, match="1"):
        example.main(args)
    *_, last = capsys.readouterr().err.splitlines()
    assert message in last


@pytest.mark.parametrize("example", ["ask_region", "caption_region", "swap_clip", "vary_region"])
def test_what_is_wrong_with_a_picture_a_mask_or_a_name_is_one_line(example, folder, monkeypatch, capsys):
    module = pytest.importorskip(example, reason='pip install "alpha-clip[diffusion]"')
    monkeypatch.chdir(folder)
    for name, width in (("black", 96), ("odd", 50)):
        Image.new("L", (width, 60), 255 if name == "odd" else 0).save(f"{name}.png")
    for args, message in (
        (["--image", "nope.png", "--mask", "mask.png"], "No such file or directory: 'nope.png'"),
        (["--image", "photo.png", "--mask", "nope.png"], "No such file or directory: 'nope.png'"),
        (["--image", "photo.png", "--mask", "black.png"], "mask is 0 everywhere, expected some foreground"),
        (["--image", "photo.png", "--mask", "odd.png"], "mask has shape (60, 50), expected (60, 96)"),
        (["--image", "photo.png", "--box", "0", "0", "0", "9"], "expected x0 < x1"),
    ):
        said_in_a_line(module, args, message, capsys)
    if example != "vary_region":
        args = ["--model", "llava", "--device", "cpu", "--weights", "tiny", "--alpha", "grit99"]
        said_in_a_line(module, args, "alpha weights 'grit99' are neither a file nor a tag for tiny", capsys)


def test_a_region_that_is_the_whole_picture_leaves_nothing_else_to_ask_about(folder, capsys):
    shown = ["--image", str(folder / "photo.png"), "--box", "0", "0", "96", "60"]
    ask_region.main([*shown, "--tokens", "4"])
    answers = lines(capsys.readouterr().out)
    assert answers["the region"].split() == answers["whole picture"].split()  # the crop leaves no padding
    assert answers["all but it"].strip() == "not asked: the region is the whole picture"
    caption_region.main([*shown, "--tokens", "4", "--prompt", "a picture"])
    answers = lines(capsys.readouterr().out)
    assert answers["all but it"].strip() == "not asked: the region is the whole picture"
    vary_region = pytest.importorskip("vary_region", reason='pip install "alpha-clip[diffusion]"')
    vary_region.main([*shown, "--steps", "1", "--out", str(folder / "sheet.png")])
    printed = capsys.readouterr().out
    assert "the region is the whole picture" in printed and "all but it" not in printed
    with Image.open(folder / "sheet.png") as sheet:
        assert sheet.size == (768, 256)


def test_without_alpha_weights_nothing_is_asked(folder, capsys):
    shown = ["--image", str(folder / "photo.png"), "--mask", str(folder / "mask.png"), "--device", "cpu"]
    add_alpha(small.llava()[0]).save_pretrained(folder / "zero")  # alpha weights of zero count as none
    small.llava()[1].save_pretrained(folder / "zero")
    for example, name in ((ask_region, "llava"), (ask_region, "zero"), (caption_region, "blip2")):
        args = ["--model", str(folder / name), *shown]
        said_in_a_line(example, args, f"{name} holds no alpha weights, and without any a mask changes nothing", capsys)


@torch.no_grad()
def test_swap_clip_measures_drift_and_lists_what_is_new(capsys, ours):
    swap_clip.main(["--pictures", "2", "--tokens", "4"])
    printed = capsys.readouterr().out
    assert "vision_model.embeddings.patch_embedding: Conv2d -> AlphaConv2d" in printed
    assert "vision_model.embeddings.patch_embedding.alpha: none -> (128, 1, 8, 8)" in printed
    assert printed.count("- module") == printed.count("- weight") == 1 and "- 8192 parameters more" in printed

    with pytest.warns(UserWarning, match="ignores every mask"):
        base, _ = alpha_clip.load("tiny", "cpu", alpha_vision_ckpt_pth=None)
    means = []
    for mask_too in (False, True):
        cosines = []
        for image, where in swap_clip.scenes(2):
            pixels = processor_with_mask(small.image_processor())(image, where)["pixel_values"]
            shown = pixels[:, 3:] if mask_too else None
            tokens = [base.visual.tokens(pixels[:, :3], layer=-2), ours.visual.tokens(pixels[:, :3], shown, layer=-2)]
            cosines.append(torch.cosine_similarity(*tokens, dim=-1)[:, 1:])
        means.append(f"{torch.cat(cosines).mean():.3f}")
    row = next(line for line in printed.splitlines() if "cosine of penultimate" in line)
    assert [cell.split()[0] for cell in row.split("|")[2:4]] == means


def test_swap_clip_takes_a_model_from_a_folder(folder, capsys):
    args = ["--model", str(folder / "llava"), "--weights", "tiny", "--alpha", "scenes", "--device", "cpu"]
    swap_clip.main([*args, "--image", str(folder / "photo.png"), "--mask", str(folder / "mask.png")])
    printed = capsys.readouterr().out
    assert "for the image tower of LlavaForConditionalGeneration; pictures: 1" in printed and "AlphaConv2d" in printed


@pytest.mark.parametrize("kind", ["variation", "unclip", "ip-adapter"])
def test_vary_region_draws_other_pictures_of_a_region(kind, tmp_path, capsys):
    import vary_region

    vary_region.main(["--kind", kind, "--steps", "2", "--out", str(tmp_path / "sheet.png")])
    assert float(capsys.readouterr().out.split("differ by ")[1].split()[0]) > 1
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (256, 1024, 3)
    panels = np.split(sheet, 4, axis=1)
    assert all((panels[1] != other).any() for other in (panels[0], panels[2], panels[3]))


@pytest.mark.parametrize("kind", ["variation", "ip-adapter"])
def test_vary_region_takes_pipelines_from_folders(kind, folder, capsys):
    import vary_region
    from safetensors.torch import save_file

    pipe = small.stable_diffusion() if kind == "ip-adapter" else small.image_variation()
    pipe.save_pretrained(folder / "pipe")
    (folder / "adapter" / "models").mkdir(parents=True)
    weights = {f"{part}.{key}": value for part, of in small.adapter(pipe).items() for key, value in of.items()}
    save_file(weights, folder / "adapter" / "models" / "ip-adapter_sd15.safetensors")
    args = ["--kind", kind, "--model", str(folder / "pipe"), "--adapter", str(folder / "adapter"), "--device", "cpu"]
    args += ["--image", str(folder / "photo.png"), "--mask", str(folder / "mask.png"), "--steps", "1"]
    args += ["--out", str(folder / "sheet.png")]
    vary_region.main([*args, "--weights", "tiny", "--alpha", "scenes"])
    assert float(capsys.readouterr().out.split("differ by ")[1].split()[0]) > 0
    said_in_a_line(vary_region, args, "pipe holds no alpha weights, and without any a mask changes nothing", capsys)
    said_in_a_line(vary_region, [*args, "--weights", "tiny", "--alpha", "no"], "alpha weights 'no' are neither", capsys)
    other = alpha_clip.model.CLIP(64, 48, 2, 64, 8, 77, 49408, 64, 1, 1)
    nn.init.normal_(other.visual.conv1_alpha.weight)
    alpha_clip.save(other, folder / "other")
    with pytest.raises(
        SystemExit, match=r"other auto does not fit .*pipe: the tower has 4 blocks of 2 heads, expected 2"
    ):
        vary_region.main([*args, "--weights", str(folder / "other"), "--alpha", "auto"])
