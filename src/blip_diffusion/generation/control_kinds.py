"""The ControlNets for each kind of control, and the refusal of kinds that a model doesn't serve. Imports no torch."""

from collections.abc import Collection

from blip_diffusion.errors import InputError

BUNDLED_KINDS = ("canny", "map")
"""Control maps that a model's bundled ControlNet reads: the published one reads Canny edges."""
CONTROLNETS = {
    **{kind: f"lllyasviel/sd-controlnet-{kind}" for kind in ("canny", "depth", "hed", "openpose")},
    "normal": "lllyasviel/control_v11p_sd15_normalbae",  # sd-controlnet-normal reads MiDaS normals, not NormalBae's
}
"""ControlNets of Stable Diffusion 1.5 for the maps that `annotators` makes, by kind."""


def check_served(kind: str, served: Collection[str]) -> None:
    """Raise `InputError` for a kind of control that a model doesn't serve; `served` are those that it does."""
    if kind not in served:
        others = ", ".join([*served, "or another model or ControlNet"]) if served else "another model or ControlNet"
        raise InputError(f"There is no ControlNet for {kind} and this model: use {others}.")
