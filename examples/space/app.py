"""The page of blip-diffusion as a Gradio Space. Locally: `python app.py`, then http://127.0.0.1:7860."""

import os
import tempfile
from pathlib import Path

PERSISTENT = Path("/data")
"""Storage that a Space may have; without it, a restart forgets jobs and images."""


def main() -> None:
    """Serve the page where a Space expects it."""
    from blip_diffusion.serving.http.server import serve  # not in the worker process, which imports this file too
    from blip_diffusion.serving.page.space import create_space

    parent = PERSISTENT if os.access(PERSISTENT, os.W_OK) else Path(tempfile.mkdtemp())
    app = create_space(parent / "blip-diffusion", model=os.environ.get("MODEL", "mini"))
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    serve(app, host, int(os.environ.get("GRADIO_SERVER_PORT", "7860")))


if __name__ == "__main__":
    main()
