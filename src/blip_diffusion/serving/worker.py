"""A worker process: loads models and generates, in one thread. The only file of the job service that imports torch."""

import dataclasses
import io
import signal
import sys
import time
from collections import OrderedDict
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.errors import BlipDiffusionError
from blip_diffusion.generation.control_inputs import control_kinds
from blip_diffusion.generation.output import png_with_metadata
from blip_diffusion.generation.png_metadata import encode
from blip_diffusion.generation.previews import preview_image, preview_steps
from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.generation.run import load_pipeline, prepared, prepared_jointly
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Dtype, default_dtype
from blip_diffusion.references import square_reference
from blip_diffusion.serving.messages import Batch, Cancel, Crop, Finished, JointBatch, Progress, Ready, Task

MAX_MODELS = 2


class Cancelled(Exception):  # noqa: N818  # not an error
    """Raised within a sampling step to end a job."""


def main(connection: Connection, device: str, model: str) -> None:
    """Run tasks until the other end of the pipe closes, when the service ends or is killed.

    Args:
        connection: Sends `Ready`, then receives tasks; for each, sends `Progress` and one `Finished`.
        device: See `devices.device_of`.
        model: The model to load at the start.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service decides when to stop
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # exits with clean-up, unlike the default handler
    worker = _Worker(connection, device)
    try:
        connection.send(worker.preload(model))
        while True:
            task = connection.recv()
            if not isinstance(task, Cancel):  # else its job has just ended
                connection.send(worker.run(task))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class _Worker:
    """Loaded models, and the execution of tasks."""

    def __init__(self, connection: Connection, device: str) -> None:
        self.connection, self.device = connection, device
        self.pipes: OrderedDict[tuple[str, Dtype], BlipDiffusionPipeline] = OrderedDict()

    def preload(self, model: str) -> Ready:
        """Load a model and return what to report of it."""
        try:
            return Ready(control_kinds=control_kinds(self.pipe(model, "float32")))
        except BlipDiffusionError as error:
            return Ready(str(error))

    def pipe(self, model: str, dtype: Dtype) -> BlipDiffusionPipeline:
        """Return a model, after loading it if necessary; the least recently used one is dropped."""
        key = (model, dtype)
        if key not in self.pipes:
            while len(self.pipes) >= MAX_MODELS:
                self.pipes.popitem(last=False)
            self.pipes[key] = load_pipeline(model, dtype, self.device)
            self.pipes[key].set_progress_bar_config(disable=True)
        self.pipes.move_to_end(key)
        return self.pipes[key]

    def run(self, task: Task) -> Finished:
        """Run a task and return its outcome, also for errors. Only a lost pipe ends the process."""
        started = time.perf_counter()
        try:
            files = self._crop(task) if isinstance(task, Crop) else self._generate(task)
        except Cancelled:
            return Finished(outcome="cancelled")
        except BlipDiffusionError as error:
            return Finished(outcome="failed", cause=error.code, problem=str(error))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return Finished(
                outcome="failed", cause="out_of_memory", problem="The device is out of memory: request less."
            )
        except Exception as error:  # a bug fails one job, not the process
            return Finished(outcome="failed", cause="internal_error", problem=f"Generation failed: {error!r}."[:500])
        return Finished(tuple(files), seconds=time.perf_counter() - started)

    def _crop(self, task: Crop) -> list[bytes]:
        model = self.pipe(task.model, "float32").model
        image = images.read_image(io.BytesIO(task.reference), lambda opened: opened.copy())
        return [images.png_bytes(square_reference(model, image, task.resize_mode).image)]

    def _generate(self, task: JointBatch) -> list[bytes]:
        requests = [self._with_dtype(batch) for batch in task.batches]  # with ids, for the metadata
        pipe = self.pipe(task.batches[0].model, requests[0].dtype)
        if len(requests) > 1:
            counts = [len(batch.images) for batch in task.batches]
            context = prepared_jointly(pipe, list(zip(requests, counts, strict=True)))
        else:
            context = prepared(pipe, _with_files(requests[0], task.batches[0]))
        with context as ready:
            images_of_all = [image for batch in task.batches for image in batch.images]
            results = iter(ready.generate(images_of_all, _Steps(self.connection, task)))
            requests[0] = dataclasses.replace(requests[0], controls=ready.request.controls)  # at the size of the images
        return [
            png_with_metadata(next(results), encode(request, prompt=prompt, seed=seed, num_images=1))
            for request, batch in zip(requests, task.batches, strict=True)
            for prompt, seed in batch.images
        ]

    def _with_dtype(self, batch: Batch) -> GenerationRequest:
        request = batch.request
        dtype = default_dtype(request.preset, self.device) if batch.auto_dtype else request.dtype
        return dataclasses.replace(request, dtype=dtype)


def _with_files(request: GenerationRequest, batch: Batch) -> GenerationRequest:
    """Return a request with the paths of its model, its subjects and its photo in place of their ids."""
    files = zip(request.subjects, batch.subject_files, strict=True)
    subjects = tuple(dataclasses.replace(subject, path=path) for subject, path in files)
    return dataclasses.replace(request, model=batch.model, subjects=subjects, edit=batch.edit)


class _Steps:
    """Called after each sampling step: reports it, and ends the task once all its jobs are cancelled."""

    def __init__(self, connection: Connection, task: JointBatch) -> None:
        self._connection, self._task = connection, task
        self._cancelled: set[str] = set()

    def __call__(self, pipe: Any, index: int, _timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        while self._connection.poll():
            self._cancelled.add(self._connection.recv().job)
        if self._cancelled.issuperset(self._task.jobs):
            raise Cancelled
        steps = pipe.num_timesteps
        is_preview_step = index + 1 in preview_steps(steps, self._task.batches[0].previews)
        previews = self._previews(pipe, tensors["latents"]) if is_preview_step else ()
        self._connection.send(Progress(index + 1, steps, previews))
        return {}

    def _previews(self, pipe: Any, latents: Tensor) -> tuple[bytes, ...]:
        """Return a preview of each batch, which shows its own images only."""
        if len(self._task.batches) == 1:  # whose edits run one after another
            return (_preview(pipe, latents),)
        counts = [len(batch.images) for batch in self._task.batches]
        return tuple(_preview(pipe, one) for one in torch.split(latents, counts))


def _preview(pipe: Any, latents: Tensor) -> bytes:
    """Return the preview of noisy latents as a JPEG."""
    buffer = io.BytesIO()
    preview_image(pipe, latents).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
