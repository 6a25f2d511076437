"""`blip-diffusion serve`: an HTTP server with OpenAI's images routes and durable jobs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from blip_diffusion.cli.flags import check_screening, screening_flags
from blip_diffusion.control_characters import print_text
from blip_diffusion.errors import InputError

if TYPE_CHECKING:
    from blip_diffusion.serving.settings import ServiceSettings

EXTRA = "The server needs further packages: pip install 'blip-diffusion[server]'."


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.set_defaults(command=run)
    service_flags(parser)
    parser.add_argument("--port", type=int, default=8000, help="port (default: 8000)")
    parser.add_argument("--keys", type=Path, metavar="FILE", help="API keys; needed where others can reach the server")
    parser.add_argument("--new-key", metavar="NAME", help="add a key to --keys FILE, print it, and exit")


def service_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the job service, which the page has too."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="also answer to this Host name; repeatable"
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="[NAME=]MODEL",
        help="mini (default), a folder, or a hub id, under a name for clients; repeatable, the first is the default",
    )
    parser.add_argument(
        "--device", action="append", default=[], help="one worker process each: auto (default), cpu, cuda:0; repeatable"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("server"), metavar="DIR", help="jobs, images and subjects (default: server)"
    )
    parser.add_argument("--database", default="", metavar="URL", help="job queue (default: SQLite in --out)")
    screening_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    try:
        from blip_diffusion.serving.http.guards import LOOPBACK
        from blip_diffusion.serving.http.keys import new_key, read_keys
        from blip_diffusion.serving.http.server import check_address, check_exposure, create_app, serve
        from blip_diffusion.serving.job_service import JobService
    except ImportError as error:
        raise InputError(EXTRA) from error
    if arguments.new_key is not None:
        if arguments.keys is None:
            raise InputError("--new-key needs --keys FILE: name the file of keys.")
        print_text(new_key(arguments.keys, arguments.new_key))
        return
    keys = read_keys(arguments.keys) if arguments.keys else None
    check_exposure(arguments.host, keys)
    check_address(arguments.host, arguments.port)
    hosts = [*LOOPBACK, arguments.host, *arguments.allow_host]
    app = create_app(JobService(service_settings(arguments)), keys=keys, hosts=hosts)
    print_text(f"http://{arguments.host}:{arguments.port}")
    serve(app, arguments.host, arguments.port)


def service_settings(arguments: argparse.Namespace) -> ServiceSettings:
    """Return the settings of the flags in `service_flags`. Raises `InputError` if they can't be used."""
    from blip_diffusion.fileio import check_writable
    from blip_diffusion.serving.settings import ServiceSettings

    check_screening(arguments)
    _check_devices(arguments.device)
    check_writable(arguments.out)
    return ServiceSettings(
        folder=arguments.out,
        models=_models(arguments.model or ["mini"]),
        devices=tuple(arguments.device) or ("auto",),
        database_url=arguments.database,
        safety_checker=arguments.safety_checker,
        watermark=arguments.watermark,
    )


def _check_devices(names: list[str]) -> None:
    """Raise `InputError` for a device that isn't here, of which a worker would fail again and again."""
    others = [name for name in names if name not in ("auto", "cpu")]
    if others:
        from blip_diffusion.devices import device_of

        for name in others:
            device_of(name)


def _models(texts: list[str]) -> dict[str, str]:
    """Parse `--model NAME=MODEL`; without a name, a folder or hub id goes by its last part."""
    models = {}
    for text in texts:
        name, sign, path = text.partition("=")
        name, path = (name, path) if sign else (Path(text).name, text)
        if not name or not path or name in models:
            raise InputError(f"--model {text} can't be used: write NAME=MODEL, each name once.")
        models[name] = path
    return models
