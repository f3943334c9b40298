"""schemathesis reads the server's own description and sends what it allows, and what it does not:
nothing fails inside, every answer has the shape and the status that the description gives it.
"""

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.checks import negative_data_rejection

from jaxinfer.server.app import ENDPOINTS
from tests.server.conftest import CONTEXT, HEADERS
from tests.server.fakes import Engine, serving

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
BOUNDS = settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)


def sent(operation, mode, checks) -> int:
    """Send examples of one kind; how many there were."""
    count = 0

    @BOUNDS
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case):
        nonlocal count
        count += 1
        case.call_and_validate(headers=HEADERS, checks=checks, timeout=30)

    send()
    return count


def test_answers_are_what_the_description_says(model):
    with serving(model, Engine(), max_length=CONTEXT) as (client, service):
        url = f"{client.base_url}/openapi.json"
        schema = schemathesis.openapi.from_url(url, headers=HEADERS)
        operations = {
            one.ok().path: one.ok()
            for one in schema.get_all_operations()
            if not one.ok().path.startswith("/admin")
        }
        described = {e.path.replace(":path", "") for e in ENDPOINTS if e.guard != "admin"}
        assert described - set(operations) <= {"/openapi.json"}
        for operation in operations.values():
            assert sent(operation, GenerationMode.POSITIVE, CHECKS) > 0
            if operation.method.upper() == "POST":
                sent(operation, GenerationMode.NEGATIVE, [*CHECKS, negative_data_rejection])
        assert client.get("/health").status_code == 200
        assert service.loop.ready
