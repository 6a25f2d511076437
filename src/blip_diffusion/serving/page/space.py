"""The page for strangers: without the tabs and routes that show what others do."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI

from blip_diffusion.serving.http.server import empty_app
from blip_diffusion.serving.job_service import JobService
from blip_diffusion.serving.page.page import mount_page
from blip_diffusion.serving.settings import ServiceSettings

DAY = 24 * 3600.0


def create_space(folder: Path, *, model: str = "mini") -> FastAPI:
    """Return an application that is the public page, and nothing else.

    Visitors find their own job again after a reload, and see no one else's. Jobs and images are removed after a day.
    It may stand behind a proxy that names any host.

    Args:
        folder: Where jobs and images are kept; created if missing.
        model: "mini", a folder, or a hub id.

    Returns:
        The application, which starts and stops the job service.

    Example:
        >>> serve(create_space(Path("space")), "0.0.0.0", 7860)
    """
    service = JobService(ServiceSettings(folder, models={Path(model).name: model}, retention=DAY))
    app = empty_app(service, hosts=(), openapi_url=None)
    return mount_page(app, service, public=True)
