"""Small pipelines of transformers and diffusers, built offline from their real classes with random weights.

Only the image tower is trained: it is that of the package's `tiny` model, without alpha weights. Everything else is
random, so the pipelines react to a picture but talk nonsense about it.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import alpha_clip
from alpha_clip.integrations import copy_tower, remove_alpha
from alpha_clip.scenes import NOUNS

SIDE, PATCH, WIDTH, FEATURES = 48, 8, 128, 128  # of `tiny`
QUERIES = 4  # of the Q-Former
_TILES = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_WORDS = ["a", "in", "is", "what", "this", "picture", "USER", "ASSISTANT", ":", "?", *NOUNS]
_TEXT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.4}


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=FEATURES,
    )


def with_plain_tower(model: nn.Module) -> Any:
    """Put the base of `tiny`, plain CLIP without alpha, into the image tower of `model`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this model ignores masks
        base, _ = alpha_clip.load("tiny", "cpu", alpha_vision_ckpt_pth=None)
    return remove_alpha(copy_tower(base.visual, model)).eval()


def image_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word."""
    words = [*_SPECIAL.values(), "<image>", *_WORDS]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens=["<image>"], **_SPECIAL)
    assert len(made) == len(words)
    return made


def llava(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """LLaVA-1.5."""
    torch.manual_seed(seed)
    words = tokenizer()
    model = LlavaForConditionalGeneration(LlavaConfig(**_llava(words)))
    return with_plain_tower(model), LlavaProcessor(image_processor(), words, **_PROCESSOR)


def llava_next(seed: int = 0) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """LLaVA-Next (1.6), which sees the whole picture and tiles of it."""
    torch.manual_seed(seed)
    words = tokenizer()
    model = LlavaNextForConditionalGeneration(LlavaNextConfig(**_llava(words), image_grid_pinpoints=_TILES))
    pixels = LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE, image_grid_pinpoints=_TILES)
    return with_plain_tower(model), LlavaNextProcessor(pixels, words, **_PROCESSOR)


_PROCESSOR: dict[str, Any] = {
    "patch_size": PATCH,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,  # the class token
    "chat_template": "USER : <image> {{ messages[0]['content'][1]['text'] }} ASSISTANT :",
}


def _llava(words: PreTrainedTokenizerFast) -> dict[str, Any]:
    text = _TEXT | {"model_type": "llama", "vocab_size": len(words), "intermediate_size": 64, "pad_token_id": 0}
    return {
        "vision_config": vision_config(),
        "text_config": text,
        "image_token_id": words.get_vocab()["<image>"],
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }


def blip2(seed: int = 0) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
    """BLIP-2 with OPT and EVA's tower, as on the Hub; here the tower is random too."""
    torch.manual_seed(seed)
    words = tokenizer()
    vision = {"image_size": SIDE, "patch_size": PATCH, "hidden_size": WIDTH, "num_attention_heads": 2}
    sizes = {"num_hidden_layers": 2, "intermediate_size": 64}
    former = sizes | {"hidden_size": 32, "num_attention_heads": 2, "initializer_range": 0.3, "vocab_size": 1}
    text = _TEXT | {"model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.4}
    text |= {"vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = Blip2Config(
        vision_config=vision | sizes | {"initializer_range": 0.1},  # the default of 1e-10 would make it blind
        qformer_config=former,
        text_config=text,
        num_query_tokens=QUERIES,
        image_token_index=words.get_vocab()["<image>"],
    )
    model = Blip2ForConditionalGeneration(config).eval()
    nn.init.normal_(model.query_tokens)
    nn.init.normal_(model.language_projection.weight)
    return model, Blip2Processor(image_processor(), words, num_query_tokens=QUERIES)


def blip2_with_clip(seed: int = 0) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
    """BLIP-2 with CLIP's tower, as in one of LAVIS's models (with ViT-L)."""
    model, processor = blip2(seed)
    model.vision_model = with_plain_tower(CLIPVisionModel(vision_config()))
    return model, processor


# --- diffusers ---


def _image_encoder() -> CLIPVisionModelWithProjection:
    return with_plain_tower(CLIPVisionModelWithProjection(vision_config()))


def _unet(**sizes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        **sizes,
    )


def _decoder_and_scheduler() -> dict[str, Any]:
    from diffusers import AutoencoderKL, DDIMScheduler

    vae: Any = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    return {"vae": vae.eval(), "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False)}


def _text_encoder() -> dict[str, Any]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    config = CLIPTextConfig(
        **_TEXT | {"intermediate_size": 64, "vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53}
    )
    return {
        "tokenizer": CLIPTokenizer(vocab, merges=[], model_max_length=77),
        "text_encoder": CLIPTextModel(config).eval(),
    }


def image_variation(seed: int = 0) -> Any:
    """Stable Diffusion image variation, conditioned on the picture's feature instead of a text."""
    from diffusers import StableDiffusionImageVariationPipeline

    torch.manual_seed(seed)
    pipe = StableDiffusionImageVariationPipeline(
        image_encoder=_image_encoder(),
        unet=_unet(cross_attention_dim=FEATURES).eval(),
        safety_checker=None,
        feature_extractor=image_processor(),
        requires_safety_checker=False,
        **_decoder_and_scheduler(),
    )
    return _quiet(pipe)


def unclip(seed: int = 0) -> Any:
    """Stable UnCLIP image to image, conditioned on the picture's noised feature and a text."""
    from diffusers import DDPMScheduler, StableUnCLIPImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    torch.manual_seed(seed)
    sizes = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * FEATURES}
    pipe = StableUnCLIPImg2ImgPipeline(
        feature_extractor=image_processor(),
        image_encoder=_image_encoder(),
        image_normalizer=StableUnCLIPImageNormalizer(FEATURES),
        image_noising_scheduler=DDPMScheduler(),
        unet=_unet(cross_attention_dim=32, **sizes).eval(),
        **_text_encoder(),
        **_decoder_and_scheduler(),
    )
    return _quiet(pipe)


def stable_diffusion(seed: int = 0) -> Any:
    """Stable Diffusion with an image encoder, for an IP-Adapter."""
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(seed)
    pipe = StableDiffusionPipeline(
        unet=_unet(cross_attention_dim=32).eval(),
        safety_checker=None,
        feature_extractor=image_processor(),
        image_encoder=_image_encoder(),
        requires_safety_checker=False,
        **_text_encoder(),
        **_decoder_and_scheduler(),
    )
    return _quiet(pipe)


def adapter(pipe: Any, *, plus: bool = False) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights of an IP-Adapter, named as in its files. `plus` reads tokens instead of the pooled feature."""
    crossing = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    context = pipe.unet.config.cross_attention_dim
    attention: dict[str, torch.Tensor] = {}
    for name in crossing:
        width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        number = 1 + 2 * crossing.index(name)  # self-attention layers are numbered too, and lie between
        attention |= {f"{number}.{part}_ip.weight": torch.randn(width, context) for part in ("to_k", "to_v")}
    return {"image_proj": _resampler(context) if plus else _projection(context), "ip_adapter": attention}


def ip_adapter(seed: int = 0, *, plus: bool = False) -> Any:
    """Stable Diffusion with an IP-Adapter, conditioned on a picture and a text."""
    pipe = stable_diffusion(seed)
    pipe.load_ip_adapter(adapter(pipe, plus=plus), subfolder="", weight_name="")
    return pipe


def _projection(context: int) -> dict[str, torch.Tensor]:
    shapes = {"proj.weight": (4 * context, FEATURES), "proj.bias": (4 * context,), "norm.weight": (context,)}
    return {name: 0.2 * torch.randn(shape) for name, shape in (shapes | {"norm.bias": (context,)}).items()}


def _resampler(context: int) -> dict[str, torch.Tensor]:
    from diffusers.models.embeddings import IPAdapterPlusImageProjection

    made = IPAdapterPlusImageProjection(WIDTH, context, hidden_dims=64, heads=1, num_queries=4)
    return {name.replace("to_out.0", "to_out"): value for name, value in made.state_dict().items()}


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
