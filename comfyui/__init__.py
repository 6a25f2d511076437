"""ComfyUI's custom nodes of blip-diffusion, which the installed package holds."""

from blip_diffusion.comfy.output_nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
