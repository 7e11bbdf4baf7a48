"""The codecs of one pool, each made once; those without calibrated tables are shared by all layers and heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from pagedvid.codecs.assignment import KINDS, ChunkCodecs, Heads
from pagedvid.codecs.base import Codec, CodecOperations, PageKernels, make_codec
from pagedvid.codecs.spec import CodecSpec, PageFormat
from pagedvid.codecs.tables_file import Calibration
from pagedvid.errors import ConfigError


class CodecBook:
    """Makes the codecs of a pool and their kernels on first use, and keeps them."""

    def __init__(
        self,
        page: PageFormat,
        num_kv_heads: int,
        tables: Calibration | None = None,
        own: Mapping[str, Codec] | None = None,
    ) -> None:
        """`tables`: what codecs that need tables are made from. `own`: codecs that replace those of the same name; a
        codec under study is called "sim"."""
        self.page = page
        self._num_kv_heads = num_kv_heads
        self._every = tuple(range(num_kv_heads))
        self._tables = tables
        self._own = dict(own or {})
        self._codecs: dict[tuple[str, str, int, Heads], Codec] = {}
        self._access: dict[tuple[int, torch.device, bool], tuple[Codec, PageKernels]] = {}

    def codec(self, spec: CodecSpec, kind: str, layer: int, heads: Heads) -> Codec:
        """The codec of the "keys" or "values" of some KV heads of a layer. Raises ConfigError."""
        if spec.name in self._own:
            return self._own[spec.name]
        key = (spec.name, kind, layer, heads) if spec.needs_tables else (spec.name, "", 0, ())
        if key not in self._codecs:
            self._codecs[key] = self._made(spec, kind, layer, heads)
        return self._codecs[key]

    def of_chunks(self, codecs: ChunkCodecs, num_layers: int) -> Iterator[Codec]:
        """The codecs of all groups of heads of chunks that are stored so. Raises ConfigError."""
        for layer in range(num_layers):
            for kind in KINDS:
                for heads, spec in codecs.groups(kind, layer, self._every):
                    yield self.codec(spec, kind, layer, heads)

    def access(self, codec: Codec, device: torch.device, by_kernels: bool) -> PageKernels:
        """How a codec's pages are read and written on a device: by its kernels, or by PyTorch operations."""
        key = (id(codec), device, by_kernels)
        if key not in self._access:
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                made = codec.kernels(device) if by_kernels else CodecOperations(codec, device)
            self._access[key] = codec, made
        return self._access[key][1]

    def check(self, chunks: Iterable[ChunkCodecs], num_layers: int) -> None:
        """Makes every codec that these chunks need, so that missing tables are found at once. Raises ConfigError."""
        if self._tables is not None and self._tables.num_layers != num_layers:
            raise ConfigError(
                f"the klt tables are for {self._tables.model} with {self._tables.num_layers} layers; the cache has "
                f"{num_layers}. Calibrate this model: pagedvid calibrate"
            )
        for codecs in chunks:
            for _ in self.of_chunks(codecs, num_layers):
                pass

    def _made(self, spec: CodecSpec, kind: str, layer: int, heads: Heads) -> Codec:
        if spec.name == "sim":
            raise ConfigError('"sim" stands for a codec under study; pass it as own={"sim": codec}')
        if not spec.needs_tables:
            return make_codec(spec, self.page)
        if heads != self._every:
            return self.codec(spec, kind, layer, self._every).of_heads(heads)
        return make_codec(spec, self.page, spec.tables(self._tables_for(spec), kind, layer))

    def _tables_for(self, spec: CodecSpec) -> Calibration:
        if self._tables is None:
            raise ConfigError(
                f"{spec} needs tables of the model; make them with `pagedvid calibrate` and name the file, or choose a "
                "codec that needs none, such as int2"
            )
        if self._tables.num_kv_heads != self._num_kv_heads:
            raise ConfigError(
                f"the tables for {spec} are for {self._tables.model} with {self._tables.num_kv_heads} KV heads; the "
                f"cache has {self._num_kv_heads}. Calibrate this model: pagedvid calibrate"
            )
        return self._tables
