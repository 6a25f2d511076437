"""`kill -9` of the server while its jobs run: none is lost, and none is done twice."""

import base64
import json
import sys
import urllib.request
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

from tests.serving.processes import free_port, served

pytestmark = pytest.mark.faces
JOBS, IMAGES = 4, 2
ENDS = 600.0
"""Seconds."""


def call(address: str, path: str, body: dict[str, Any] | None = None, key: str = "") -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    with urllib.request.urlopen(urllib.request.Request(f"{address}{path}", data, headers), timeout=60) as answer:
        return json.load(answer)


def listed(address: str) -> dict[str, Any]:
    return {job["id"]: job for job in call(address, "/v1/jobs?limit=200")["data"]}


def test_a_killed_server_loses_and_repeats_no_job(tiny_folder: Path, tmp_path: Path, dog_png: bytes) -> None:
    port, out = free_port(), tmp_path / "server"
    command = [sys.executable, "-m", "blip_diffusion", "serve", "--port", str(port), "--device", "cpu"]
    command += ["--model", f"tiny={tiny_folder}", "--out", str(out)]
    reference = "data:image/png;base64," + base64.b64encode(dog_png).decode()
    common = {"prompt": "on the beach", "category": "dog", "reference": reference, "n": IMAGES}
    bodies = [common | {"seed": number, "steps": 40 + number} for number in range(JOBS)]  # none joins another

    with served(command, port, tmp_path / "first.txt", wait_for="/healthz") as (address, process):
        ids = [call(address, "/v1/jobs", body, f"key {number}")["id"] for number, body in enumerate(bodies)]
        wait_until(lambda: listed(address)[ids[0]]["state"] == "done")
        first = {path.name: path.read_bytes() for path in (out / "images").glob(f"{ids[0]}-*.png")}
        process.kill()
        process.wait()
    with served(command, port, tmp_path / "second.txt", wait_for="/healthz") as (address, _):
        again = [call(address, "/v1/jobs", body, f"key {number}")["id"] for number, body in enumerate(bodies)]
        assert again == ids  # a client that got no answer sends its request again
        wait_until(lambda: all(job["state"] == "done" for job in listed(address).values()))
        jobs = listed(address)
        assert set(jobs) == set(ids)
        assert {len(job["images"]) for job in jobs.values()} == {IMAGES}
        assert len(list((out / "images").iterdir())) == JOBS * IMAGES
        assert first == {name: (out / "images" / name).read_bytes() for name in first}


def wait_until(true: Any) -> None:
    deadline = monotonic() + ENDS
    while not true():
        assert monotonic() < deadline
        sleep(0.2)
