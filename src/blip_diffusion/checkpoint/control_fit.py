"""Check that ControlNets and T2I-Adapters fit the model that they control."""

from typing import Any

from blip_diffusion.diffusion.concatenation import inpainting_channels
from blip_diffusion.diffusion.controlnet import is_adapter
from blip_diffusion.errors import InputError
from blip_diffusion.modules.placed_unet import is_placed
from blip_diffusion.protocols import UNet

SHAPES = ("cross_attention_dim", "in_channels", "block_out_channels", "layers_per_block")
"""Keys of a ControlNet's configuration that equal the U-Net's."""
CONDITIONS = ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type")
"""Keys of configurations of ControlNets that need more conditions than the text, as those of SDXL."""


def check_control_fit(net: Any, unet: UNet, factor: int) -> None:
    """Check that a network for structure control fits a model.

    Args:
        net: A ControlNet or a T2I-Adapter.
        unet: The model's U-Net.
        factor: How many times smaller the model's latents are than images.

    Raises:
        InputError: If the network is for another U-Net or VAE.
    """
    if is_adapter(net):
        _check_adapter(net, unet, factor)
    else:
        _check_not_placed(unet)
        _check_controlnet(net, unet, factor)


def _check_not_placed(unet: UNet) -> None:
    """Raise `InputError` for a U-Net with placed tokens, whose position codes a ControlNet doesn't read."""
    if is_placed(unet.config):
        raise InputError(
            "This model places subject tokens, which a ControlNet can't read: use a T2I-Adapter, as "
            "blip-diffusion train-control trains it."
        )


def _check_adapter(net: Any, unet: UNet, factor: int) -> None:
    theirs, ours = (tuple(x) for x in (net.config.channels, unet.config.block_out_channels))
    if theirs != ours:
        raise InputError(f"The adapter is for another U-Net: its channels are {theirs}, this model's are {ours}.")
    if net.config.adapter_type == "full_adapter_xl":
        raise InputError("The adapter is for another U-Net: its adapter_type is full_adapter_xl, that of SDXL.")
    if net.config.downscale_factor != factor:
        raise InputError(
            f"The adapter is for another VAE: its downscale_factor is {net.config.downscale_factor}, this model's is "
            f"{factor}."
        )


def _check_controlnet(net: Any, unet: UNet, factor: int) -> None:
    for name in SHAPES:
        theirs, ours = net.config[name], unet.config[name]
        theirs, ours = (tuple(x) if isinstance(x, list | tuple) else x for x in (theirs, ours))
        if name == "in_channels" and ours == inpainting_channels(int(net.config.in_channels)):
            continue  # such a U-Net reads a mask too, and the ControlNet the latents alone
        if theirs != ours:
            raise InputError(f"The ControlNet is for another U-Net: its {name} is {theirs}, this model's is {ours}.")
    for name in CONDITIONS:
        if net.config.get(name) is not None and net.config.get(name) != unet.config.get(name):
            raise InputError(f"The ControlNet is for another U-Net: its {name} is {net.config[name]}.")
    if net.config.conditioning_channels != 3:
        raise InputError(f"The ControlNet reads images of {net.config.conditioning_channels} channels: use one for 3.")
    downscaling = 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)
    if downscaling != factor:
        raise InputError(
            f"The ControlNet is for another VAE: it reduces images {downscaling} times, and this model's "
            f"{factor} times."
        )
