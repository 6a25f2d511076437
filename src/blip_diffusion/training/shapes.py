"""Shapes of models that can be trained from scratch."""

from dataclasses import replace

from blip_diffusion.model import ModelConfig, ReferenceConfig, TextEncoderConfig
from blip_diffusion.modules.image_encoder import ImageEncoderConfig
from blip_diffusion.modules.language import LanguageModelConfig
from blip_diffusion.modules.placed_unet import CODE_WIDTH, PLACED
from blip_diffusion.modules.qformer import QFormerConfig

LITE_PIXELS = (127 / 255,) * 3, (128 / 255,) * 3
"""Mean and standard deviation with which EfficientNet-Lite normalises pixels in [0, 1]."""


MINI = ModelConfig(
    image_encoder=ImageEncoderConfig(tower="efficientnet-lite0", image_size=128, colour_cell=2),
    qformer=QFormerConfig(
        width=256,
        layers=4,
        heads=4,
        inner=512,
        vocabulary=2560,
        positions=64,
        vision_width=496,
        queries=64,
        dropout=0.0,
    ),
    projection_inner=512,
    text_encoder=TextEncoderConfig(vocabulary=3072, width=256, layers=4, heads=4, inner=1024, positions=96),
    reference=ReferenceConfig(128, *LITE_PIXELS, resize_mode="subject"),
    unet={
        "sample_size": 16,
        "in_channels": 16,
        "out_channels": 16,
        "block_out_channels": (96, 160, 224),
        "norm_num_groups": 16,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "only_cross_attention": (True, False, False),
        "mid_block_only_cross_attention": False,
        "cross_attention_dim": 256 + CODE_WIDTH,
        "encoder_hid_dim_type": PLACED,
        "encoder_hid_dim": 256 + CODE_WIDTH,
        "attention_head_dim": (3, 5, 7),  # number of heads: diffusers' name is misleading
    },
    vae={
        "sample_size": 128,
        "latent_channels": 16,  # the best linear code of 8 x 8 pixels has 26.6 dB with 16 channels, 23.5 dB with 8
        "block_out_channels": (32, 64, 96, 128),
        "layers_per_block": 1,
        "norm_num_groups": 2,  # groups of two channels would normalise away the strength of a flat colour
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "mid_block_add_attention": False,
    },
)
"""The shipped model's shapes: 128 x 128 pixels, 16 x 16 x 16 latents, 32 million parameters."""

MINI_CAPTIONS = replace(
    MINI,
    image_encoder=ImageEncoderConfig(tower="efficientnet-lite0-full", image_size=224),
    qformer=replace(MINI.qformer, vision_width=1360, queries=16, cross_attention_every=2),
    reference=ReferenceConfig(224, *LITE_PIXELS, resize_mode="squash"),
    unet={},
    vae={},
)
"""`MINI`'s Q-Former for captions and search: 16 queries, and an image encoder that recognises categories."""

PIXELS_UNET = {
    **MINI.unet,
    "in_channels": 3,
    "out_channels": 3,
    "only_cross_attention": False,
    "norm_num_groups": 16,
}

MINI_PIXELS = replace(
    MINI,
    unet={
        **PIXELS_UNET,
        "sample_size": 32,
        "block_out_channels": (64, 96, 160),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 3, 5),
    },
    vae={},
)
"""The first stage of a pixel cascade (Ho et al. 2022): 32 x 32 pixels."""

MINI_PIXELS_UPSCALE = replace(
    MINI,
    unet={
        **PIXELS_UNET,
        "sample_size": 128,
        "block_out_channels": (32, 48, 64, 128),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        "attention_head_dim": (1, 1, 2, 4),
    },
    vae={},
)
"""Its second stage, super-resolution to 128 x 128 pixels, with cross-attention at 16 x 16."""


TINY = ModelConfig(
    image_encoder=ImageEncoderConfig(tower="efficientnet-lite0", image_size=32),
    qformer=QFormerConfig(
        width=32, layers=2, heads=2, inner=64, vocabulary=1024, positions=32, vision_width=352, queries=4, dropout=0.0
    ),
    projection_inner=64,
    text_encoder=TextEncoderConfig(vocabulary=1024, width=32, layers=2, heads=2, inner=64, positions=32),
    reference=ReferenceConfig(32, *LITE_PIXELS),
    unet={
        "sample_size": 4,
        "block_out_channels": (32, 64),
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 2,
    },
    vae={
        "sample_size": 32,
        "block_out_channels": (8, 8, 16, 16),
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "mid_block_add_attention": False,
    },
)
"""Shapes for tests: all parts, a second to build, 32 x 32 pixels."""


TINY_PLACED = replace(
    TINY,
    image_encoder=replace(TINY.image_encoder, colour_cell=2),
    qformer=replace(TINY.qformer, vision_width=496),
    reference=replace(TINY.reference, resize_mode="subject"),
    unet={
        **TINY.unet,
        "cross_attention_dim": 32 + CODE_WIDTH,
        "encoder_hid_dim_type": PLACED,
        "encoder_hid_dim": 32 + CODE_WIDTH,
    },
)
"""`TINY` with placed tokens, as `mini` has them."""

TINY_PIXELS = replace(TINY, unet={**TINY.unet, "sample_size": 8, "in_channels": 3, "out_channels": 3}, vae={})
"""`TINY` in pixel space, 8 x 8 pixels."""

TINY_PIXELS_UPSCALE = replace(
    TINY_PIXELS,
    unet={
        **TINY_PIXELS.unet,
        "sample_size": 32,
        "block_out_channels": (8, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
)
"""`TINY` in pixel space, 32 x 32 pixels."""

SHAPES = {
    "mini": MINI,
    "mini-captions": MINI_CAPTIONS,
    "mini-pixels": MINI_PIXELS,
    "mini-pixels-upscale": MINI_PIXELS_UPSCALE,
    "tiny": TINY,
    "tiny-placed": TINY_PLACED,
    "tiny-pixels": TINY_PIXELS,
    "tiny-pixels-upscale": TINY_PIXELS_UPSCALE,
    "published": ModelConfig(),
}

LANGUAGE_MODELS = {
    "mini": LanguageModelConfig(),
    "tiny": LanguageModelConfig(vocabulary=1024, width=32, layers=2, heads=2, inner=64),
}
"""Language models that can be trained from the training data's sentences: 2.4 million parameters, and for tests."""
