"""Switches and properties that diffusers' Stable Diffusion pipelines have: FreeU, fused projections, VAE slicing."""

from diffusers.pipelines.pipeline_utils import StableDiffusionMixin

from blip_diffusion.argument_checks import flag, number
from blip_diffusion.errors import InputError
from blip_diffusion.nn_utils import lora_layers
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.locking import exclusive
from blip_diffusion.protocols import UNet


class FeaturesMixin(StableDiffusionMixin, PipelineHost):
    """Switches and properties of diffusers' pipelines, for users and step callbacks."""

    fusing_unet: bool = False
    fusing_vae: bool = False
    _guidance_scale: float = 1.0
    _num_timesteps: int = 0
    _interrupt: bool = False

    @property
    def guidance_scale(self) -> float:
        """Weight of classifier-free guidance in the latest call; a step callback may change `_guidance_scale`."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether guidance runs in the current step."""
        return self._guidance_scale > 1 and self.preset.uses_cfg

    @property
    def num_timesteps(self) -> int:
        """Number of timesteps of the latest call, as the scheduler counts them."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the sampling of this call ends before its next step; a step callback may set `_interrupt`."""
        return self._interrupt

    @property
    def clip_skip(self) -> None:
        """Always `None`: the text encoder's last layer is used."""

    @property
    def cross_attention_kwargs(self) -> None:
        """Always `None`: `set_adapters` chooses the weights of LoRAs."""

    def enable_vae_slicing(self) -> None:
        """Decode one image after another: less memory, the same images."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Decode all images at once."""
        self.vae.disable_slicing()

    def enable_vae_tiling(self) -> None:
        """Encode and decode large images in overlapping tiles: less memory, nearly the same images."""
        self.vae.enable_tiling()

    def disable_vae_tiling(self) -> None:
        """Encode and decode whole images."""
        self.vae.disable_tiling()

    @exclusive
    def enable_freeu(self, s1: float, s2: float, b1: float, b2: float) -> None:
        """Scale the U-Net's skips (`s1`, `s2`) and backbone features (`b1`, `b2`) (Si et al. 2023, "FreeU")."""
        factors = {"s1": s1, "s2": s2, "b1": b1, "b2": b2}
        super().enable_freeu(**{name: number(name, value, 0, 100) for name, value in factors.items()})

    @exclusive
    def fuse_qkv_projections(self, unet: bool = True, vae: bool = True) -> None:
        """Compute query, key and value by one product in each attention layer.

        Raises:
            InputError: If the U-Net has LoRAs or an active subject changes its weights: fused layers would ignore them.
        """
        unet, vae = flag("unet", unet), flag("vae", vae)
        if unet and lora_layers(self.unet):
            raise InputError("Projections can't be fused over LoRAs: call fuse_lora, then unload_lora_weights, first.")
        if unet:
            self.adapters.check_fusable()
        super().fuse_qkv_projections(unet, vae)

    def _check_features(self) -> None:
        """Raise `InputError` for a model that only upscales, and a switch that the preset's engine would ignore."""
        if self.model.upscales:
            raise InputError("This model enlarges small images: call upscale, or --upscale with another --model.")
        if self.preset.engine == "openvino" and (self.vae.use_slicing or self.vae.use_tiling):
            raise InputError("VAE slicing and tiling have no effect with the engine openvino: disable them.")
        if not has_freeu(self.unet):
            return
        if self.preset.engine == "openvino":
            raise InputError("FreeU has no effect with the engine openvino: call disable_freeu, or use another engine.")
        if self.preset.deepcache_interval > 1 and len(self.unet.up_blocks) < 3:
            raise InputError("FreeU has no effect on the features that this preset caches: call disable_freeu.")


def has_freeu(unet: UNet) -> bool:
    """Return whether FreeU is switched on."""
    return any(getattr(block, "b1", None) is not None for block in unet.up_blocks)
