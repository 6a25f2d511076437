"""A pool of actors of a Ray cluster (Moritz et al. 2018). Killed workers and lost nodes are replaced."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal

from blip_diffusion.errors import BlipDiffusionError, InputError
from blip_diffusion.optional_packages import require_package

Backend = Literal["local", "ray"]
"""Where work is done: in this process, or by the actors of a cluster."""
Build = Callable[[], AbstractContextManager[Callable[[Any], Any]]]
"""Return a context that yields the function of an actor."""
Map = Callable[[Iterable[Any]], Iterator[Any]]
"""Apply the function of the actors to items, and return the results in the order of the items."""
LOCAL_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""A cluster of this process alone listens on the loopback address and reports nothing."""


@contextmanager
def worker_pool(build: Build, *, backend: Backend, actors: int | None = None) -> Iterator[Map]:
    """Context manager: apply a function in this process, or on the actors of a cluster; see `actor_pool`."""
    if backend == "ray":
        with actor_pool(build, actors=actors) as mapped:
            yield mapped
        return
    with build() as function:
        yield partial(map, function)


class FunctionActor:
    """Enter a context at the first call, then apply the function that it yields to items. Runs in a process of Ray."""

    def __init__(self, build: Build) -> None:
        self._build = build
        self._context: AbstractContextManager[Callable[[Any], Any]] | None = None

    def apply(self, item: Any) -> Any:
        """Return the function's result; a new process enters the context again."""
        if self._context is None:
            context = self._build()
            self._function = context.__enter__()
            self._context = context  # entered until the process ends
        return self._function(item)


@contextmanager
def actor_pool(build: Build, *, actors: int | None = None) -> Iterator[Map]:
    """Context manager: actors that each enter a context once, such as a loaded model.

    The cluster is that of the environment variable `RAY_ADDRESS`, or else one of this machine, which ends with the
    context. An item whose actor dies is computed again by its successor.

    Args:
        build: Returns the context, which yields the function; `build` and the items are pickled. Files that it reads
            must exist on every node.
        actors: Number of actors, each with one of the cluster's GPUs or, without any, an equal share of its CPU
            cores; by default one for each GPU or, without any, for each node.

    Yields:
        A function from items to an iterator of results, in order. An error of a result is raised by the iterator.

    Raises:
        InputError: If Ray is missing, or the cluster has fewer GPUs or CPU cores than actors.

    Example:
        >>> with actor_pool(partial(loaded_model, "mini"), actors=4) as compute:
        ...     for image in compute(prompts):
        ...         image.save(next(names))
    """
    require_package("ray", "ray", "--on ray")
    import ray

    started = _connect(ray)
    workers: list[Any] = []
    try:
        workers += _actors(ray, build, actors)
        yield lambda items: _results(ray, workers, items)
    finally:
        for worker in workers:
            ray.kill(worker)
        if started:
            ray.shutdown()


def _connect(ray: Any) -> bool:
    """Connect to the cluster, and return whether this started it."""
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        for name, value in LOCAL_SETTINGS.items():
            os.environ.setdefault(name, value)
    try:
        ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"There is no Ray cluster at RAY_ADDRESS={address}: {error}") from error
    return True


def _actors(ray: Any, build: Build, count: int | None) -> list[Any]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus, cpus = ([int(node.get(kind, 0)) for node in nodes] for kind in ("GPU", "CPU"))
    kind, available = ("GPUs", sum(gpus)) if any(gpus) else ("CPU cores", sum(cpus))
    count = count if count is not None else sum(gpus) or len(nodes)
    if not 1 <= count <= available:
        raise InputError(f"--actors is {count}, and the cluster has {available} {kind}: use 1 to {available}.")
    share = {"num_gpus": 1} if any(gpus) else {"num_cpus": _cores_of_each(cpus, count)}
    remote = ray.remote(max_restarts=-1, max_task_retries=-1, **share)(FunctionActor)
    return [remote.remote(build) for _ in range(count)]


def _cores_of_each(nodes: list[int], count: int) -> int:
    """Return the most CPU cores that each of `count` actors can have on nodes with these cores."""
    return max(share for share in range(1, max(nodes) + 1) if sum(cores // share for cores in nodes) >= count)


def _results(ray: Any, workers: list[Any], items: Iterable[Any]) -> Iterator[Any]:
    pool = ray.util.ActorPool(workers)
    results = pool.map(lambda worker, item: worker.apply.remote(item), items)
    while True:
        try:
            yield next(results)
        except StopIteration:
            return
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, BlipDiffusionError):
                raise error.cause from None
            raise
