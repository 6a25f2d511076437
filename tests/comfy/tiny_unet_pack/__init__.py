"""A custom node for the test of KSampler: ComfyUI's own U-Net for Stable Diffusion 1.5, of a tiny size.

ComfyUI's loaders know the published size only.
"""

from typing import Any

import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch

TINY = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "use_spatial_transformer": True,
    "transformer_depth": [1, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 0, 0],
    "use_linear_in_transformer": False,
    "context_dim": 32,
    "num_heads": 2,
    "num_head_channels": -1,
    "adm_in_channels": None,
    "use_temporal_attention": False,
}


class Tiny(comfy.supported_models.SD15):
    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012  # ComfyUI's; it would set eight heads


class TinyUnet:
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  # ComfyUI's name
        return {"required": {"path": ("STRING", {})}}

    def load(self, path: str) -> tuple[Any]:
        weights = comfy.utils.load_torch_file(path)
        names = comfy.utils.unet_to_diffusers(TINY)
        config = Tiny(dict(TINY))
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "")
        model.load_model_weights({names[name]: tensor for name, tensor in weights.items()}, "")
        cpu = torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu),)


NODE_CLASS_MAPPINGS = {"TinyUnet": TinyUnet}
