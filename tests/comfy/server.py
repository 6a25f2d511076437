"""A real ComfyUI in a process of its own, and what a client of it needs."""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

ROOT = Path(__file__).parents[2]
READY = 300.0
ENDS = ("execution_success", "execution_error", "execution_interrupted")
PREVIEW = 1
"""ComfyUI's number for binary messages that hold a preview."""
Graph = dict[str, Any]


@dataclass
class Outcome:
    """How a graph ended: the messages that the page would get, previews, and what the nodes show."""

    end: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    progress: list[tuple[int, int]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    shown: dict[str, list[Path]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comfy:
    """A running ComfyUI."""

    address: str
    folder: Path

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Return status and answer."""
        request = urllib.request.Request(
            f"http://{self.address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as answer:
            return json.loads(answer.read())

    def run(self, graph: Graph, *, interrupt_at: int = 0) -> Outcome:
        """Run a graph to its end."""
        return asyncio.run(asyncio.wait_for(self._run(graph, interrupt_at), timeout=300))

    async def _run(self, graph: Graph, interrupt_at: int) -> Outcome:
        import aiohttp

        outcome = Outcome()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://{self.address}/ws?clientId=test", max_msg_size=0) as messages,
        ):
            post: Callable[..., Awaitable[Any]] = asyncio.to_thread
            status, answer = await post(self.post, "/prompt", {"prompt": graph, "client_id": "test"})
            assert status == 200, answer
            async for message in messages:
                if message.type == aiohttp.WSMsgType.BINARY:
                    if int.from_bytes(message.data[:4]) == PREVIEW:
                        outcome.previews.append(message.data[8:])
                elif self._is_end(json.loads(message.data), outcome):
                    return outcome
                if interrupt_at and outcome.progress and outcome.progress[-1][0] >= interrupt_at:
                    interrupt_at = 0
                    await post(self.post, "/interrupt", {})
        raise AssertionError("ComfyUI closed the connection.")

    def _is_end(self, message: dict[str, Any], outcome: Outcome) -> bool:
        kind, data = message["type"], message.get("data", {})
        if kind == "progress":
            outcome.progress.append((data["value"], data["max"]))
        if kind == "executed" and data.get("output"):
            files = data["output"].get("images", [])
            outcome.shown[data["node"]] = [self.folder / f["type"] / f["subfolder"] / f["filename"] for f in files]
        if kind in ENDS:
            outcome.end, outcome.data = kind, data
        return kind in ENDS


@contextmanager
def running(comfyui: Path, folder: Path, packs: dict[str, Path]) -> Iterator[Comfy]:
    """Context manager: ComfyUI with all its data in a folder, and packs of custom nodes by name."""
    for name in ("custom_nodes", "input", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, pack in packs.items():
        shutil.copytree(pack, folder / "custom_nodes" / name)
    log = folder / "log.txt"
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--cpu", "--listen", "127.0.0.1"]
    command += [
        "--port",
        str(_free_port()),
        "--base-directory",
        str(folder),
        "--database-url",
        f"sqlite:///{folder}/comfy.db",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    options = {"cwd": comfyui, "env": environment}
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out, **options) as process:
        try:
            yield Comfy(_address(process, log), folder)
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = monotonic() + READY
    while monotonic() < deadline and process.poll() is None:
        if found := re.search(r"To see the GUI go to: http://(\S+)", log.read_text()):
            return found[1]
        sleep(0.5)
    raise AssertionError(f"ComfyUI did not start: {log.read_text()[-3000:]}")
