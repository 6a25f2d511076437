"""Two servers over one PostgreSQL database: each job is done once, and a killed server's jobs by the other."""

import base64
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from blip_diffusion.errors import InputError

pytest.importorskip("dbos")
from blip_diffusion.serving.server_lock import DatabaseLock
from blip_diffusion.serving.settings import ServiceSettings
from tests.serving.processes import free_port, served
from tests.serving.test_kill import call, listed, wait_until

JOBS = 9


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of an empty database."""
    import tempfile

    pgserver = pytest.importorskip("pgserver")
    with tempfile.TemporaryDirectory(prefix="pg") as folder:  # pytest's folders are closed to the database's user
        server = pgserver.get_server(folder, cleanup_mode="stop")
        server.psql("CREATE DATABASE jobs")
        yield server.get_uri("jobs")
        server.cleanup()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="module")
def two_servers(database: str, tiny_folder: Path, folder: Path) -> Iterator[list[Any]]:
    """The last test that uses them kills the first."""
    with ExitStack() as stack:
        servers = []
        for number in range(2):
            port = free_port()
            command = [sys.executable, "-m", "blip_diffusion", "serve", "--port", str(port), "--device", "cpu"]
            command += ["--model", f"tiny={tiny_folder}", "--out", str(folder / "out"), "--database", database]
            errors = folder / f"{number}.txt"
            servers.append(stack.enter_context(served(command, port, errors, wait_for="/readyz")))
        yield servers


def body_of(dog_png: bytes, number: int, steps: int) -> dict[str, Any]:
    reference = "data:image/png;base64," + base64.b64encode(dog_png).decode()
    return {"prompt": "on the beach", "category": "dog", "reference": reference, "seed": number, "steps": steps}


def events(address: str, kind: str) -> int:
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = [line.split()[1] for line in lines if line.startswith(f'blip_diffusion_job_events_total{{kind="{kind}"}}')]
    return int(float(found[0])) if found else 0


@pytest.mark.faces
def test_a_job_is_cancelled_from_another_server(two_servers: list[Any], dog_png: bytes) -> None:
    (first, _), (second, _) = two_servers
    job = call(first, "/v1/jobs", body_of(dog_png, 0, 100) | {"n": 10})["id"]
    wait_until(lambda: events(first, "progress") + events(second, "progress") > 0)
    runs, other = (first, second) if events(first, "progress") else (second, first)
    urllib.request.urlopen(urllib.request.Request(f"{other}/v1/jobs/{job}", method="DELETE"))
    wait_until(lambda: events(runs, "cancelled") == 1)
    wait_until(lambda: call(runs, f"/v1/jobs/{job}")["state"] == "cancelled")
    before = events(runs, "progress")
    time.sleep(1.0)
    assert events(runs, "progress") == before < 300


@pytest.mark.faces
def test_jobs_are_shared_and_a_killed_servers_jobs_go_on(two_servers: list[Any], folder: Path, dog_png: bytes) -> None:
    (first, process), (second, _) = two_servers
    ids = [call(first, "/v1/jobs", body_of(dog_png, number, 10 + number))["id"] for number in range(JOBS)]
    wait_until(lambda: all(listed(second)[one]["state"] == "done" for one in ids))
    assert set(listed(first)) == set(listed(second)) >= set(ids)
    images = [events(address, "image") for address in (first, second)]
    assert sum(images) == JOBS and min(images) > 0, images  # each job was done once, and both servers did some
    wait_until(lambda: events(first, "done") == JOBS)  # a server looks every second for jobs that ended elsewhere

    ids = [call(second, "/v1/jobs", body_of(dog_png, number, 40 + number) | {"n": 2})["id"] for number in range(JOBS)]
    wait_until(lambda: events(first, "started") > images[0])
    process.kill()
    wait_until(lambda: all(listed(second)[one]["state"] == "done" for one in ids))
    assert {len(listed(second)[one]["images"]) for one in ids} == {2}
    assert len(list((folder / "out/images").iterdir())) == 3 * JOBS


@pytest.mark.faces
def test_a_server_has_ended_when_its_connection_has(database: str, tmp_path: Path) -> None:
    settings = ServiceSettings(tmp_path, database_url=database)
    one, other = DatabaseLock(settings), DatabaseLock(settings)
    one.acquire()
    other.acquire()
    try:
        assert [one.ended([other.name]) for _ in range(2)] == [set(), set()]
        other.release()
        answers = []
        wait_until(lambda: answers.append(one.ended([other.name])) or answers[-1])  # until the database has closed it
        assert answers[-2:] == [set(), {other.name}]
        other.renew()
        assert one.ended([other.name]) == set()
    finally:
        one.release()
        other.release()


def test_a_database_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = ServiceSettings(tmp_path, database_url="postgresql://nobody@127.0.0.1:1/jobs")
    with pytest.raises(InputError, match="--database can't be reached"):
        DatabaseLock(settings).acquire()
    with pytest.raises(InputError, match="--database is mysql: use"):
        ServiceSettings(tmp_path, database_url="mysql://127.0.0.1/jobs")
