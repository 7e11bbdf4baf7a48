"""A stream's chunks simulated without the package: plain dictionaries, and page sizes worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.codecs.assignment import ChunkCodecs, LayerCodecs

PAGE_TOKENS = {"fp32": 9, "bf16": 18, "int8": 32, "int4": 64, "int2": 128}
"""With 36 rows in a page."""
Form = tuple[str, str, tuple[tuple[int, int, str], ...], tuple[tuple[int, int, int, str | None], ...]]
"""What a chunk is stored in: codec of the keys, codec of the values, exceptions by layer and by head, all as text."""
Place = tuple[int, int]
"""(layer, KV head)."""


@dataclass(frozen=True)
class Tables:
    """The tables of a model. A klt page holds whole blocks: the same place of `frames_per_block` frames."""

    num_layers: int = 1
    num_kv_heads: int = 1
    page_tokens: Mapping[str, int] = field(default_factory=lambda: PAGE_TOKENS)
    tokens_per_frame: int = 1
    frames_per_block: int = 1

    def table_pages(self, num_tokens: int, codec: str) -> int:
        """Pages of the keys, or of the values, of one (layer, KV head)."""
        if codec.startswith("klt"):
            num_blocks = self.tokens_per_frame * math.ceil(num_tokens / (self.tokens_per_frame * self.frames_per_block))
            return math.ceil(num_blocks / (self.page_tokens[codec] // self.frames_per_block))
        return math.ceil(num_tokens / self.page_tokens[codec])

    def head_pages(self, num_tokens: int, form: Form) -> dict[Place, int]:
        """Pages of the keys and values of every head that keeps any of a chunk."""
        places = ((layer, head) for layer in range(self.num_layers) for head in range(self.num_kv_heads))
        stored = {place: codecs for place in places if (codecs := head_codecs(form, *place))}
        return {place: sum(self.table_pages(num_tokens, each) for each in codecs) for place, codecs in stored.items()}

    def chunk_pages(self, num_tokens: int, form: Form) -> int:
        """Pages of a chunk."""
        return sum(self.head_pages(num_tokens, form).values())


def head_codecs(form: Form, layer: int, head: int) -> tuple[str, ...]:
    """Codecs of the keys and of the values of one head; empty if it keeps nothing."""
    keys, values, layers, heads = form
    found: tuple[str, ...] = (keys, values)
    for first, last, written in layers:
        if first <= layer <= last:
            found = names_of(written)
    for exception, first, last, stored in heads:
        if exception == layer and first <= head <= last:
            found = () if stored is None else names_of(stored)
    return found


def are_alike(a: Form, b: Form) -> bool:
    """Whether both store every head in the same codecs."""
    if a == b:
        return True
    last_layers = [last for form in (a, b) for _, last, _ in form[2]] + [each[0] for form in (a, b) for each in form[3]]
    layers = range(2 + max(last_layers, default=0))
    heads = range(2 + max((last for form in (a, b) for _, _, last, _ in form[3]), default=0))
    return all(head_codecs(a, layer, head) == head_codecs(b, layer, head) for layer in layers for head in heads)


@cache
def form_of(written: object, layers: LayerCodecs = ()) -> Form:
    """From what is written "int2" or "int4/int2", or from codecs with exceptions."""
    heads: tuple[tuple[int, int, int, str | None], ...] = ()
    if isinstance(written, ChunkCodecs):
        heads = tuple((*place, pair and str(pair)) for *place, pair in written.heads)
        written, layers = written.pair, written.layers
    return (*names_of(str(written)), tuple((first, last, str(pair)) for first, last, pair in layers), heads)


def names_of(written: str) -> tuple[str, str]:
    """Codecs of the keys and of the values in "int2" or "int4/int2"."""
    keys, _, values = written.partition("/")
    return keys, values or keys


def settled_form(codecs: StreamCodecs, window: Window, index: int) -> Form:
    """What a chunk is finally stored in."""
    is_apart = codecs.sink is not None and index < window.sink_chunks
    return form_of(codecs.sink) if is_apart else form_of(codecs.history, codecs.layers)


def first_form(codecs: StreamCodecs, window: Window, index: int) -> Form:
    """What a chunk is committed in."""
    return form_of(codecs.newest) if codecs.newest else settled_form(codecs, window, index)


def passed_heads(codecs: StreamCodecs, window: Window, index: int, age: int | None) -> list[Place]:
    """Heads whose own window no longer keeps chunk `index` at that age; None: at any age."""
    own = {(layer, head): kept for layer, first, last, *kept in codecs.look_back for head in range(first, last + 1)}
    return [
        place
        for place, (recent_chunks, keeps_sinks) in own.items()
        if (age is None or age >= recent_chunks or age >= window.recent_chunks)
        and not (keeps_sinks and index < window.sink_chunks)
    ]


def thin_form(form: Form, codecs: StreamCodecs, window: Window, index: int, age: int) -> Form:
    """What is left of a chunk at that age, which is 0 for the newest."""
    keys, values, layers, heads = form
    gone = ((layer, head, head, None) for layer, head in passed_heads(codecs, window, index, age))
    return keys, values, layers, (*heads, *(each for each in gone if each not in heads))


def is_kept(window: Window, index: int, num_committed: int) -> bool:
    """Whether the window keeps chunk `index` after `num_committed` commits."""
    return index < window.sink_chunks or index >= num_committed - window.recent_chunks


def simulated_peak(tables: Tables, window: Window, codecs: StreamCodecs, chunk_tokens: int, num_commits: int) -> int:
    """Most pages that exist at any time while chunk after chunk is committed."""
    held: dict[int, Form] = {}
    peak = 0
    for new in range(num_commits):
        kept = {index for index in [*held, new] if is_kept(window, index, new + 1)}
        written = {new: first_form(codecs, window, new)}
        if new - 1 in held and new - 1 in kept and not are_alike(held[new - 1], settled_form(codecs, window, new - 1)):
            written[new - 1] = thin_form(settled_form(codecs, window, new - 1), codecs, window, new - 1, age=1)
        both = [*held.values(), *written.values()]  # what is read and what is written exist together
        peak = max(peak, sum(tables.chunk_pages(chunk_tokens, form) for form in both))
        left = ((index, form) for index, form in {**held, **written}.items() if index in kept)
        held = {index: thin_form(form, codecs, window, index, new - index) for index, form in left}
    return peak
