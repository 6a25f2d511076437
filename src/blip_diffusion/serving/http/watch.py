"""Follow a job from an asynchronous route, without a thread for each client."""

import asyncio
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool

from blip_diffusion.serving.events import Event
from blip_diffusion.serving.job_service import JobService
from blip_diffusion.serving.jobs import Job

POLL = 0.05
"""Seconds between polls of the event log, which is in memory."""


async def follow(service: JobService, job_id: str, number: int = 0) -> AsyncIterator[Event]:
    """Yield the events of a job after event `number`, until it has ended."""
    while True:
        events = await run_in_threadpool(service.events_after, job_id, number)
        for event in events:
            yield event
            if event.is_last:
                return
            number = event.number
        await asyncio.sleep(POLL)


async def ended(service: JobService, job_id: str) -> Job:
    """Return a job when it has ended. If the connection closes before, the job continues."""
    async for _ in follow(service, job_id):
        pass
    while not (job := await run_in_threadpool(service.get, job_id)).has_ended:  # its result is stored a moment later
        await asyncio.sleep(POLL)
    return job
