"""`/healthz`, `/readyz`, `/metrics`, `/v1/models`: for administrators. Only the models need a key."""

import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from blip_diffusion.pipelines.presets import PRESETS
from blip_diffusion.serving.http.context import Owner, Service
from blip_diffusion.serving.http.problems import Problem, response
from blip_diffusion.serving.job_service import JobService

router = APIRouter(tags=["server"])
STARTED = int(time.time())


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """Return that the server is alive."""
    return {"status": "ok"}


@router.get("/readyz", response_model=None)
def readyz(service: Service) -> Response | dict[str, Any]:
    """Return whether a worker has loaded its model and the queue can be read."""
    if not service.is_ready:
        return response(Problem(503, "not_ready", service.problem or "The model is being loaded."))
    return {"status": "ready", "waiting": service.waiting()}


@router.get("/metrics", response_class=Response)
def metrics(service: Service) -> Response:
    """Return metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Metrics(service))
    return Response(generate_latest(registry), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/models")
def models(service: Service, _: Owner) -> dict[str, Any]:
    """Return the models that a request may name."""
    data = [
        {"id": name, "object": "model", "created": STARTED, "owned_by": "local"} for name in service.settings.models
    ]
    return {"object": "list", "data": data}


@router.get("/v1/presets")
def presets(_: Owner) -> dict[str, Any]:
    """Return the presets that a request may name."""
    return {"object": "list", "data": [{"id": name, "steps": preset.steps} for name, preset in PRESETS.items()]}


class _Metrics(Collector):
    """Collector that reads the numbers of a service on each request."""

    def __init__(self, service: JobService) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        events = CounterMetricFamily("blip_diffusion_job_events", "Events of jobs since the start.", labels=["kind"])
        for kind, total in sorted(self._service.log.totals.items()):
            events.add_metric([kind], total)
        yield events
        pool = self._service.pool
        yield CounterMetricFamily("blip_diffusion_worker_restarts", "Worker processes replaced.", value=pool.restarts)
        yield GaugeMetricFamily("blip_diffusion_jobs_waiting", "Jobs in the queue.", value=self._service.waiting())
        yield GaugeMetricFamily(
            "blip_diffusion_ready", "Whether a worker is ready.", value=float(self._service.is_ready)
        )
