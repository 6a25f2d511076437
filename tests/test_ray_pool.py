import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from blip_diffusion.errors import DataError, InputError
from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.generation.run import run
from blip_diffusion.images import png_bytes
from blip_diffusion.ray_pool import LOCAL_SETTINGS, FunctionActor, _cores_of_each, actor_pool
from tests.ray_functions import squarer


@contextmanager
def doubler(started: list[int]) -> Iterator[Callable[[int], int]]:
    started.append(1)
    yield lambda item: 2 * item


def test_an_actor_builds_its_function_once() -> None:
    started: list[int] = []
    actor = FunctionActor(partial(doubler, started))
    assert not started and [actor.apply(item) for item in (1, 2, 3)] == [2, 4, 6] and len(started) == 1


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"blip-diffusion\[ray\]"), actor_pool(partial(doubler, [])):
        pass


@pytest.mark.parametrize(("nodes", "count", "cores"), [([1, 1], 1, 1), ([8, 4], 2, 4), ([8, 4], 3, 4), ([8], 8, 1)])
def test_actors_have_equal_cores_that_a_node_has(nodes: list[int], count: int, cores: int) -> None:
    assert _cores_of_each(nodes, count) == cores


# ------------------------------------------------------------------------------------------------- a real cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with one CPU core each, to which this process is connected."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**LOCAL_SETTINGS, "PYTHONPATH": os.pathsep.join(sys.path)}.items():
            patch.setenv(name, value)
        running = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        second = running.add_node(num_cpus=1)
        ray.init(address=running.address, log_to_driver=False)
        yield SimpleNamespace(ray=ray, cluster=running, second=second)
        ray.shutdown()
        running.shutdown()


@pytest.mark.ray
def test_results_are_in_order_although_an_actor_is_killed(cluster: Any, tmp_path: Path) -> None:
    with actor_pool(partial(squarer, tmp_path), actors=2) as compute:
        assert list(compute(range(8))) == [item * item for item in range(8)]
    assert (tmp_path / "killed").exists()


@pytest.mark.ray
def test_errors_of_this_library_arrive_as_they_are(cluster: Any, tmp_path: Path) -> None:
    with actor_pool(partial(squarer, tmp_path), actors=1) as compute:
        results = compute([2, -1, 4])
        assert next(results) == 4
        with pytest.raises(DataError, match=r"^-1 is negative\.$"):
            next(results)


@pytest.mark.ray
@pytest.mark.parametrize("actors", [0, 3])
def test_wrong_numbers_of_actors_are_refused(cluster: Any, tmp_path: Path, actors: int) -> None:
    with (
        pytest.raises(InputError, match=f"--actors is {actors}, and the cluster has 2 CPU cores"),
        actor_pool(partial(squarer, tmp_path), actors=actors),
    ):
        pass


@pytest.fixture
def request_of_dog(dog: Image.Image, tiny_folder: Path) -> GenerationRequest:
    return GenerationRequest(
        prompts=("on the beach", "on grass"),
        reference=png_bytes(dog),
        category="dog",
        target_category="dog",
        model=str(tiny_folder),
        num_images=8,
        steps=2,
    )


@pytest.mark.ray
def test_images_equal_the_local_ones_although_a_node_is_lost(
    cluster: Any, request_of_dog: GenerationRequest, tmp_path: Path
) -> None:
    local = run(request_of_dog, tmp_path / "local", device="cpu", progress=False)
    saved: list[Path] = []

    def lose_a_node(path: Path, prompt: str | None, seed: int | None) -> None:
        saved.append(path)
        if len(saved) == 1:
            cluster.cluster.remove_node(cluster.second)
            cluster.second = cluster.cluster.add_node(num_cpus=1)

    remote = run(request_of_dog, tmp_path / "ray", device="cpu", backend="ray", actors=2, on_saved=lose_a_node)
    assert saved == remote and [path.name for path in remote] == [path.name for path in local]
    assert [path.read_bytes() for path in remote] == [path.read_bytes() for path in local]
