"""How the codecs of streams and chunks are written in JSON."""

from __future__ import annotations

from typing import Any

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.codecs.assignment import ChunkCodecs, CodecPair
from pagedvid.files.plain_json import object_with, rows_of


def codecs_to_fields(codecs: StreamCodecs) -> dict[str, Any]:
    """Fields for a JSON object."""
    return {
        "history": _either_to_fields(codecs.history),
        "sink": _either_to_fields(codecs.sink),
        "newest": _either_to_fields(codecs.newest),
        "layers": [[first, last, str(pair)] for first, last, pair in codecs.layers],
        "look_back": [list(each) for each in codecs.look_back],
    }


def codecs_from_fields(fields: object) -> StreamCodecs:
    """The inverse of `codecs_to_fields`. Raises ConfigError."""
    names = ("history", "sink", "newest", "layers", "look_back")
    given = object_with(names, fields, "the codecs of the stream")
    return StreamCodecs(
        **{name: _either_from_fields(given[name]) for name in names[:3]},
        layers=rows_of(3, "layers", given["layers"]),
        look_back=rows_of(5, "look_back", given["look_back"]),
    )


def _either_to_fields(codecs: str | CodecPair | ChunkCodecs | None) -> Any:
    if isinstance(codecs, ChunkCodecs):
        return chunk_codecs_to_fields(codecs)
    return None if codecs is None else str(codecs)


def _either_from_fields(fields: Any) -> Any:
    return chunk_codecs_from_fields(fields) if isinstance(fields, dict) else fields


def chunk_codecs_to_fields(codecs: ChunkCodecs) -> dict[str, Any]:
    """Fields for a JSON object."""
    return {
        "pair": str(codecs.pair),
        "layers": [[first, last, str(pair)] for first, last, pair in codecs.layers],
        "heads": [[*where, None if pair is None else str(pair)] for *where, pair in codecs.heads],
    }


def chunk_codecs_from_fields(fields: object) -> ChunkCodecs:
    """The inverse of `chunk_codecs_to_fields`. Raises ConfigError."""
    given = object_with(("pair", "layers", "heads"), fields, "the codecs of a chunk")
    return ChunkCodecs.read(given["pair"], rows_of(3, "layers", given["layers"]), rows_of(4, "heads", given["heads"]))
