"""Run a generation request: load the model, generate in batches, write PNG files."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from blip_diffusion import images
from blip_diffusion.checkpoint.model_folder import load_controlnet
from blip_diffusion.devices import device_of
from blip_diffusion.errors import InputError
from blip_diffusion.fileio import check_writable
from blip_diffusion.generation.adapter_refs import load_adapters
from blip_diffusion.generation.output import check_grid_path, save_grid, save_images
from blip_diffusion.generation.request import CONTROLNETS, ControlInput, GenerationRequest
from blip_diffusion.generation.subject_refs import load_subjects
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Dtype, preset_on_engine
from blip_diffusion.pipelines.step_callback import StepCallback

OnSaved = Callable[[Path, str | None, int | None], None]
"""Gets a file's path, and the prompt and the seed of its image; `None` for the grid."""
BATCH_SIZE = 8
"""Images per batch: memory grows with it, and an interrupt loses the current batch."""
BUNDLED_KINDS = ("canny", "map")
"""Control maps that a model's bundled ControlNet reads: the published one reads Canny edges."""


def run(
    request: GenerationRequest,
    out: Path,
    *,
    device: str = "auto",
    grid: Path | None = None,
    on_saved: OnSaved | None = None,
    progress: bool = True,
) -> list[Path]:
    """Generate the images of a request and write them as PNG files with their settings inside.

    Nothing is written before the request is known to be possible. An existing file is overwritten only if the same
    request made it; otherwise the new file gets a number at its end.

    Args:
        request: What to generate.
        out: Folder for the images; created if missing.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        grid: Also write a PNG of all images: the reference at the left, one column per prompt, one row per seed.
        on_saved: Called for each file as it is written; see `OnSaved`.
        progress: Show a bar of the sampling steps in a terminal.

    Returns:
        The written files, in the order of prompts and seeds; the grid is the last.

    Raises:
        InputError: If the request does not fit the model, or nothing can be written.
        CheckpointError: If the model, a ControlNet or a subject file is missing or damaged.
    """
    check_writable(out)
    if grid is not None:
        check_grid_path(grid)
    prepared = prepare(load_pipeline(request.model, request.dtype, device), request)
    jobs = [(prompt, request.seed + copy) for prompt in request.prompts for copy in range(request.num_images)]
    generated: list[Image.Image] = []
    paths: list[Path] = []
    for start in range(0, len(jobs), BATCH_SIZE):
        batch = jobs[start : start + BATCH_SIZE]
        label = f"{start + 1} to {start + len(batch)} of {len(jobs)}" if len(jobs) > BATCH_SIZE else None
        prepared.pipe.set_progress_bar_config(disable=None if progress else True, desc=label)  # None: in a terminal
        results = prepared.generate(batch)
        new = save_images(request, results, batch, out, taken=set(paths))
        for path, job in zip(new, batch, strict=True):
            if on_saved is not None:
                on_saved(path, *job)
        paths += new
        generated += results if grid is not None else []
    if grid is not None:
        paths.append(save_grid(request, generated, grid, taken=set(paths)))
        if on_saved is not None:
            on_saved(paths[-1], None, None)
    return paths


def load_pipeline(model: str, dtype: Dtype, device: str) -> BlipDiffusionPipeline:
    """Load a model onto a device. Raises `CheckpointError` if it is missing or damaged."""
    place = device_of(device)
    pipe: BlipDiffusionPipeline = BlipDiffusionPipeline.from_pretrained(model, torch_dtype=getattr(torch, dtype))
    return pipe.to(place)


@dataclass(frozen=True)
class PreparedRequest:
    """A request whose subject and controls are loaded into a pipeline.

    Args:
        pipe: The pipeline, with the request's preset.
        request: What to generate.
        arguments: Arguments of every call: the subject, its categories and the controls.
    """

    pipe: BlipDiffusionPipeline
    request: GenerationRequest
    arguments: dict[str, Any]

    def generate(self, batch: list[tuple[str, int]], on_step: StepCallback | None = None) -> list[Image.Image]:
        """Generate one image for each prompt and seed, in one batch. `on_step` is called after each sampling step."""
        request = self.request
        result: list[Image.Image] = self.pipe(
            [prompt for prompt, _ in batch],
            box=request.box,
            negative_prompt=request.negative_prompt,
            height=request.height,
            width=request.width,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
            callback_on_step_end=on_step,
            **self.arguments,
        ).images
        return result


def prepare(pipe: BlipDiffusionPipeline, request: GenerationRequest) -> PreparedRequest:
    """Apply a request's preset to a pipeline, and load its subject and its controls.

    Raises:
        InputError: If the request does not fit the model.
        CheckpointError: If a ControlNet or a subject file is missing or damaged.
    """
    pipe.set_preset(preset_on_engine(request.preset, request.engine))
    load_adapters(pipe, request.loras, request.embeddings)
    control = _control_arguments(request.controls, pipe)
    target = {"target_subject_category": request.target_category}
    return PreparedRequest(pipe, request, {**_subject_arguments(pipe, request), **target, **control})


def prepare_joint(pipe: BlipDiffusionPipeline, parts: Sequence[tuple[GenerationRequest, int]]) -> PreparedRequest:
    """Prepare several requests to be generated in one batch. Each image is as it would be alone.

    Args:
        pipe: The pipeline, which gets the preset.
        parts: Requests of the same `batch_key`, each with the number of its images.

    Returns:
        What generates all their images, part after part.

    Raises:
        InputError: If a request does not fit the model.
    """
    first = parts[0][0]
    pipe.set_preset(preset_on_engine(first.preset, first.engine))
    load_adapters(pipe, first.loras, first.embeddings)
    each = [request for request, count in parts for _ in range(count)]
    arguments = {
        "reference_image": [images.open_image(io.BytesIO(request.reference)) for request in each],
        "source_subject_category": [request.category for request in each],
        "target_subject_category": [request.target_category for request in each],
        "resize_mode": first.resize_mode,
    }
    return PreparedRequest(pipe, first, arguments)


def _subject_arguments(pipe: Any, request: GenerationRequest) -> dict[str, Any]:
    """Return the arguments of a call that say what the subject is: the tuned subjects, else the references."""
    if request.subjects:
        return {"subject_embeds": load_subjects(pipe, request.subjects)}
    if not request.reference:
        return {"subject_embeds": torch.zeros(1, 0, pipe.text_encoder.config.hidden_size)}
    references = [images.open_image(io.BytesIO(one)) for one in (request.reference, *request.more_references)]
    if len(references) > 1:
        mode = request.resize_mode
        return {"subject_embeds": pipe.encode_subject(references, request.category, resize_mode=mode)}
    return {
        "reference_image": references[0],
        "source_subject_category": request.category,
        "resize_mode": request.resize_mode,
    }


def _control_arguments(controls: tuple[ControlInput, ...], pipe: Any) -> dict[str, Any]:
    if not controls:
        return {}
    nets = [_load_controlnet(control, pipe) for control in controls]
    maps = [images.open_image(io.BytesIO(control.image)) for control in controls]
    single = len(controls) == 1
    return {
        "image": maps[0] if single else maps,
        "controlnet": nets[0] if single else nets,
        "controlnet_conditioning_scale": [control.scale for control in controls],
    }


def _load_controlnet(control: ControlInput, pipe: Any) -> Any:
    """Return the ControlNet or adapter of a control. Nothing is downloaded that cannot fit."""
    if not control.controlnet and pipe.controlnet is not None and control.kind in BUNDLED_KINDS:
        return pipe.controlnet
    if not control.controlnet and control.kind in pipe.t2i_adapters:
        return pipe.t2i_adapters[control.kind].to(pipe.device)
    is_sd15 = pipe.unet.config.cross_attention_dim == 768
    if not control.controlnet and (not is_sd15 or control.kind not in CONTROLNETS):
        raise InputError(f"There is no ControlNet for {control.kind} and this model: name one with --controlnet.")
    return load_controlnet(control.controlnet or CONTROLNETS[control.kind], dtype=pipe.unet.dtype).to(pipe.device)
