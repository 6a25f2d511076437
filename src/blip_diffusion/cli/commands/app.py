"""`blip-diffusion app`: the web page, with the HTTP server behind it."""

from __future__ import annotations

import argparse

from blip_diffusion.cli.commands.serve import service_flags, service_settings
from blip_diffusion.control_characters import print_text
from blip_diffusion.errors import InputError

EXTRA = "The page needs further packages: pip install 'blip-diffusion[app]'."


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    service_flags(parser)
    parser.add_argument("--port", type=int, default=7860, help="port (default: 7860)")


def run(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        InputError: If Gradio is missing, or the page, which needs no key, is reachable by others.
    """
    try:
        from blip_diffusion.serving.http.guards import LOOPBACK
        from blip_diffusion.serving.http.server import check_address, create_app, serve
        from blip_diffusion.serving.job_service import JobService
        from blip_diffusion.serving.page.page import mount_page
    except ImportError as error:
        raise InputError(EXTRA) from error
    if arguments.host not in LOOPBACK:
        raise InputError(
            f"--host {arguments.host} makes the page reachable by others, and it needs no key: use an SSH tunnel."
        )
    check_address(arguments.host, arguments.port)
    service = JobService(service_settings(arguments))
    app = mount_page(create_app(service, hosts=[*LOOPBACK, *arguments.allow_host]), service)
    print_text(f"http://{arguments.host}:{arguments.port}")
    serve(app, arguments.host, arguments.port)
