"""The size of the images that a model generates, read from its configuration."""

from pathlib import Path

from blip_diffusion.checkpoint.locate import find_model, is_hub_id
from blip_diffusion.checkpoint.weights import config_errors, read_json


def default_side(name: str | Path) -> int | None:
    """Return the side in pixels of the images that a model generates by default.

    Args:
        name: `mini`, a folder, or a hub id, for which the result is `None`.

    Raises:
        CheckpointError: If there is no such folder, or the configuration of its U-Net or autoencoder is damaged.

    Example:
        >>> default_side("mini")
        128
    """
    if is_hub_id(name):
        return None
    folder = find_model(name)
    unet, vae = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
    with config_errors("the model"):
        return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
