"""Load a server beyond what it can do while its processes are killed, and count what became of every accepted job.

python benchmarks/soak.py --jobs 500 --kill-every 30 --out out/soak

Jobs are sent at ten times the rate of the worker. Meanwhile `kill -9` ends the worker every `--kill-every` seconds, and
the server once, when half of the jobs are done. A refused job (429) is sent again with the same idempotency key until
it is accepted. The result is `soak.json`: jobs lost, done twice or failed, and the memory of both processes over time.
"""

import argparse
import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OVERLOAD = 10
REFERENCE = Path(__file__).parent.parent / "examples" / "dog.png"


@dataclass
class Result:
    """What is counted."""

    jobs: int = 0
    refused: int = 0
    killed_workers: int = 0
    killed_servers: int = 0
    states: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    done_twice: int = 0
    seconds: float = 0.0
    seconds_per_job: float = 0.0
    memory: list[dict[str, float]] = field(default_factory=list)


class Server:
    """`blip-diffusion serve` in a process that can be killed and started again."""

    def __init__(self, out: Path, model: str, port: int) -> None:
        self._command = [sys.executable, "-m", "blip_diffusion", "serve", "--port", str(port), "--device", "cpu"]
        self._command += ["--model", model, "--out", str(out / "server")]
        self._log = (out / "server.log").open("ab")
        self._address = f"http://127.0.0.1:{port}"
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=self._log, stderr=self._log)

    def call(self, path: str, body: dict[str, Any] | None = None, key: str = "") -> Any:
        """Send a request until the server answers it."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        while True:
            try:
                request = urllib.request.Request(f"{self._address}{path}", data, headers)
                with urllib.request.urlopen(request, timeout=120) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code == 429:
                    return None
                if error.code != 503:
                    raise SystemExit(f"{path}: {error.code} {error.read().decode()[:300]}") from error
            except (urllib.error.URLError, ConnectionError, TimeoutError, ValueError):
                pass
            time.sleep(0.2)

    def workers(self) -> list[int]:
        """Return the ids of the worker processes, as Linux lists the children of the server's threads."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        ids = {int(word) for path in tasks for word in _read(path).split()}
        return [one for one in sorted(ids) if "spawn_main" in _read(Path(f"/proc/{one}/cmdline"))]

    def kill(self) -> None:
        """End the server as a power cut would, and start it again."""
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def stop(self) -> None:
        """End the server properly."""
        self.process.terminate()
        self.process.wait(60)


def _read(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def memory_mb(process: int) -> float:
    """Return the resident memory of a process."""
    lines = [line for line in _read(Path(f"/proc/{process}/status")).splitlines() if line.startswith("VmRSS")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def main() -> None:
    """Run the soak."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kill-every", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--out", type=Path, default=Path("out/soak"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = soak(Server(arguments.out, arguments.model, arguments.port), arguments)
    (arguments.out / "soak.json").write_text(json.dumps(asdict(result), indent=1) + "\n", encoding="utf-8")
    print(json.dumps({name: value for name, value in asdict(result).items() if name != "memory"}))


def soak(server: Server, arguments: argparse.Namespace) -> Result:
    """Send the jobs, kill processes meanwhile, and count."""
    reference = "data:image/png;base64," + base64.b64encode(REFERENCE.read_bytes()).decode()
    body = {"prompt": "on the beach", "category": "dog", "reference": reference, "steps": arguments.steps}
    result, ended = Result(jobs=arguments.jobs), threading.Event()
    result.seconds_per_job = _seconds_per_job(server, body)
    started = time.monotonic()
    threads = [
        threading.Thread(target=_kill, args=(server, arguments.kill_every, ended, result)),
        threading.Thread(target=_watch, args=(server, ended, result, started)),
    ]
    for thread in threads:
        thread.start()
    ids = _send(server, body, arguments.jobs, result)
    states = _wait(server, ids)
    ended.set()
    for thread in threads:
        thread.join()
    result.seconds = time.monotonic() - started
    result.states = dict(Counter(job["state"] if job else "lost" for job in states))
    result.lost = sum(job is None for job in states)
    images = [image["id"] for job in states if job for image in job["images"]]
    result.done_twice = len(images) - len({image.partition("-")[0] for image in images})
    server.stop()
    return result


def _seconds_per_job(server: Server, body: dict[str, Any]) -> float:
    """Return how long a warm worker takes for a job."""
    for key in ("cold", "warm"):
        begun = time.monotonic()
        job = server.call("/v1/jobs", body | {"seed": 10**6}, f"{os.getpid()} {key}")
        while server.call(f"/v1/jobs/{job['id']}")["state"] != "done":
            time.sleep(0.02)
    return time.monotonic() - begun


def _send(server: Server, body: dict[str, Any], jobs: int, result: Result) -> list[str]:
    """Send all jobs at ten times the worker's rate, those that are refused again and again."""
    ids = []
    for number in range(jobs):
        while (job := server.call("/v1/jobs", body | {"seed": number}, f"{os.getpid()} {number}")) is None:
            result.refused += 1
            time.sleep(result.seconds_per_job)
        ids.append(job["id"])
        if number == jobs // 2:
            server.kill()
            result.killed_servers += 1
        time.sleep(result.seconds_per_job / OVERLOAD)
    return ids


def _wait(server: Server, ids: list[str]) -> list[Any]:
    """Return all jobs when they have ended; `None` for one that the server doesn't know."""
    known: dict[str, Any] = {}
    while True:
        for one in [one for one in ids if one not in known]:
            job = server.call(f"/v1/jobs/{one}")
            if job["state"] in ("queued", "running"):
                break  # the later ones wait behind it
            known[one] = job
        if len(known) == len(ids):
            return [known[one] for one in ids]
        time.sleep(1.0)


def _kill(server: Server, every: float, ended: threading.Event, result: Result) -> None:
    while not ended.wait(every):
        for one in server.workers():
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
                result.killed_workers += 1


def _watch(server: Server, ended: threading.Event, result: Result, started: float) -> None:
    while not ended.wait(5.0):
        worker = max([memory_mb(one) for one in server.workers()], default=0.0)
        now = round(time.monotonic() - started, 1)
        result.memory.append({"at": now, "server_mb": memory_mb(server.process.pid), "worker_mb": worker})


if __name__ == "__main__":
    main()
