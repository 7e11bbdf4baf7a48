"""schemathesis against the service's own description: whatever fits it or just does not, nothing is the service's
fault, and every answer is as described."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pagedvid.service.http.app import create_app
from tests.service.http import conftest
from tests.service.http.fake_sessions import FakeSessions, NewSession

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SCHEMA = schemathesis.openapi.from_dict(create_app(FakeSessions(Path()), conftest.settings()).openapi())


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[tuple[str, FakeSessions]]:
    sessions = FakeSessions(tmp_path_factory.mktemp("sessions"))
    with conftest.served(sessions) as (host, port):
        yield f"http://{host}:{port}", sessions


def references(part: object) -> Iterator[str]:
    """All "$ref" in a part of the description."""
    if isinstance(part, dict):
        yield from (value for name, value in part.items() if name == "$ref" and isinstance(value, str))
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from references(each)


def test_what_the_description_refers_to_is_in_it():
    description = create_app(FakeSessions(Path()), conftest.settings()).openapi()
    parts = {f"#/components/schemas/{name}" for name in description["components"]["schemas"]}
    assert set(references(description)) <= parts


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/sessions"])
def test_only_forms_bring_a_file(path):
    description = create_app(FakeSessions(Path()), conftest.settings()).openapi()
    bodies = description["paths"][path]["post"]["requestBody"]["content"]
    form, json = (bodies[kind]["schema"]["properties"] for kind in ("multipart/form-data", "application/json"))
    assert form["input_reference"]["format"] == "binary"
    assert form.keys() - json.keys() == {"input_reference", "start_seconds"}
    assert "at_seconds" in json["prompts"]["anyOf"][0]["items"]["properties"]


@SCHEMA.exclude(path="/v1/events").parametrize()  # it never ends
@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
def test_no_request_is_the_services_fault(case, service):
    address, sessions = service
    if not case.path.endswith("/events"):
        name_a_session(case, sessions)
    case.call_and_validate(base_url=address, checks=CHECKS, timeout=10)


def name_a_session(case, sessions: FakeSessions) -> None:
    """Lets most requests be about a session that exists: one of three, each in another state."""
    for name, given in (case.path_parameters or {}).items():
        choice = hashlib.sha256(repr(given).encode()).digest()[0] % 4
        if choice == 3:
            return
        id = sessions.create(NewSession("a red circle", 4, kind="video")).id
        for _ in range(choice % 2):
            sessions.chunk(id)
        if choice == 2:
            sessions.fail(id)
        elif case.path.endswith("stream.mp4"):
            sessions.finish(id)
        case.path_parameters[name] = id
