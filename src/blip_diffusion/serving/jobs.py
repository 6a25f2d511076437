"""The state of a job for clients."""

from dataclasses import dataclass
from typing import Any, Literal

from blip_diffusion.generation.request import GenerationRequest

State = Literal["queued", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class Job:
    """The state of a job at some time.

    Args:
        id: 32 hexadecimal digits.
        state: The state in the queue.
        owner: Name of the API key that it came with; empty without keys.
        created: Unix time; `started` and `finished` are 0 until then.
        request: Its request; `None` if its reference has been removed.
        images: Ids of its images so far, in the order of prompts and seeds.
        problem: The error of a failed job, in a sentence.
        cause: The error's code.
        seconds: Time that its images took on the workers, once it is done.
    """

    id: str
    state: State
    owner: str
    created: float
    started: float
    finished: float
    request: GenerationRequest | None
    images: tuple[str, ...] = ()
    problem: str = ""
    cause: str = ""
    seconds: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether it is done, failed or cancelled."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def ending(self) -> dict[str, Any]:
        """The data of the last event."""
        if self.state == "done":
            return {"images": list(self.images)}
        return {"problem": self.problem, "cause": self.cause} if self.state == "failed" else {}
