"""Schemathesis: requests that follow the server's description, and many that don't, against a real server."""

from typing import Any

import pytest

pytest.importorskip("schemathesis")
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

pytestmark = pytest.mark.faces
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]
SLOW = ("/v1/jobs/{job_id}/events",)
"""Streams, which tests of their own read."""
SETTINGS = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_every_answer_is_described(address: str) -> None:
    """Without Schemathesis' pytest plugin, which needs an attribute that pytest 9.2 no longer has."""
    described = schemathesis.openapi.from_url(f"{address}/v1/openapi.json").exclude(path=list(SLOW))
    operations = [result.ok() for result in described.get_all_operations()]
    assert len(operations) > 15
    for operation in operations:
        check_operation(operation)


def check_operation(operation: Any) -> None:
    @SETTINGS
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, timeout=120)

    check()
