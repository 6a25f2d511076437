"""Run a generation request: load the model, generate in batches, write PNG files."""

import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from blip_diffusion import images
from blip_diffusion.checkpoint.adapter_refs import loaded_adapters
from blip_diffusion.devices import device_of
from blip_diffusion.fileio import check_writable
from blip_diffusion.generation.control_inputs import box_of_controls, control_arguments, short_side
from blip_diffusion.generation.edit import Editor
from blip_diffusion.generation.jobs import BATCH_SIZE, Job, jobs_of
from blip_diffusion.generation.output import check_grid_path, existing_images, png_files, save_grid, save_images
from blip_diffusion.generation.request import (
    GenerationRequest,
    with_small_controls,
)
from blip_diffusion.generation.subject_inputs import opened, subject_arguments
from blip_diffusion.generation.subject_refs import load_subjects
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Dtype, preset_on_engine
from blip_diffusion.pipelines.safety import SafetyChecker, Watermark
from blip_diffusion.pipelines.step_callback import StepCallback
from blip_diffusion.pipelines.subject_scale import PARTS
from blip_diffusion.ray_pool import Backend, Map, actor_pool

OnSaved = Callable[[Path, str | None, int | None], None]
"""Called with a file's path, and the prompt and seed of its image, which are `None` for the grid."""
UPSCALING_ARGUMENTS = (
    "reference_image", "source_subject_category", "target_subject_category", "resize_mode", "box", "subject_embeds",
)  # fmt: skip
"""Arguments of a call that `pipe.upscale` takes too."""


def run(
    request: GenerationRequest,
    out: Path,
    *,
    device: str = "auto",
    grid: Path | None = None,
    on_saved: OnSaved | None = None,
    progress: bool = True,
    backend: Backend = "local",
    actors: int | None = None,
    skip_existing: bool = False,
) -> list[Path]:
    """Generate the images of a request and write them as PNG files with their settings inside.

    Nothing is written before the request has been checked. An existing file is overwritten only if the same request
    wrote it; otherwise a number is added to the new file's name.

    Args:
        request: What to generate.
        out: Folder for the images; created if missing.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        grid: Also write a PNG of all images: the reference at the left, one column per prompt, one row per seed.
        on_saved: Called for each file as it is written; see `OnSaved`.
        progress: Show a bar of the sampling steps in a terminal.
        backend: "local", this process, or "ray", the actors of a cluster; see `ray_pool.actor_pool`.
        actors: Number of actors.
        skip_existing: Keep the files that the same request has written, and generate the others.

    Returns:
        The files, in the order of prompts and seeds; the grid is the last.

    Raises:
        InputError: If the request does not fit the model, or nothing can be written.
        CheckpointError: If the model, a ControlNet or a subject file is missing or damaged.
    """
    check_writable(out)
    if grid is not None:
        check_grid_path(grid)
    if backend == "ray":
        pool = actor_pool(partial(batch_function, request, device), actors=actors)
    else:
        pool = local_batches(request, device, progress=progress)
    return _write_all(request, pool, out, grid, on_saved or _ignore, skip_existing=skip_existing)


def _write_all(
    request: GenerationRequest,
    pool: AbstractContextManager[Map],
    out: Path,
    grid: Path | None,
    on_saved: OnSaved,
    *,
    skip_existing: bool,
) -> list[Path]:
    """Write the images of all jobs, in order. Without missing images, the context `pool` is not entered."""
    variants, jobs = request.variants(), jobs_of(request)
    known = [existing_images(variants[job.variant], job.batch, out) if skip_existing else [] for job in jobs]
    missing = [job for job, paths in zip(jobs, known, strict=True) if not paths]
    paths: list[Path] = []
    taken = {*itertools.chain(*known)}
    with pool if missing else nullcontext(iter) as generate:
        generated = generate(missing)
        for job, found in zip(jobs, known, strict=True):
            new = found or save_images(variants[job.variant], next(generated), job.batch, out, taken)
            for path, (prompt, seed) in zip(new, job.batch, strict=True):
                on_saved(path, prompt, seed)
            paths += new
    if grid is not None:
        paths.append(save_grid(request, [images.open_image(path) for path in paths], grid, taken=set(paths)))
        on_saved(paths[-1], None, None)
    return paths


def _ignore(*_: object) -> None:
    pass


@contextmanager
def local_batches(request: GenerationRequest, device: str, *, progress: bool = True) -> Iterator[Map]:
    """Context manager: a model that is loaded in this process, and generates the batches of a request in order."""
    with prepared(load_pipeline(request.model, request.dtype, device), request) as ready:
        function = ready.by_job()

        def generate(items: Iterable[Job]) -> Iterator[list[bytes]]:
            jobs = list(items)
            start, total = 1, sum(len(job.batch) for job in jobs)
            for job in jobs:
                label = f"{start} to {start + len(job.batch) - 1} of {total}" if total > BATCH_SIZE else None
                ready.pipe.set_progress_bar_config(disable=None if progress else True, desc=label)  # None: a terminal
                start += len(job.batch)
                yield function(job)

        yield generate


@contextmanager
def batch_function(request: GenerationRequest, device: str) -> Iterator[Callable[[Job], list[bytes]]]:
    """Context manager: a model is loaded, and the function generates a batch of a request, as PNG files.

    So the actors of a cluster compress the images, and their driver only writes files.
    """
    with prepared(load_pipeline(request.model, request.dtype, device), request) as ready:
        ready.pipe.set_progress_bar_config(disable=True)
        yield ready.by_job()


def load_pipeline(model: str, dtype: Dtype, device: str) -> BlipDiffusionPipeline:
    """Load a model onto a device. Raises `CheckpointError` if it is missing or damaged."""
    target = device_of(device)
    pipe: BlipDiffusionPipeline = BlipDiffusionPipeline.from_pretrained(model, torch_dtype=getattr(torch, dtype))
    return pipe.to(target)


@dataclass(frozen=True)
class PreparedRequest:
    """A request whose subject and controls are loaded into a pipeline.

    Args:
        pipe: The pipeline, with the request's preset.
        request: What to generate.
        arguments: Arguments of every call: the subject, its categories and the controls.
        editor: What edits a photo, if one is edited.
        upscaler: The pipeline that enlarges the images, if one does.
    """

    pipe: BlipDiffusionPipeline
    request: GenerationRequest
    arguments: dict[str, Any]
    editor: Editor | None = None
    upscaler: BlipDiffusionPipeline | None = None

    def with_subject(self, request: GenerationRequest) -> "PreparedRequest":
        """Return the same with the subject of another request."""
        if request is self.request:
            return self
        return replace(self, request=request, arguments={**self.arguments, **_subject_arguments(self.pipe, request)})

    def by_job(self) -> Callable[[Job], list[bytes]]:
        """Return a function that generates the PNG files of a job."""
        variants = [self.with_subject(variant) for variant in self.request.variants()]

        def generate(job: Job) -> list[bytes]:
            ready = variants[job.variant]
            return png_files(ready.request, ready.generate(job.batch), job.batch)

        return generate

    def generate(self, batch: list[tuple[str, int]], on_step: StepCallback | None = None) -> list[Image.Image]:
        """Generate one image for each prompt and seed, in one batch. `on_step` is called after each sampling step."""
        request = self.request
        if self.editor is not None:
            return [self._edited(self.editor, *job, on_step) for job in batch]
        result: list[Image.Image] = self.pipe(
            [prompt for prompt, _ in batch],
            subject_scale=dict(zip(PARTS, request.subject_scale, strict=True)),
            generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
            callback_on_step_end=on_step,
            **self._settings,
        ).images
        return result if self.upscaler is None else self._enlarged(self.upscaler, result, batch)

    def _enlarged(
        self, upscaler: BlipDiffusionPipeline, small: list[Image.Image], batch: list[tuple[str, int]]
    ) -> list[Image.Image]:
        """Return images enlarged with the same prompts, seeds and subject."""
        given = {name: value for name, value in self.arguments.items() if name in UPSCALING_ARGUMENTS}
        generators = [torch.Generator().manual_seed(seed) for _, seed in batch]
        enlarged: list[Image.Image] = upscaler.upscale(
            small, [prompt for prompt, _ in batch], generator=generators, **given
        ).images
        return enlarged

    def _edited(self, editor: Editor, prompt: str, seed: int, on_step: StepCallback | None) -> Image.Image:
        generator = torch.Generator().manual_seed(seed)
        arguments = {"generator": generator, "callback_on_step_end": on_step, **self._settings}
        return editor(self.pipe, prompt, self.request.target_category, arguments)

    @property
    def _settings(self) -> dict[str, Any]:
        """Arguments that generating and editing share."""
        request = self.request
        return {
            "negative_prompt": request.negative_prompt,
            "prompt_weighting": request.prompt_weighting,
            "height": request.height,
            "width": request.width,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance_scale,
            **self.arguments,
        }


@contextmanager
def prepared(pipe: BlipDiffusionPipeline, request: GenerationRequest) -> Iterator[PreparedRequest]:
    """Context manager: a pipeline has a request's preset, subject, LoRAs, words and controls; afterwards the preset.

    Raises:
        InputError: If the request does not fit the model.
        CheckpointError: If a ControlNet, a LoRA, an embedding or a subject file is missing or damaged.
    """
    request = with_small_controls(request, short_side(pipe, request))
    editor = None if request.edit is None else Editor.read(request.edit)
    pipe.set_preset(preset_on_engine(request.preset, request.engine))
    upscaler = load_pipeline(request.upscaler, request.dtype, str(pipe.device)) if request.upscaler else None
    before = set(pipe.subjects)
    with loaded_adapters(pipe, request.loras, request.embeddings), _screening(upscaler or pipe, request):
        try:
            control = control_arguments(pipe, request)
            subject = {} if request.blend_row else _subject_arguments(pipe, request)
            yield PreparedRequest(pipe, request, {**subject, **control}, editor, upscaler)
        finally:
            for name in set(pipe.subjects) - before:
                pipe.unload_subject(name)


@contextmanager
def prepared_jointly(
    pipe: BlipDiffusionPipeline, parts: Sequence[tuple[GenerationRequest, int]]
) -> Iterator[PreparedRequest]:
    """Context manager: like `prepared`, for several requests in one batch. Each image is as it would be alone.

    Args:
        pipe: The pipeline, which gets the preset.
        parts: Requests of the same `batch_key`, each with the number of its images.

    Raises:
        InputError: If a request does not fit the model.
    """
    first = parts[0][0]
    pipe.set_preset(preset_on_engine(first.preset, first.engine))
    each = [request for request, count in parts for _ in range(count)]
    arguments = {
        "reference_image": [images.open_image(io.BytesIO(request.reference)) for request in each],
        "source_subject_category": [request.category for request in each],
        "target_subject_category": [request.target_category for request in each],
        "resize_mode": first.resize_mode,
        "box": first.box,
    }
    with loaded_adapters(pipe, first.loras, first.embeddings), _screening(pipe, first):
        yield PreparedRequest(pipe, first, arguments)


@contextmanager
def _screening(pipe: BlipDiffusionPipeline, request: GenerationRequest) -> Iterator[None]:
    """Context manager: a pipeline has the safety checker and the watermark of a request, beside those set before."""
    before = pipe.safety_checker, pipe.watermark
    try:
        if request.safety_checker and pipe.safety_checker is None:
            pipe.safety_checker = SafetyChecker()
        if request.watermark and pipe.watermark is None:
            pipe.watermark = Watermark()
        yield
    finally:
        pipe.safety_checker, pipe.watermark = before


def _subject_arguments(pipe: Any, request: GenerationRequest) -> dict[str, Any]:
    """Return the arguments of a call for the subject and its position: tuned subjects, else references."""
    if request.more_subjects:
        return subject_arguments(pipe, request)
    place = {"target_subject_category": request.target_category, "box": request.box or box_of_controls(pipe, request)}
    if request.subjects:
        return {"subject_embeds": load_subjects(pipe, request.subjects), **place}
    if not request.reference:
        return {"subject_embeds": torch.zeros(1, 0, pipe.text_encoder.config.hidden_size), **place}
    return {
        "reference_image": [opened((request.reference, *request.more_references))],
        "source_subject_category": request.category,
        "resize_mode": request.resize_mode,
        **place,
    }
