"""Messages between the service and a worker process, over a pipe. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from blip_diffusion.generation.edit_request import EditInput
from blip_diffusion.generation.request import GenerationRequest


@dataclass(frozen=True)
class Batch:
    """A part of a job: some of its images, generated together.

    Args:
        job: Id of the job.
        request: The job's request. Its model and its subjects are ids.
        model: Path or hub id of that model.
        subject_files: Path of each subject, in the order of the request.
        images: A prompt and a seed for each image.
        edit: The request's edit, with the paths of photo and mask in place of their ids.
        auto_dtype: Use the fastest precision of the preset and the device, instead of the request's.
        previews: Previews of each batch, 0 for none.
    """

    job: str
    request: GenerationRequest
    model: str
    subject_files: tuple[str, ...]
    images: tuple[tuple[str, int], ...]
    edit: EditInput | None = None
    auto_dtype: bool = False
    previews: int = 0


@dataclass(frozen=True)
class JointBatch:
    """Batches of one or several jobs that are generated together; their requests have the same `batch_key`."""

    batches: tuple[Batch, ...]

    @property
    def jobs(self) -> tuple[str, ...]:
        """The id of each batch's job."""
        return tuple(batch.job for batch in self.batches)


@dataclass(frozen=True)
class Crop:
    """A task to return the square of a reference that the image encoder reads.

    Args:
        reference: An image file.
        model: Path or hub id of the model.
        resize_mode: As in a request. `None`: the model's.
        jobs: None; every task has this.
    """

    reference: bytes
    model: str
    resize_mode: Literal["crop", "squash", "pad", "subject"] | None = None
    jobs: tuple[str, ...] = ()


Task = JointBatch | Crop


@dataclass(frozen=True)
class Cancel:
    """To a worker: stop this job at the next step."""

    job: str


@dataclass(frozen=True)
class Ready:
    """From a worker: the model is loaded, or `problem` is the error.

    Args:
        problem: The error of loading it, or empty.
        control_kinds: The kinds of control that it serves; `None` without a model.
    """

    problem: str = ""
    control_kinds: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Progress:
    """From a worker: a sampling step has ended. `previews` are a JPEG for each batch, or nothing."""

    step: int
    steps: int
    previews: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Finished:
    """From a worker: the PNG files of a task, or its error."""

    files: tuple[bytes, ...] = ()
    outcome: Literal["done", "failed", "cancelled"] = "done"
    cause: str = ""
    problem: str = ""
    seconds: float = 0.0
