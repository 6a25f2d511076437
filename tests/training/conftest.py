import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TOYS = Path(__file__).with_name("toys.py")
Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def launch() -> Launch:
    """Runs `toys.py` in a process of its own, or in several under `accelerate launch`."""

    def run(*specs: dict[str, Any], processes: int = 1) -> subprocess.CompletedProcess[str]:
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
            command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
            command += ["--main_process_port", "0"]  # any that is free
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, str(TOYS), json.dumps(specs)], capture_output=True, text=True, env=environment, timeout=300
        )

    return run
