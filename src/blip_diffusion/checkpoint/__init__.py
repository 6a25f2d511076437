"""Weights on disk: the published folder layout, read and written, and every foreign key map.

model_index.json        the pipeline's own settings, and the class of each part
qformer/                image encoder, Q-Former, projection       config.json  model.safetensors
text_encoder/ tokenizer/ unet/ vae/ scheduler/                    as Stable Diffusion has them
image_processor/        preprocessor_config.json
qformer_tokenizer/      the Q-Former's WordPiece list (ours; the published folder lacks it)
"""
