"""SAM, SAM 2 and SAM 3 of transformers with random weights, as small as they get, in folders."""

from pathlib import Path

import torch

MASKS = {"height": 16, "width": 16}
PROMPTS = {"hidden_size": 16, "mask_input_channels": 4}
DECODER = {
    "hidden_size": 16,
    "mlp_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "iou_head_hidden_dim": 16,
    "iou_head_depth": 2,
}
# Thresholds of everything mode under which random weights find masks.
ANYTHING = {"pred_iou_thresh": -1e9, "stability_score_thresh": -1.0, "crops_nms_thresh": 0.99}


def sam(folder: Path) -> None:
    from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

    vision = {"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 64, "patch_size": 8, "global_attn_indexes": [1], "window_size": 4, "num_pos_feats": 8}
    prompts = PROMPTS | {"image_size": 64, "patch_size": 8}
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER)
    sizes = {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}
    sizes |= {"mask_size": {"longest_edge": 16}, "mask_pad_size": MASKS}
    _save(SamModel, config, SamProcessor(SamImageProcessor(**sizes)), folder)


def sam2(folder: Path) -> None:
    from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

    backbone = {"model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64]}
    backbone |= {"embed_dim_per_stage": [8, 16, 24, 32], "num_attention_heads_per_stage": [1, 1, 2, 2]}
    backbone |= {
        "blocks_per_stage": [1, 1, 2, 1],
        "global_attention_blocks": [3],
        "window_size_per_stage": [4, 2, 2, 2],
    }
    backbone |= {"window_positional_embedding_background_size": [4, 4]}
    vision = {"model_type": "sam2_vision_model", "backbone_config": backbone, "fpn_hidden_size": 16}
    vision |= {"backbone_channel_list": [32, 24, 16, 8], "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    prompts = PROMPTS | {"image_size": 64, "patch_size": 16}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER)
    images = Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size=MASKS)
    _save(Sam2Model, config, Sam2Processor(images), folder)


def sam3(folder: Path) -> None:
    from transformers import Sam2ImageProcessor, Sam3TrackerConfig, Sam3TrackerModel, Sam3TrackerProcessor

    backbone = {"model_type": "sam3_vit_model", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    backbone |= {"num_attention_heads": 2, "image_size": 56, "patch_size": 14, "window_size": 2}
    backbone |= {"global_attn_indexes": [1], "pretrain_image_size": 28}
    vision = {"model_type": "sam3_vision_model", "backbone_config": backbone, "fpn_hidden_size": 16}
    vision |= {"backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]}
    prompts = PROMPTS | {"image_size": 56, "patch_size": 14}
    config = Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=DECODER)
    images = Sam2ImageProcessor(size={"height": 56, "width": 56}, mask_size=MASKS)
    _save(Sam3TrackerModel, config, Sam3TrackerProcessor(images), folder)


SAMS = {"SamModel": sam, "Sam2Model": sam2, "Sam3TrackerModel": sam3}


def _save(kind, config, processor, folder: Path) -> None:
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    processor.save_pretrained(folder)
