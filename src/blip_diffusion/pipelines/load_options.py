"""Arguments of diffusers' `from_pretrained` and `save_pretrained` that this pipeline refuses instead of ignoring."""

from collections.abc import Mapping
from typing import Any

import torch

from blip_diffusion.devices import present_device
from blip_diffusion.errors import InputError, quoted, reason

NO_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "safety_checker": (None,),
    "feature_extractor": (None,),
    "image_encoder": (None,),
    "requires_safety_checker": (None, False),
    "low_cpu_mem_usage": (None, True, False),  # weights are mapped from their files either way
    "disable_mmap": (None, False),
    "custom_pipeline": (None,),
    "custom_revision": (None,),
    "trust_remote_code": (None, False),
    "output_loading_info": (None, False),
    "load_connected_pipeline": (None, False),
    "quantization_config": (None,),
    "max_memory": (None,),
    "offload_folder": (None,),
    "offload_state_dict": (None, False),
    "proxies": (None,),
    "use_onnx": (None, False),
}
"""Arguments of diffusers' pipelines, and the values for which they have no effect."""


def check_load_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for the hub.

    Raises:
        InputError: For an option of diffusers that isn't supported.
    """
    for name in options.keys() & NO_EFFECT.keys():
        if not any(options[name] is value for value in NO_EFFECT[name]):
            allowed = ", ".join(map(repr, NO_EFFECT[name]))
            raise InputError(f"{name} isn't supported by this pipeline: leave it out, or pass {allowed}.")
    return {name: value for name, value in options.items() if name not in NO_EFFECT}


def check_save_options(options: Mapping[str, Any]) -> None:
    """Raise `InputError` for an option of diffusers' `save_pretrained` that isn't supported."""
    if options.get("push_to_hub"):
        raise InputError("push_to_hub isn't supported: save the folder, then upload it with hf upload owner/name DIR.")
    if options.get("max_shard_size") is not None:
        raise InputError("max_shard_size isn't supported: the weights of each part are written to one file.")
    for name in options.keys() - {"push_to_hub", "max_shard_size"}:
        raise InputError(f"save_pretrained has no argument {name}: leave it out.")


def placement(device_map: Any) -> torch.device | None:
    """Return the device of a `device_map`; `None` leaves the pipeline on the CPU.

    Raises:
        InputError: If it is not a single device that is here: this pipeline's parts are not spread over several.
    """
    if device_map is None:
        return None
    try:
        return present_device(device_map)
    except InputError as error:
        raise InputError(
            f"device_map is {quoted(device_map)}: use one device, for example cuda, or enable_model_cpu_offload "
            f"to save GPU memory ({reason(error)})."
        ) from error
