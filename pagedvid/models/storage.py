"""Decides how a model's keys and values are stored, where settings leave it open.

codec: auto          klt or int, with bits, if the model's file has a profile (pagedvid calibrate, pagedvid profile);
                     else klt1.5/klt3 if it has tables of klt codecs; else int2
codec: klt or int    spends `bits` head by head (budgets/spend.py)
any other            as it says
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from pagedvid.budgets.profile import Profile, profile_of
from pagedvid.budgets.spend import Spending, spend
from pagedvid.cache.head_codecs import codecs_by_head
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.codecs.registry import LADDERS
from pagedvid.codecs.spec import PageFormat, block_frames
from pagedvid.codecs.tables_file import Calibration, load_calibration
from pagedvid.config.sections import CacheConfig, Config
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.errors import ConfigError
from pagedvid.shown import named

logger = logging.getLogger(__name__)

DEFAULT_BITS = {"klt": 1.25, "int": 2.25}
"""Bits per value by ladder: those that reach the quality of klt1.5/klt3, which takes 2.25, on the demo model
(benchmarks/budgets.py); and those of int2 in all heads, below which integers lose too much."""
CALIBRATED_CODEC = "klt1.5/klt3"
"""2.25 bits per value: those of values count more (benchmarks/fidelity.py)."""
PLAIN_CODEC = "int2"


@dataclass(frozen=True)
class Storage:
    """What the settings come to."""

    cache: CacheConfig
    """As given, with codec, bits and correction decided."""
    codecs: StreamCodecs
    spending: Spending | None
    """How bits were spent; None: all heads are stored as the settings say."""


def decide(config: Config, geometry: ModelGeometry, tables: Path | None, window: Window) -> Storage:
    """`tables`: the model's file, if it has one. Raises ConfigError for settings that contradict each other, a file
    that cannot be read, and bits without a profile of this very model."""
    cache, profile = config.cache, None
    has_klt = False
    if tables is not None and cache.codec in ("auto", *LADDERS):
        file = load_calibration(tables)
        has_klt = file.has_klt
        if cache.codec in LADDERS or (not cache.layer_codecs and cache.page_rows == "auto"):
            profile = profile_of(file)
        if profile is not None:
            _check_model(tables, file, profile, config.model.name, geometry)
    cache = _named(cache, profile, has_klt=has_klt)
    if cache.codec not in LADDERS:
        _refuse_bits(cache)
        codecs = StreamCodecs(cache.codec, cache.sink_codec, cache.newest_codec, cache.layer_codecs)
        return Storage(_corrected(cache, codecs), codecs, None)
    if profile is None or profile.ladder != cache.codec:
        has = "there is no profile" if profile is None else f"its profile is of {profile.ladder!r}"
        command = "calibrate" if cache.codec == "klt" else "profile --ladder int"
        raise ConfigError(
            f"cache.codec is {cache.codec!r}, which spends bits by a profile of the model, but {has}. Make one with "
            f"`pagedvid {command}`, or name a codec such as {cache.codec}2"
        )
    if cache.layer_codecs:
        raise ConfigError(
            f"cache.layer_codecs is set, but codec {cache.codec} decides for every head; remove one of them"
        )
    cache = replace(cache, look_back=_look_back(cache, profile, window))
    spending = _spend(cache, profile, geometry, window)
    codecs = codecs_by_head(spending, profile.rungs[1], cache.sink_codec, cache.newest_codec)
    return Storage(_corrected(cache, codecs), codecs, spending)


def _check_model(tables: Path, file: Calibration, profile: Profile, model: str, geometry: ModelGeometry) -> None:
    """Raises ConfigError for the profile of another model."""
    frames = block_frames(geometry.frames_per_chunk)
    pairs = {
        "model": (file.model, model),
        "layers": (file.num_layers, geometry.num_layers),
        "KV heads": (file.num_kv_heads, geometry.num_kv_heads),
        "head_dim": (file.head_dim, geometry.head_dim),
        "tokens of a frame": (file.tokens_per_frame, geometry.tokens_per_frame),
        "frames of a block": (file.frames_per_block, frames),
        "tokens of a chunk": (profile.chunk_tokens, geometry.chunk_tokens),
    }
    differing = [f"{name} {was} (here {here})" for name, (was, here) in pairs.items() if was != here]
    if differing:
        raise ConfigError(
            f"the profile in {named(tables)} is of {', '.join(differing)}; calibrate this model: pagedvid calibrate"
        )


def _named(cache: CacheConfig, profile: Profile | None, *, has_klt: bool) -> CacheConfig:
    """The settings with a codec instead of "auto", and a number of bits where the codec is a ladder."""
    if cache.codec == "auto":
        if profile is not None:
            codec, why = profile.ladder, "a profile"
        elif has_klt:
            codec, why = CALIBRATED_CODEC, "klt tables"
        else:
            codec, why = PLAIN_CODEC, "no klt tables"
        cache = replace(cache, codec=codec)
        logger.info("codec: %s (the model has %s)", _text(cache, codec), why)
    if cache.codec in LADDERS and cache.bits is None:
        cache = replace(cache, bits=DEFAULT_BITS[cache.codec])
    return cache


def _text(cache: CacheConfig, codec: str) -> str:
    return f"{codec}, {cache.bits or DEFAULT_BITS[codec]:g} bits a value" if codec in LADDERS else codec


def _refuse_bits(cache: CacheConfig) -> None:
    if cache.bits is not None:
        raise ConfigError(
            f"cache.bits is {cache.bits:g}, but codec {cache.codec} has bits of its own; remove cache.bits, or set "
            "cache.codec to klt or int, which need a profile (`pagedvid calibrate`, `pagedvid profile`)"
        )
    if cache.look_back == "per_head":
        raise ConfigError(
            f"cache.look_back is {cache.look_back}, but codec {cache.codec} stores all heads alike; remove it, or set "
            "cache.codec to klt or int"
        )


def _look_back(cache: CacheConfig, profile: Profile, window: Window) -> str:
    """What "auto" comes to: look-backs by head where they were measured."""
    if cache.look_back != "auto":
        return cache.look_back
    measured = (profile.sink_chunks, profile.recent_chunks)
    is_known = profile.has_windows and measured == (window.sink_chunks, window.recent_chunks)
    return "per_head" if is_known else "uniform"


def _spend(cache: CacheConfig, profile: Profile, geometry: ModelGeometry, window: Window) -> Spending:
    assert cache.bits is not None
    rows = profile.page_rows if cache.page_rows == "auto" else int(cache.page_rows)
    frames = block_frames(geometry.frames_per_chunk)
    page = PageFormat(geometry.head_dim, rows, geometry.tokens_per_frame, frames)
    try:
        return spend(profile, page, window.sink_chunks, window.recent_chunks, cache.bits, cache.look_back)
    except ConfigError as error:
        raise ConfigError(f"cache.bits {cache.bits:g}: {error}") from None


def _corrected(cache: CacheConfig, codecs: StreamCodecs) -> CacheConfig:
    return replace(cache, correction=codecs.correction) if cache.correction == "auto" else cache
