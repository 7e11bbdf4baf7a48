"""What a cache is made for: the model's attention shape, codecs, correction, and how the host treats rotary keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from pagedvid.arguments import instance_of, one_of, whole_number
from pagedvid.cache.head_windows import HeadLookBacks
from pagedvid.cache.sizes import MAX_SIZE, KVShape
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.codecs.assignment import HeadCodecs
from pagedvid.correction import MODES
from pagedvid.errors import ConfigError

STREAM_CODECS = "StreamCodecs('int2')"
"""Example of codecs in error messages."""


@dataclass(frozen=True)
class CacheSpec:
    """Everything about keys and values that is the same for all streams of a cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    num_query_heads: int | None = None
    """None: as many as KV heads. Otherwise a multiple of them (grouped-query attention)."""
    codecs: StreamCodecs = field(default_factory=StreamCodecs)
    page_rows: int | None = None
    """Rows of head_dim bytes in a page; None: what suits the keys of the history, see codecs/spec.py."""
    tokens_per_frame: int = 1
    """Klt codecs transform the same place of `frames_per_block` successive frames together."""
    frames_per_block: int = 1
    correction: str = None  # type: ignore[assignment]  # None until __post_init__
    """"off", "formula", "variance" or "measured"; see correction/formula.py. None becomes what suits the keys of the
    history: "measured" where they have step sizes, "off" for klt. `dataclasses.replace` keeps that resolved value."""
    correction_unit: str = "chunk"
    """"chunk": one b for each query and chunk, from the chunk's mean of step_size^2; "page": one for each run of pages
    with about the same b, at the cost of a partial for each. Prefer "chunk" (benchmarks/correction_unit.py): with int2
    keys "page" lowers the output error by 1 % where a scene cut falls inside a chunk, by 2 % at most and not at all on
    the demo model; it shifts the mass of bright frames too far, and takes 1.2 to 1.8 times as long. With int4 keys it
    hardly ever splits a chunk."""
    keys_arrive: str = "before_rotary"
    """"before_rotary": `attend` rotates q and k. "rotated": the host rotates them; keys are un-rotated at commit."""
    debug_checks: bool = False
    """Keep a digest of every chunk's page bytes, so that `check` finds overwritten pages. Costs a hash per commit."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_dim", "num_query_heads", "page_rows"):
            if getattr(self, name) is not None:
                number = whole_number(name, getattr(self, name), 1, MAX_SIZE, error=ConfigError)
                object.__setattr__(self, name, number)
        for name in ("tokens_per_frame", "frames_per_block"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), 1, MAX_SIZE, error=ConfigError))
        instance_of(StreamCodecs, "codecs", self.codecs, STREAM_CODECS, ConfigError)
        if self.correction is None:
            object.__setattr__(self, "correction", self.codecs.correction)  # type: ignore[unreachable]
        shape = self.shape  # validates the sizes together
        if self.query_heads < 1 or self.query_heads % shape.num_kv_heads:
            raise ConfigError(
                f"num_query_heads is {self.num_query_heads}; it must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        for name, allowed in (
            ("correction", MODES),
            ("correction_unit", ("chunk", "page")),
            ("keys_arrive", ("before_rotary", "rotated")),
        ):
            one_of(allowed, name, getattr(self, name), ConfigError)
        self.check_codecs(self.codecs)

    def check_codecs(self, codecs: StreamCodecs) -> None:
        """Raises ConfigError for codecs that do not fit the pages, the layers or the correction."""
        instance_of(StreamCodecs, "codecs", codecs, STREAM_CODECS, ConfigError)
        layers = [*codecs.layers, *(exception for chunk in codecs.all() for exception in chunk.layers)]
        beyond = [last for _, last, _ in layers if last >= self.num_layers]
        if beyond:
            raise ConfigError(f"codecs are given for layer {beyond[0]}; the layers are 0 to {self.num_layers - 1}")
        self._check_heads(codecs.look_back)
        for chunk in codecs.all():
            self._check_heads(chunk.heads)
            for codec in chunk.used(self.num_layers, self.num_kv_heads):
                codec.page_tokens(self.shape.page)
            keys = chunk.used(self.num_layers, self.num_kv_heads, ("keys",))
            without = [codec for codec in keys if codec.is_quantized and not codec.has_step_sizes]
            if self.correction == "formula" and without:
                raise ConfigError(f'{without[0]} keys have no step size for correction "formula"; use "variance"')

    def _check_heads(self, exceptions: HeadCodecs | HeadLookBacks) -> None:
        for layer, _, last, *_ in exceptions:
            if layer >= self.num_layers or last >= self.num_kv_heads:
                raise ConfigError(
                    f"codecs or a look_back are given for layer {layer}, KV head {last}; layers are 0 to "
                    f"{self.num_layers - 1}, heads 0 to {self.num_kv_heads - 1}"
                )

    @cached_property
    def shape(self) -> KVShape:
        """The integers that sizes are computed from."""
        return KVShape(
            self.num_layers,
            self.num_kv_heads,
            self.head_dim,
            page_rows=self.page_rows or self.codecs.page_rows,
            tokens_per_frame=self.tokens_per_frame,
            frames_per_block=self.frames_per_block,
            correction=self.correction,
        )

    @cached_property
    def query_heads(self) -> int:
        """Number of query heads."""
        return self.num_kv_heads if self.num_query_heads is None else self.num_query_heads

    @cached_property
    def scale(self) -> float:
        """Softmax scale."""
        return float(self.head_dim**-0.5)
