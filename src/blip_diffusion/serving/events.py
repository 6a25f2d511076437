"""Events of jobs, kept in memory, which clients can read from any event on."""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["queued", "started", "progress", "preview", "image", "done", "failed", "cancelled"]
ENDS: tuple[Kind, ...] = ("done", "failed", "cancelled")
MAX_EVENTS, MAX_JOBS = 400, 1000
"""Most events per job, and most jobs with events."""


@dataclass(frozen=True)
class Event:
    """One event of a job.

    Args:
        number: Counts from 1 for each job.
        kind: The kind of event. `ENDS` are the last events of a job.
        data: JSON values.
        preview: A JPEG, if the kind is "preview".
    """

    number: int
    kind: Kind
    data: Mapping[str, Any] = field(default_factory=dict)
    preview: bytes = b""

    @property
    def is_last(self) -> bool:
        """Whether it is the job's last event."""
        return self.kind in ENDS


class EventLog:
    """The events of recent jobs. They are lost with the process; the queue stores the results of jobs."""

    def __init__(self) -> None:
        self.epoch = f"{time.time_ns():x}"
        """Distinguishes the event numbers of this process from those of an earlier one."""
        self._jobs: OrderedDict[str, list[Event]] = OrderedDict()
        self._numbers: dict[str, int] = {}
        self._lock = threading.Lock()
        self.totals: Counter[Kind] = Counter()
        """Events of this process by kind."""

    def add(self, job: str, kind: Kind, data: Mapping[str, Any] | None = None, preview: bytes = b"") -> None:
        """Append an event. Only the newest preview of a job is kept; the oldest events of many are dropped."""
        with self._lock:
            self.totals[kind] += 1
            number = self._numbers[job] = self._numbers.get(job, 0) + 1
            events = self._jobs.setdefault(job, [])
            if kind == "preview":
                events[:] = [event for event in events if event.kind != "preview"]
            events.append(Event(number, kind, data or {}, preview))
            del events[:-MAX_EVENTS]
            self._jobs.move_to_end(job)
            while len(self._jobs) > MAX_JOBS:
                self._numbers.pop(self._jobs.popitem(last=False)[0], None)

    def after(self, job: str, number: int) -> Sequence[Event]:
        """Return the events of a job with a higher number than `number`."""
        with self._lock:
            return [event for event in self._jobs.get(job, ()) if event.number > number]

    def open_jobs(self) -> list[str]:
        """Return the jobs whose last event is not the last of a job."""
        with self._lock:
            return [job for job, events in self._jobs.items() if events and not events[-1].is_last]
