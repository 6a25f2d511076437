import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from blip_diffusion.data.build.render import catalogue
from blip_diffusion.data.build.render_pool import process_pool, ray_pool, render_all
from blip_diffusion.errors import DataError, InputError
from blip_diffusion.generation.request import GenerationRequest
from blip_diffusion.generation.run import run
from blip_diffusion.images import png_bytes
from blip_diffusion.ray_pool import LOCAL_SETTINGS, FunctionActor, _cores_of_each, actor_pool
from blip_diffusion.training.personalize.config import TuneConfig
from blip_diffusion.training.personalize.many import ManyConfig, Outcome, subjects_in, tune_many
from tests.data.build.box import write_catalogue
from tests.ray_functions import squarer
from tests.training.photos import written


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


@pytest.mark.ray
def test_subjects_are_tuned_as_locally_although_an_actor_is_killed(
    cluster: Any, dog: Image.Image, tiny_folder: Path, tmp_path: Path
) -> None:
    for place in ("dog/rex", "dog/max", "toy dog/tom"):
        written(dog, tmp_path / "photos" / place, count=1)
    subjects = subjects_in(tmp_path / "photos")
    config = TuneConfig(steps=3, batch_size=1, trainable="lora", rank=2)
    local, remote = (ManyConfig(tmp_path / name, str(tiny_folder), config, masks="none") for name in ("local", "ray"))
    tune_many(subjects, local)
    ended: list[Outcome] = []

    def kill_an_actor(outcome: Outcome) -> None:
        ended.append(outcome)
        if len(ended) == 1:
            kill_workers_of("FunctionActor")

    tune_many(subjects, remote, backend="ray", actors=1, on_ended=kill_an_actor)
    assert [(one.name, one.state) for one in ended] == [("max", "tuned"), ("rex", "tuned"), ("tom", "tuned")]
    for subject in subjects:
        one, other = (load_file(tmp_path / place / f"{subject.name}.safetensors") for place in ("local", "ray"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert {one.state for one in tune_many(subjects, remote, backend="ray", actors=2)} == {"kept"}


@pytest.mark.ray
def test_models_are_rendered_as_locally(cluster: Any, tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    models = catalogue(write_catalogue(tmp_path / "toys.sh3f"))
    broken = replace(models[0], key="toys/none/none", member="toys/none/none.obj")
    messages: list[str] = []
    rendered = {}
    for pool in (process_pool, partial(ray_pool, actors=2)):
        folder = tmp_path / str(len(rendered))
        views = list(render_all([broken, *models], folder, 2, pool=pool, progress=messages.append))
        rendered[folder] = [(model.key, azimuth, path.read_bytes()) for model, of in views for azimuth, path in of]
    one, other = rendered.values()
    assert one == other and len(one) == 4 and len(messages) == 2


def kill_workers_of(name: str) -> None:
    """End the processes of an actor, as Linux lists them."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_text().startswith(f"ray::{name}"):
                os.kill(int(path.parent.name), signal.SIGKILL)
