"""A small CLIP with random weights, its inputs, and the same weights without alpha in open_clip."""

import shutil

import pytest
import torch

from alpha_clip.model import CLIP, VisionTransformer, build_model

CONTEXT, END = 16, 511  # the end-of-text token has the highest id

TRANSFORMERS_NAMES = {  # replaced in this order
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "transformer.resblocks": "text_model.encoder.layers",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "attn.in_proj_": "self_attn.{}_proj.",
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def in_transformers_names(state_dict):
    renamed = {}
    for name, value in state_dict.items():
        for ours, theirs in TRANSFORMERS_NAMES.items():
            name = name.replace(ours, theirs)
        if "{}" in name:
            renamed |= {name.format(kind): part for kind, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            renamed[name] = value.T if "projection" in name else value
    return renamed


@pytest.fixture
def model() -> CLIP:
    """3 image blocks of 2 heads on a 4 x 4 grid of 8-pixel patches, 2 text blocks, in eval."""
    torch.manual_seed(0)
    model = CLIP(
        embed_dim=64,
        image_resolution=32,
        vision_layers=3,
        vision_width=128,
        vision_patch_size=8,
        context_length=CONTEXT,
        vocab_size=END + 1,
        transformer_width=128,
        transformer_heads=2,
        transformer_layers=2,
    )
    with torch.no_grad():  # layer norms, biases and alpha too, so that none can be mixed up or left out unnoticed
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def plain(model: CLIP) -> CLIP:
    """`model` with alpha weights of zero: plain CLIP."""
    state_dict = model.state_dict()
    state_dict["visual.conv1_alpha.weight"] = torch.zeros_like(model.visual.conv1_alpha.weight)
    return build_model(state_dict)


@pytest.fixture
def open_clip_model(plain: CLIP) -> torch.nn.Module:
    """open_clip's CLIP with the weights of `plain`; its strict load is the first proof that all names agree."""
    from open_clip.model import CLIP as OpenCLIP
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=3, width=128, head_width=64, patch_size=8, image_size=32)
    text = CLIPTextCfg(context_length=CONTEXT, vocab_size=END + 1, width=128, heads=2, layers=2)
    theirs = OpenCLIP(64, vision, text, quick_gelu=True)
    state_dict = plain.state_dict()
    del state_dict["visual.conv1_alpha.weight"]
    theirs.load_state_dict(state_dict)
    return theirs.eval()


@pytest.fixture
def transformers_model(open_clip_model):
    from transformers import CLIPConfig, CLIPModel

    both = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "hidden_act": "quick_gelu"}
    vision = both | {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    text = both | {"num_hidden_layers": 2, "max_position_embeddings": 16, "vocab_size": 512}
    text |= {"bos_token_id": 510, "eos_token_id": 511}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=64, attn_implementation="eager")
    theirs = CLIPModel(config)
    theirs.load_state_dict(in_transformers_names(open_clip_model.state_dict()))
    return theirs.eval()


@pytest.fixture
def tower() -> VisionTransformer:
    """The smallest image tower, in float64, for derivatives: 8 x 8 pixels in 4 patches, width 8."""
    torch.manual_seed(0)
    tower = VisionTransformer(input_resolution=8, patch_size=4, width=8, layers=1, heads=2, output_dim=3).double()
    torch.nn.init.normal_(tower.conv1_alpha.weight, std=0.1)
    return tower


@pytest.fixture
def images() -> torch.Tensor:
    """(3, 3, 32, 32)"""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def masks() -> torch.Tensor:
    """(3, 32, 32) bool, rectangles."""
    masks = torch.zeros(3, 32, 32, dtype=torch.bool)
    masks[0, 3:20, 5:18] = masks[1, :, 16:] = masks[2, 24:, :9] = True
    return masks


@pytest.fixture
def tokens() -> torch.Tensor:
    """(4, 16) int32, as `tokenize` returns them: texts of 1, 4, 7 and 14 tokens, then the end, then zeros."""
    tokens = torch.randint(1, END, (4, CONTEXT), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    for row, end in zip(tokens, (2, 5, 8, 15), strict=True):
        row[end], row[end + 1 :] = END, 0
    return tokens


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("install Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
