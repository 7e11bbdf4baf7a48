"""The codec of a name, for the pages of one pool: the same object wherever nothing is calibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from pagedvid.codecs.assignment import KINDS, ChunkCodecs
from pagedvid.codecs.base import Codec
from pagedvid.codecs.channel.codec import ChannelCodec
from pagedvid.codecs.klt.codec import KltCodec
from pagedvid.codecs.klt.file import Calibration
from pagedvid.codecs.page import PageFormat, read_codec
from pagedvid.codecs.raw.codec import RawCodec
from pagedvid.codecs.token.codec import TokenCodec
from pagedvid.codecs.token.hadamard import HadamardCodec
from pagedvid.errors import ConfigError

FAMILIES: Mapping[str, Callable[[PageFormat, str], Codec]] = {
    "raw": RawCodec,
    "channel": ChannelCodec,
    "token": TokenCodec,
    "hadamard": HadamardCodec,
}


class CodecBook:
    """Finds codecs, and makes each of them once."""

    def __init__(
        self,
        page: PageFormat,
        num_kv_heads: int,
        tables: Calibration | None = None,
        own: Mapping[str, Codec] | None = None,
    ) -> None:
        """`tables`: what klt codecs know of the model. `own`: codecs that go before those of the same name here; a
        codec under study is called "sim"."""
        self.page = page
        self._num_kv_heads = num_kv_heads
        self._tables = tables
        self._own = dict(own or {})
        self._codecs: dict[tuple[str, str, int, int, int], Codec] = {}

    def codec(self, name: str, kind: str, layer: int, heads: slice) -> Codec:
        """The codec of the "keys" or "values" of some KV heads of a layer. Raises ConfigError."""
        if name in self._own:
            return self._own[name]
        family = read_codec(name).family
        is_calibrated = family == "klt"
        first, end, _ = heads.indices(self._num_kv_heads)
        key = (name, kind, layer, first, end) if is_calibrated else (name, "", 0, 0, 0)
        if key not in self._codecs:
            self._codecs[key] = self._klt(name, kind, layer, first, end) if is_calibrated else self._plain(name)
        return self._codecs[key]

    def check(self, chunks: Iterable[ChunkCodecs], num_layers: int) -> None:
        """Makes every codec that these chunks will need, so that what is missing is known at once: ConfigError."""
        if self._tables is not None and self._tables.num_layers != num_layers:
            raise ConfigError(
                f"the klt tables are of {self._tables.model} with {self._tables.num_layers} layers; the cache has "
                f"{num_layers}. Calibrate this model: pagedvid calibrate"
            )
        for codecs in chunks:
            for kind in KINDS:
                for layer in range(num_layers):
                    self.codec(codecs.of(kind, layer), kind, layer, slice(0, self._num_kv_heads))

    def _plain(self, name: str) -> Codec:
        if name == "sim":
            raise ConfigError('"sim" stands for a codec under study; pass that as own={"sim": codec}')
        self.page.page_tokens(name)  # raises when no token fits
        return FAMILIES[read_codec(name).family](self.page, name)

    def _klt(self, name: str, kind: str, layer: int, first_head: int, end_head: int) -> Codec:
        if (first_head, end_head) != (0, self._num_kv_heads):
            whole = self.codec(name, kind, layer, slice(0, self._num_kv_heads))
            assert isinstance(whole, KltCodec)
            return whole.of_heads(slice(first_head, end_head))
        if self._tables is None:
            raise ConfigError(
                f"{name} needs tables of the model; make them with `pagedvid calibrate` and name the file, or choose a "
                "codec without, such as int2"
            )
        if self._tables.num_kv_heads != self._num_kv_heads:
            raise ConfigError(
                f"the tables for {name} are of {self._tables.model} with {self._tables.num_kv_heads} KV heads; the "
                f"cache has {self._num_kv_heads}. Calibrate this model: pagedvid calibrate"
            )
        return KltCodec.of(name, self.page, self._tables.tables(kind, layer))
