"""The body of `POST /v1/videos`: JSON, or a form as OpenAI's client sends it."""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from pydantic import ValidationError

from pagedvid.service.http.errors import RequestError, first_complaint
from pagedvid.service.http.video_schemas import CreateVideo
from pagedvid.shown import short

MAX_FIELDS = 16
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_REFERENCE = "input_reference"


def documented_body() -> dict[str, Any]:
    """The body for the OpenAPI page, which cannot see it in the signature of the endpoint."""
    schema = CreateVideo.model_json_schema()
    kinds = ("application/json", "multipart/form-data")
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema} for kind in kinds}}}


async def read_create_video(request: Request) -> CreateVideo:
    """Reads and checks the body. Raises RequestError, and HTTPException for a form that cannot be read."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _FORMS:
        fields = await _form_fields(request)
    elif kind in ("application/json", ""):
        fields = await _json_fields(request)
    else:
        raise RequestError(
            f"the body is {short(kind)}; send application/json or multipart/form-data", None, "unsupported", 415
        )
    reference = next((name for name in fields if name.partition("[")[0] == _REFERENCE and fields[name]), None)
    if reference is not None:
        raise RequestError(
            "the model takes no pictures or videos, only a prompt; leave input_reference out",
            _REFERENCE,
            "unsupported_parameter",
        )
    fields = {name: value for name, value in fields.items() if name.partition("[")[0] != _REFERENCE}
    try:
        return CreateVideo.model_validate(fields)
    except ValidationError as error:
        message, param = first_complaint(error.errors())
        raise RequestError(message, param) from None


async def _form_fields(request: Request) -> dict[str, Any]:
    async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
        return dict(form)


async def _json_fields(request: Request) -> dict[str, Any]:
    try:
        fields = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the body is not JSON: {reason}") from None
    if not isinstance(fields, dict):
        raise RequestError(f"the body is a {type(fields).__name__}; give a JSON object")
    return fields
