"""A `JobSnapshot` as JSON fields and tensors, and back.

Tensors by name, besides those of its stream (cache/image_fields.py):

    latents/{chunk}         [T, C]    of chunks in flight
    clean/{commit}          [n, C]    of ranges whose keys and values are kept
    held/{chunk}/{role}     [n, C]    predictions of earlier rounds
    decoder/{name}                    state of the decoder
    input/{number}/{name}             of inputs that are tables of tensors, numbered in the order of the fields

Axes: T tokens of a chunk, C latent channels, n tokens of a range. Inputs that are files stay files: their paths are
kept, not what they hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pagedvid.arguments import whole_number, whole_numbers
from pagedvid.cache.image_fields import image_from_fields, image_to_fields
from pagedvid.cache.spec import CacheSpec
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.requests import EarlierPrompt, LaterPrompt, VideoRequest
from pagedvid.engine.snapshot import JobSnapshot
from pagedvid.errors import ConfigError, listed
from pagedvid.files.checked_tensors import take_tensor
from pagedvid.files.plain_json import object_with
from pagedvid.shown import shown

_COUNTS = ("num_rounds_done", "num_frames_out", "num_output_frames")
_REQUEST = tuple(field.name for field in fields_of(VideoRequest))
_PROMPT_LISTS = {"later_prompts": LaterPrompt, "earlier_prompts": EarlierPrompt}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_PLAIN = (str, int, float, type(None))
"""Inputs that JSON holds as they are; bool is an int."""

Prompt = TypeVar("Prompt", LaterPrompt, EarlierPrompt)


def snapshot_to_fields(snapshot: JobSnapshot, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The snapshot as fields for a JSON object. Its tensors, those of `JobSnapshot`, are added to `tensors` by name.

    Raises ConfigError for inputs of the request that no file can hold.
    """
    tensors |= {f"latents/{chunk}": tensor for chunk, tensor in snapshot.latents.items()}
    tensors |= {f"clean/{chunk}": tensor for chunk, tensor in snapshot.clean.items()}
    for chunk, by_role in snapshot.held.items():
        tensors |= {f"held/{chunk}/{role}": tensor for role, tensor in by_role.items()}
    tensors |= {f"decoder/{name}": tensor for name, tensor in snapshot.decoder.items()}
    request = {name: getattr(snapshot.request, name) for name in _REQUEST}
    return {
        "request": {
            **request,
            "inputs": _inputs_to_fields(snapshot.request, tensors),
            **{name: [asdict(it) for it in request[name]] for name in _PROMPT_LISTS},
        },
        **{name: getattr(snapshot, name) for name in _COUNTS},
        "peak_bytes": list(snapshot.peak_bytes),
        "image": None if snapshot.image is None else image_to_fields(snapshot.image, tensors),
    }


def snapshot_from_fields(
    fields: object, tensors: dict[str, Tensor], geometry: ModelGeometry, spec: CacheSpec
) -> JobSnapshot:
    """The snapshot for an engine with such a model and cache; all `tensors` are removed, because all belong to it.

    Raises ConfigError or ShapeError for what no snapshot can be.
    """
    given = object_with(("request", *_COUNTS, "peak_bytes", "image"), fields, "the video")
    request = _request_from_fields(given["request"], tensors)
    peak_bytes = whole_numbers("peak_bytes", given["peak_bytes"], 0, ConfigError)
    if len(peak_bytes) != 2:
        raise ConfigError(f"peak_bytes is {shown(peak_bytes)}; it must be two numbers")
    image = None if given["image"] is None else image_from_fields(given["image"], tensors, spec)
    if image is not None and image.branches.keys() != set(geometry.branches):
        raise ConfigError(
            f"the stream has the branches {shown(listed(list(image.branches)))}, not {listed(geometry.branches)}"
        )
    held: dict[int, dict[str, Tensor]] = {}
    for rest, name in _names(tensors, "held"):
        chunk, _, role = rest.partition("/")
        held.setdefault(_number(chunk), {})[role] = take_tensor(tensors, name, _FLOATS, (None, None))
    snapshot = JobSnapshot(
        request=request,
        **{name: whole_number(name, given[name], 0, error=ConfigError) for name in _COUNTS},
        latents=_latents(tensors, "latents", geometry.chunk_tokens),
        clean=_latents(tensors, "clean", None),
        held=held,
        decoder={rest: tensors.pop(name) for rest, name in _names(tensors, "decoder")},
        peak_bytes=(peak_bytes[0], peak_bytes[1]),
        image=image,
    )
    if tensors:
        raise ConfigError(f"there are tensors that belong to nothing: {shown(listed(sorted(tensors)))}")
    return snapshot


def _request_from_fields(fields: object, tensors: dict[str, Tensor]) -> VideoRequest:
    """Files of earlier versions have no later or earlier prompts."""
    known = {**{name: [] for name in _PROMPT_LISTS}, **fields} if isinstance(fields, dict) else fields
    request = object_with(_REQUEST, known, "the request")
    return VideoRequest(
        **{
            **request,
            "inputs": _inputs_from_fields(request["inputs"], tensors),
            **{name: _prompts_from_fields(name, kind, request[name]) for name, kind in _PROMPT_LISTS.items()},
        }
    )


def _prompts_from_fields(name: str, kind: type[Prompt], written: object) -> tuple[Prompt, ...]:
    if not isinstance(written, list):
        raise ConfigError(f"{name} is {shown(written)}; it must be a list")
    known = tuple(field.name for field in fields_of(kind))
    return tuple(kind(**object_with(known, it, f"one of {name}")) for it in written)


def _names(tensors: Mapping[str, Tensor], kind: str) -> list[tuple[str, str]]:
    """(the rest after "kind/", the whole name) of the tensors of a kind."""
    return [(name.removeprefix(f"{kind}/"), name) for name in tensors if name.startswith(f"{kind}/")]


def _latents(tensors: dict[str, Tensor], kind: str, num_tokens: int | None) -> dict[int, Tensor]:
    shape = (num_tokens, None)
    return {_number(rest): take_tensor(tensors, name, _FLOATS, shape) for rest, name in _names(tensors, kind)}


def _number(written: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,11}", written):
        raise ConfigError(f"{shown(written)} is not the number of a chunk")
    return int(written)


# ---------------------------------------------------------------------- inputs of the request


def _inputs_to_fields(request: VideoRequest, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Each as an object whose only field says what it is."""
    written: dict[str, Any] = {}
    for number, (name, value) in enumerate(request.inputs.items()):
        if isinstance(value, Path):
            written[name] = {"path": str(value)}
        elif isinstance(value, _PLAIN):
            written[name] = {"value": value}
        elif isinstance(value, Mapping) and all(isinstance(each, Tensor) for each in value.values()):
            written[name] = {"tensors": list(value)}
            tensors |= {f"input/{number}/{key}": tensor for key, tensor in value.items()}
        else:
            raise ConfigError(
                f"the input {shown(name)} of request {shown(request.id)} is a {type(value).__name__}, which cannot be "
                "saved; give text, a number, a table of tensors, or the path of a file"
            )
    return written


def _inputs_from_fields(fields: object, tensors: dict[str, Tensor]) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise ConfigError(f"the inputs are {shown(fields)}; they must be an object")
    inputs: dict[str, Any] = {}
    for number, (name, written) in enumerate(fields.items()):
        kind, value = next(iter(written.items())) if isinstance(written, dict) and len(written) == 1 else ("", None)
        if kind == "path" and isinstance(value, str):
            inputs[name] = Path(value)
        elif kind == "value" and isinstance(value, _PLAIN):
            inputs[name] = value
        elif kind == "tensors" and isinstance(value, list):
            inputs[name] = {key: _input_tensor(tensors, f"input/{number}/{key}") for key in map(str, value)}
        else:
            raise ConfigError(f"the input {shown(name)} is {shown(written)}, which is no input")
    return inputs


def _input_tensor(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise ConfigError(f"the tensor {shown(name)} is missing")
    return tensors.pop(name)
