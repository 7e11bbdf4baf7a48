"""What a cache is made for: the model's attention shape, codecs, correction, and how the host treats rotary keys."""

from __future__ import annotations

from dataclasses import dataclass, field

from pagedvid.errors import ConfigError
from pagedvid.geometry import KVShape, RoleCodecs
from pagedvid.quant.correction import MODES


@dataclass(frozen=True)
class CacheSpec:
    """Everything about keys and values that is the same for all streams of a cache."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    num_query_heads: int | None = None
    """None: as many as KV heads. Otherwise a multiple of them (grouped-query attention)."""
    codecs: RoleCodecs = field(default_factory=RoleCodecs)
    correction: str = "measured"
    """"off", "formula" (b as derived) or "measured" (b times a factor fitted at commit); see quant/correction.py."""
    keys_arrive: str = "before_rotary"
    """"before_rotary": `attend` rotates q and k. "rotated": the host has done so; keys are un-rotated at commit."""
    debug_checks: bool = False
    """Keep a digest of every chunk's page bytes, so that `check` finds overwritten pages. Costs a hash per commit."""

    def __post_init__(self) -> None:
        shape = self.shape  # validates the sizes
        if self.query_heads < 1 or self.query_heads % shape.num_kv_heads:
            raise ConfigError(
                f"num_query_heads is {self.num_query_heads}; it must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        for name, allowed in (
            ("correction", MODES),
            ("keys_arrive", ("before_rotary", "rotated")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")

    @property
    def shape(self) -> KVShape:
        """The integers that geometry works with."""
        return KVShape(self.num_layers, self.num_kv_heads, self.head_dim)

    @property
    def query_heads(self) -> int:
        """Number of query heads."""
        return self.num_kv_heads if self.num_query_heads is None else self.num_query_heads

    @property
    def scale(self) -> float:
        """Softmax scale."""
        return float(self.head_dim**-0.5)
