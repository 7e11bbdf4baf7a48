"""The body of `POST /v1/videos`: JSON, or a form as OpenAI's client sends it, perhaps with a picture or a video."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from pagedvid.output.given_files import IMAGE, KINDS, MOVIE, SIGNATURE_BYTES, VIDEO, file_kind
from pagedvid.service.http.errors import RequestError, first_complaint
from pagedvid.service.http.video_schemas import CreateVideo
from pagedvid.service.records import Reference
from pagedvid.shown import short

MAX_FIELDS = 16
_JSON, _FORMS = "application/json", ("multipart/form-data", "application/x-www-form-urlencoded")
_REFERENCE = "input_reference"


def documented_body() -> dict[str, Any]:
    """The body for the OpenAPI page, which cannot see it in the signature of the endpoint."""
    schema = CreateVideo.model_json_schema(ref_template="#/components/schemas/{model}")
    del schema["$defs"]  # other calls use the same parts, which the page lists once
    file = {"type": "string", "format": "binary", "description": f"What the video goes on from: {KINDS}."}
    form = {**schema, "properties": {**schema["properties"], _REFERENCE: file}}
    kinds = {_JSON: schema, _FORMS[0]: form}
    return {"requestBody": {"required": True, "content": {kind: {"schema": each} for kind, each in kinds.items()}}}


async def read_create_video(request: Request) -> tuple[CreateVideo, Reference | None]:
    """Reads and checks the body. Raises RequestError, and HTTPException for a form that cannot be read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    reference = None
    if kind in _FORMS:
        fields, reference = await _form_fields(request)
    elif kind in (_JSON, ""):
        fields = await _json_fields(request)
    else:
        raise RequestError(
            f"the body is {short(kind)}; send application/json or multipart/form-data", None, "unsupported", 415
        )
    others = {name: value for name, value in fields.items() if name.partition("[")[0] != _REFERENCE}
    if any(fields[name] for name in fields.keys() - others.keys()):
        raise RequestError(
            f"{_REFERENCE} must be one file in a form (multipart/form-data): {KINDS}", _REFERENCE, "invalid_value"
        )
    try:
        return CreateVideo.model_validate(others), reference
    except ValidationError as error:
        message, param = first_complaint(error.errors())
        raise RequestError(message, param) from None


async def _form_fields(request: Request) -> tuple[dict[str, Any], Reference | None]:
    """The fields, and the file."""
    async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
        fields = dict(form)
        given = fields.get(_REFERENCE)
        if not isinstance(given, UploadFile):
            return fields, None
        content = await given.read()
    del fields[_REFERENCE]
    kind = file_kind(content[:SIGNATURE_BYTES])
    if kind is None:
        raise RequestError(f"{_REFERENCE} is none of {KINDS}", _REFERENCE)
    return fields, Reference(VIDEO if kind == MOVIE else IMAGE, content)


async def _json_fields(request: Request) -> dict[str, Any]:
    try:
        fields = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the body is not JSON: {reason}") from None
    if not isinstance(fields, dict):
        raise RequestError(f"the body is a {type(fields).__name__}; give a JSON object")
    return fields
