"""The generation settings inside a PNG file: written as JSON, read back as untrusted input."""

import base64
import dataclasses
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from blip_diffusion import __version__, images
from blip_diffusion.errors import BlipDiffusionError, InputError, quoted, reason
from blip_diffusion.escaping import warn
from blip_diffusion.fileio import path_exists, sha256_of
from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.strict_json import parse_json

METADATA = "blip-diffusion"
"""Name of the PNG text chunk."""
OLD_NAMES = {"count": "num_images", "guidance": "guidance_scale", "negative": "negative_prompt", "fit": "resize_mode"}
OLD_CONTROL_NAMES = {"picture": "image", "net": "controlnet"}
"""Keys that versions before 0.5 wrote."""


def encode(request: GenerationRequest, **one_image: Any) -> str:
    """Encode a request as JSON, or, with `prompt`, `seed` and `num_images`, the request of one of its images."""
    table = dataclasses.asdict(request) | {"version": __version__}
    table["reference"] = base64.b64encode(request.reference).decode()
    table["more_references"] = [base64.b64encode(one).decode() for one in request.more_references]
    table["controls"] = [{**one, "image": base64.b64encode(one["image"]).decode()} for one in table["controls"]]
    table["region_mask"] = base64.b64encode(request.region_mask).decode()
    table["more_subjects"] = [_encoded_subject(one) for one in table["more_subjects"]]
    table["subjects"] = [{name: v for name, v in one.items() if name != "thumbnail"} for one in table["subjects"]]
    table["reference_sha256"] = sha256_of(request.reference)
    if one_image:
        del table["prompts"]
    return json.dumps(table | one_image, sort_keys=True)


def _encoded_subject(table: dict[str, Any]) -> dict[str, Any]:
    references = [base64.b64encode(one).decode() for one in table["references"]]
    return table | {"references": references, "mask": base64.b64encode(table["mask"]).decode()}


def read_raw(path: Path) -> str | None:
    """Return the JSON in an image file; `None` if there is none."""
    if not path.is_file():  # a named pipe, for example
        return None
    try:
        with images.open_lazily(path) as image:
            return cast(str | None, image.info.get(METADATA))
    except Exception:  # for damaged files, Pillow raises errors of many types
        return None


def read_request(
    path: Path,
    *,
    model: str | None = None,
    controlnets: Mapping[str, str] = MappingProxyType({}),
    device: str | None = None,
) -> GenerationRequest:
    """Read the request from which a PNG file was generated.

    The file is untrusted input: values are type-checked, embedded images are validated, and nothing is downloaded
    because the file names it.

    Args:
        path: An image or a grid that `run` wrote, of this or an earlier version.
        model: Use this model instead of the one that the file names.
        controlnets: Use these ControlNets, by kind of control.
        device: The device that will generate it. On a CPU, the engine torch takes the place of compiled, because
            compiling takes minutes there and only rounding differs. `None`: the engine is the file's.

    Returns:
        The request of that one image; of a grid, of all its images.

    Raises:
        InputError: If the file holds no valid request, or names a model or ControlNet that is not on this machine.

    Example:
        >>> request = read_request(Path("out/on-the-beach-0.png"))
        >>> run(request, Path("again"))
    """
    if not path_exists(path, Path.is_file):
        raise InputError(f"There is no image at {path}: check the path.")
    request, version = decode(path)
    if version != __version__:
        warn(
            f"{path} is from blip-diffusion {version}, this is {__version__}: presets and mini may have changed, "
            "and the image with them.",
            stacklevel=2,
        )
    return _with_engine(_resolve(request, model, controlnets), device)


def decode(source: images.Source) -> tuple[GenerationRequest, str]:
    """Read the settings in a PNG file, as untrusted input. Nothing that they name is opened.

    Args:
        source: The path of a PNG file, or an open file.

    Returns:
        The request as the file has it, and the version that wrote it.

    Raises:
        InputError: If the file holds no valid request.
    """
    from blip_diffusion import config  # imported here: no other part of a generation needs it

    name = str(source) if isinstance(source, str | Path) else "The file"
    try:
        with images.open_lazily(source) as image:
            text = image.info[METADATA]
        table = _parse(text)
        return config.build(GenerationRequest, _fields(table)), str(table.get("version"))[:20]
    except BlipDiffusionError as error:
        raise InputError(f"{name} holds no generation settings that can be used: {error}") from error
    except Exception as error:  # for damaged files, Pillow raises errors of many types
        raise InputError(f"{name} holds no generation settings: only PNG files of blip-diffusion do.") from error


def _parse(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"they are not valid JSON: {reason(error)}.") from error


def _fields(table: dict[str, Any]) -> dict[str, Any]:
    """Return a request's fields by their current names; unknown keys are dropped."""
    table = _renamed(table, OLD_NAMES)
    names = {field.name for field in dataclasses.fields(GenerationRequest)}
    known = {name: value for name, value in table.items() if name in names}
    known["reference"] = _decode_optional_image("reference", table["reference"])
    _check_digest(known["reference"], table)
    known["more_references"] = [_decode_image(one) for one in table.get("more_references", ())]
    if "prompt" in table:  # else it is a grid, which holds all prompts
        known |= {"prompts": [table["prompt"]], "num_images": 1}
    controls = [_renamed(one, OLD_CONTROL_NAMES) for one in table.get("controls", ())]
    known["controls"] = [{**one, "image": _decode_image(one["image"])} for one in controls]
    known["region_mask"] = _decode_optional_image("region_mask", table.get("region_mask", ""))
    known["more_subjects"] = [_decoded_subject(one) for one in table.get("more_subjects", ())]
    known["subjects"] = [{**one, "thumbnail": b""} for one in table.get("subjects", ())]
    if "size" in table:  # version 0.1
        known |= {"width": table["size"], "height": table["size"]}
    return known


def _decoded_subject(table: dict[str, Any]) -> dict[str, Any]:
    references = [_decode_image(one) for one in table["references"]]
    return {**table, "references": references, "mask": _decode_optional_image("mask", table["mask"])}


def _renamed(table: dict[str, Any], old_names: dict[str, str]) -> dict[str, Any]:
    return {old_names.get(name, name): value for name, value in table.items()}


def _check_digest(reference: bytes, table: Mapping[str, Any]) -> None:
    """Raise `InputError` for a reference other than the one that was written."""
    if table.get("reference_sha256", digest := sha256_of(reference)) != digest:
        raise InputError("the reference is not the one that the image was made from: its digest differs.")


def _decode_optional_image(name: str, text: Any) -> bytes:
    """Decode an embedded PNG; an empty text stands for none, and nothing else does."""
    if not isinstance(text, str):
        raise InputError(f"{name} must be an image as text, not {quoted(text)}.")
    return _decode_image(text) if text else b""


def _decode_image(text: str) -> bytes:
    """Decode an embedded PNG and validate it."""
    png = base64.b64decode(text)
    images.open_image(io.BytesIO(png))
    return png


def _with_engine(request: GenerationRequest, device: str | None) -> GenerationRequest:
    """Return the request with the engine torch if it has compiled and the device is a CPU."""
    from blip_diffusion.devices import device_of

    if request.engine != "compiled" or device is None or device_of(device).type != "cpu":
        return request
    warnings.warn(
        "The image was made with the engine compiled, which takes minutes on a CPU: torch reproduces it, and only "
        "rounding differs.",
        stacklevel=3,
    )
    return dataclasses.replace(request, engine="torch")


def _resolve(request: GenerationRequest, model: str | None, controlnets: Mapping[str, str]) -> GenerationRequest:
    """Apply the caller's model and ControlNets; those that the file names must be local."""
    if model is None and request.model != "mini" and not path_exists(Path(request.model), Path.is_dir):
        raise InputError(
            f"The image was made by {request.model!r}, which isn't here: add --model {request.model!r} to download it, "
            "or give its path."
        )
    if request.upscaler and not path_exists(Path(request.upscaler), Path.is_dir):
        raise InputError(f"The image was enlarged by {request.upscaler!r}, which isn't here: put it there.")
    for control in request.controls:
        known = control.kind in controlnets or not control.controlnet
        if not known and not path_exists(Path(control.controlnet)):
            raise InputError(
                f"The image was made with the ControlNet {control.controlnet!r}, which isn't here: add --controlnet "
                f"{control.kind}={control.controlnet!r} to download it, or give its place."
            )
    for unused in controlnets.keys() - {control.kind for control in request.controls}:
        raise InputError(f"--controlnet {unused} has no effect: the image was made without --control {unused}.")
    controls = tuple(
        dataclasses.replace(one, controlnet=controlnets.get(one.kind, one.controlnet)) for one in request.controls
    )
    return dataclasses.replace(request, model=model or request.model, controls=controls)
