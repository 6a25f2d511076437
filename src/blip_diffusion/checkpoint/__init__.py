"""Weights on disk: the published folder layout, other layouts, and all maps between their keys.

model_index.json        the pipeline's settings, and the class of each part
qformer/                image encoder, Q-Former, projection       config.json  model.safetensors
text_encoder/ tokenizer/ unet/ vae/ scheduler/                    as in Stable Diffusion
image_processor/        preprocessor_config.json
qformer_tokenizer/      the Q-Former's WordPiece vocabulary, which the published folder lacks
"""
