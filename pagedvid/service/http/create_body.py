"""The body of `POST /v1/videos` and `POST /v1/sessions`: JSON, or a form as OpenAI's client sends it, perhaps with a
picture or a video to go on from."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from pagedvid.output.given_files import IMAGE, KINDS, MOVIE, SIGNATURE_BYTES, VIDEO, file_kind
from pagedvid.service.http.errors import RequestError, first_complaint
from pagedvid.service.http.schemas import CreateSession
from pagedvid.service.http.video_schemas import CreateVideo
from pagedvid.service.records import Reference
from pagedvid.shown import short

MAX_FIELDS = 16
_JSON, _FORMS = "application/json", ("multipart/form-data", "application/x-www-form-urlencoded")
_REFERENCE, _START = "input_reference", "start_seconds"

New = TypeVar("New", CreateVideo, CreateSession)


def documented_body(kind: type[New]) -> dict[str, Any]:
    """The body for the OpenAPI page, which cannot see it in the signature of the endpoint."""
    schema = kind.model_json_schema()
    parts = {f"#/$defs/{name}": part for name, part in schema.pop("$defs").items()}
    schema["properties"] = _with_parts(schema["properties"], parts)
    file = {"type": "string", "format": "binary", "description": f"What the video goes on from: {KINDS}."}
    form = {**schema, "properties": {**schema["properties"], _REFERENCE: file}}
    del schema["properties"][_START]  # of the file, which only a form has
    kinds = {_JSON: schema, _FORMS[0]: form}
    return {"requestBody": {"required": True, "content": {kind: {"schema": each} for kind, each in kinds.items()}}}


def _with_parts(schema: Any, parts: dict[str, Any]) -> Any:
    """A schema with these parts in the place of references to them."""
    if isinstance(schema, dict):
        return parts.get(schema.get("$ref", "")) or {name: _with_parts(it, parts) for name, it in schema.items()}
    return [_with_parts(it, parts) for it in schema] if isinstance(schema, list) else schema


async def read_body(request: Request, kind: type[New]) -> tuple[New, Reference | None]:
    """Reads and checks the body: what is asked for, and what it goes on from. Raises RequestError, and HTTPException
    for a form that cannot be read."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type in _FORMS:
        fields, file = await _form_fields(request)
        read = kind.model_validate_strings
    elif content_type in (_JSON, ""):
        fields, file = await _json_fields(request), None
        read = kind.model_validate
    else:
        raise RequestError(
            f"the body is {short(content_type)}; send application/json or multipart/form-data", None, "unsupported", 415
        )
    others = {name: value for name, value in fields.items() if name.partition("[")[0] != _REFERENCE}
    if any(fields[name] for name in fields.keys() - others.keys()):
        raise RequestError(
            f"{_REFERENCE} must be one file in a form (multipart/form-data): {KINDS}", _REFERENCE, "invalid_value"
        )
    try:
        body = read(others)
    except ValidationError as error:
        message, param = first_complaint(error.errors())
        raise RequestError(message, param) from None
    return body, _reference(file, body.start_seconds)


def _reference(file: bytes | None, start_seconds: float | None) -> Reference | None:
    """What the first bytes of the file say that it is."""
    name = None if file is None else file_kind(file[:SIGNATURE_BYTES])
    if file is not None and name is None:
        raise RequestError(f"{_REFERENCE} is none of {KINDS}", _REFERENCE)
    kind = VIDEO if name == MOVIE else IMAGE
    if start_seconds is not None and (file is None or kind != VIDEO):
        found = "there is none" if file is None else "it is a picture"
        raise RequestError(
            f"{_START} is a time in a video that is given as {_REFERENCE}, but {found}: leave {_START} out", _START
        )
    return None if file is None else Reference(kind, file, start_seconds)


async def _form_fields(request: Request) -> tuple[dict[str, str], bytes | None]:
    """The fields, and the content of the file to go on from."""
    async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
        fields, file = dict(form), None
        if isinstance(given := fields.get(_REFERENCE), UploadFile):
            del fields[_REFERENCE]
            file = await given.read()
    texts = {name: value for name, value in fields.items() if isinstance(value, str)}
    for misplaced in fields.keys() - texts.keys():
        raise RequestError(f"{short(misplaced)!r} is a file; only {_REFERENCE} can be one", misplaced)
    return texts, file


async def _json_fields(request: Request) -> dict[str, Any]:
    try:
        fields = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"the body is not JSON: {reason}") from None
    if not isinstance(fields, dict):
        raise RequestError(f"the body is a {type(fields).__name__}; give a JSON object")
    return fields
