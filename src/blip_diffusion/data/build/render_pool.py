"""Rendering of many models in other processes: of this machine, or of a Ray cluster."""

import errno
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from blip_diffusion.data.build.render import Model, Views, render
from blip_diffusion.errors import DataError, reason
from blip_diffusion.ray_pool import Map, actor_pool

Pool = Callable[[Callable[[Any], Any]], AbstractContextManager[Map]]
"""Return a context of processes that apply a function."""


@contextmanager
def process_pool(function: Callable[[Model], Any], workers: int = 2) -> Iterator[Map]:
    """Context manager: low-priority processes apply a function; an interrupt waits for their models, not for all."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=os.nice, initargs=(5,)) as pool:
        try:
            yield partial(pool.map, function)
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def ray_pool(function: Callable[[Model], Any], actors: int | None = None) -> Iterator[Map]:
    """Context manager: the actors of a Ray cluster apply a function. All nodes share the folder of the build."""
    with actor_pool(partial(_entered, function), actors=actors) as mapped:
        yield mapped


def _entered(function: Callable[[Model], Any]) -> AbstractContextManager[Callable[[Model], Any]]:
    return nullcontext(function)


def render_all(
    models: Sequence[Model],
    folder: Path,
    views: int,
    *,
    pool: Pool = process_pool,
    progress: Callable[[str], None] = print,
) -> Iterator[tuple[Model, Views]]:
    """Render models in other processes, in order; unreadable ones are reported and skipped.

    Raises `DataError` for errors of the machine, such as a full disk, which would skip all following models.
    """
    with pool(partial(_attempt, folder, views)) as mapped:
        outcomes = mapped(models)
        for done, model in enumerate(models, 1):
            try:
                outcome = next(outcomes)
            except BrokenExecutor as error:
                raise _machine_error(model, error) from error
            if isinstance(outcome, str):
                progress(f"  left out {model.key}: {outcome}")
            else:
                yield model, outcome
            if done % 50 == 0:
                progress(f"  {done} of {len(models)} models rendered")


def _attempt(folder: Path, views: int, model: Model) -> Views | str:
    """Render a model, and return its views, or why it can't be rendered."""
    try:
        return render(model, folder, views)
    except Exception as error:  # for damaged files, trimesh raises errors of many types
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or isinstance(error, ImportError | MemoryError):
            raise _machine_error(model, error) from error
        return f"{type(error).__name__}: {error}"


def _machine_error(model: Model, error: Exception) -> DataError:
    return DataError(
        f"{model.key} can't be rendered ({reason(error)}); finished models are kept: fix it, and build again."
    )
