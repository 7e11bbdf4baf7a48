"""What LightX2V's Self-Forcing model and runner ask of a KV cache, in our own words, small enough for a CPU.

Read in ModelTC/LightX2V, revision f8aee98b5462cca8d7288888146ebd95592bf266 (2026-08-21), which is not on PyPI and
cannot be imported as a whole without its device:

    lightx2v/common/kvcache/{manager,base,rolling}.py            `register_self_attn_kv_cache`, `Manager`, `DensePool`
    lightx2v/models/networks/wan/infer/self_forcing/transformer_infer.py   `Model.forward`: the calls, and their order
    lightx2v/models/runners/wan/wan_sf_runner.py                 `roll_out`: current_step, then a forward without it
    lightx2v/models/networks/wan/infer/utils.py                  `CausalRope`, and the table of rotary frequencies
    lightx2v/utils/registry_factory.py, common/ops/{attn,rope}/template.py   registries and templates

Of a Wan block there is self-attention alone, and the window rolls by copying, where LightX2V moves a ring's head.
Axes: n tokens of a chunk, H heads, D head_dim.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

KV_CACHES: dict[tuple[str, bool], tuple[Any, Any]] = {}
ATTENTIONS: dict[str, Any] = {}
ROPES: dict[str, Any] = {}


def register_self_attn_kv_cache(scheme: str, cache_cls: Any, *, step: bool = False, kwargs_builder: Any = None) -> None:
    KV_CACHES[scheme, step] = (cache_cls, kwargs_builder or (lambda config, ar_config, kv_quant: {}))


class AttnWeightTemplate:
    def __init__(self, weight_name: str) -> None:
        self.weight_name, self.config = weight_name, {}


class RopeTemplate:
    def __init__(self, layout: str = "interleaved", compute_dtype: torch.dtype = torch.float32) -> None:
        self.layout, self.compute_dtype = layout, compute_dtype


class DenseAttention(AttnWeightTemplate):
    """As their "torch_sdpa"."""

    def __init__(self) -> None:
        super().__init__("dense")

    def apply(self, q: Tensor, k: Tensor, v: Tensor, **lengths: Any) -> Tensor:
        assert lengths["cu_seqlens_kv"].tolist() == [0, len(k)] and lengths["max_seqlen_kv"] == len(k)
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)


class CausalRope(RopeTemplate):
    """As their "wan_causal_rope": frames from `start_frame` on; of the pairs, rows and columns have a third each."""

    def apply(self, q: Tensor, k: Tensor, freqs: Tensor, *, grid_sizes: Tensor, start_frame: int) -> tuple[Tensor, ...]:
        frames, rows, columns = grid_sizes[0].tolist()
        pairs = q.shape[-1] // 2
        axes = freqs.split([pairs - 2 * (pairs // 3), pairs // 3, pairs // 3], dim=1)
        shape = (frames, rows, columns, -1)
        of_frame = axes[0][start_frame : start_frame + frames, None, None].expand(shape)
        rotations = torch.cat(
            [of_frame, axes[1][None, :rows, None].expand(shape), axes[2][None, None, :columns].expand(shape)], -1
        )
        return tuple(_rotated(x, rotations.reshape(-1, 1, pairs)) for x in (q, k))


def _rotated(x_1nHD: Tensor, rotations: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x_1nHD.double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotations).flatten(-2).type_as(x_1nHD)


def rotary_table(num_positions: int, head_dim: int) -> Tensor:
    """e^(i position frequency), complex64 [positions, D/2]: pairs of time, then row, then column."""
    third = 2 * (head_dim // 6)
    frequencies = [10000.0 ** -(torch.arange(0, size, 2) / size) for size in (head_dim - 2 * third, third, third)]
    return torch.polar(torch.ones(()), torch.outer(torch.arange(num_positions).float(), torch.cat(frequencies)))


class DensePool:
    """A layer's tokens in places 0 to `cache_size`: sinks, then the most recent ones."""

    def __init__(
        self, num_layers: int, cache_size: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._places = torch.zeros(2, num_layers, cache_size, num_heads, head_dim, dtype=dtype, device=device)
        self.nbytes = self._places.nbytes

    def _init_kv_buffer(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._ends = torch.zeros(self._places.shape[1], 2, dtype=torch.int64)

    def get_global_end(self, layer_id: int) -> int:
        return int(self._ends[layer_id, 0])

    def get_local_end(self, layer_id: int) -> int:
        return int(self._ends[layer_id, 1])

    def set_ends(self, layer_id: int, global_end: int, local_end: int) -> None:
        self._ends[layer_id] = torch.tensor([global_end, local_end])

    def roll_window(self, layer_id: int, sink_tokens: int, num_evicted: int) -> None:
        after_sinks = self._places[:, layer_id, sink_tokens:]
        after_sinks[:, :-num_evicted] = after_sinks[:, num_evicted:].clone()

    def store_kv(self, k: Tensor, v: Tensor, start_idx: int, end_idx: int, layer_id: int) -> None:
        self._places[:, layer_id, start_idx:end_idx] = torch.stack((k, v))

    def k_cache(self, layer_id: int, attn_start: int, local_end: int) -> Tensor:
        return self._places[0, layer_id, attn_start:local_end]

    def v_cache(self, layer_id: int, attn_start: int, local_end: int) -> Tensor:
        return self._places[1, layer_id, attn_start:local_end]


class Manager:
    """As their `KVCacheManager`: makes a pool from the configuration, or resets it if the sizes are the same."""

    def __init__(self, config: dict[str, Any], dtype: torch.dtype) -> None:
        self.config, self.dtype, self.self_attn_kv_cache, self._sizes = config, dtype, None, None

    def create(self, num_frames: int, rows: int, columns: int) -> None:
        ar, config = self.config["ar_config"], self.config
        local, frame_tokens = ar.get("local_attn_size", -1), rows * columns
        self.kv_size = (num_frames if local == -1 else local) * frame_tokens
        self.is_sliding, self.sink_size = local != -1, ar.get("sink_size", 0)
        self.max_attention_size = ar.get("max_attention_size") or self.kv_size
        if self.self_attn_kv_cache is not None and self._sizes == (self.kv_size, frame_tokens):
            self.self_attn_kv_cache.reset()
            return
        self._sizes = (self.kv_size, frame_tokens)
        cache_cls, builder = KV_CACHES[ar.get("kv_cache_scheme", "fp"), ar.get("step_kv_cache", False)]
        sizes = dict(num_layers=config["num_layers"], cache_size=self.kv_size, num_heads=config["num_heads"])
        sizes |= dict(head_dim=config["dim"] // config["num_heads"], dtype=self.dtype, device=torch.device("cpu"))
        pool = cache_cls(**sizes, **builder(config, ar, {}))
        pool.sp_head_sharded = False
        pool._init_kv_buffer()
        self.self_attn_kv_cache = pool

    @property
    def current_step(self) -> int:
        return getattr(self.self_attn_kv_cache, "current_step", 0)

    @current_step.setter
    def current_step(self, value: int) -> None:
        if hasattr(self.self_attn_kv_cache, "current_step"):
            self.self_attn_kv_cache.current_step = value


class Model:
    """Self-attention layers with random weights; each adds to its input."""

    def __init__(self, config: dict[str, Any], dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.config, self.dtype, self.manager = config, dtype, Manager(config, dtype)
        shape = (config["num_layers"], 4, config["dim"], config["dim"])
        weights = 1.25 * torch.randn(shape, generator=generator) * config["dim"] ** -0.5
        self.weights = weights.to(dtype)
        layers = range(config["num_layers"])
        self.attentions = [ATTENTIONS[config["self_attn_1_type"]]() for _ in layers]
        self.ropes = [
            ROPES[config["causal_rope_type"]](layout="interleaved", compute_dtype=torch.float64) for _ in layers
        ]
        self.freqs = rotary_table(1024, config["dim"] // config["num_heads"])

    def forward(self, x: Tensor, grid: tuple[int, int, int], segment: int) -> Tensor:
        """x [n, dim], the tokens of chunk number `segment` -> the same shape."""
        for layer in range(len(self.weights)):
            x = x + self.attention(layer, torch.nn.functional.layer_norm(x, x.shape[-1:]), grid, segment)
        return x

    def attention(self, layer: int, x: Tensor, grid: tuple[int, int, int], segment: int) -> Tensor:
        manager, cache = self.manager, self.manager.self_attn_kv_cache
        heads = (len(x), self.config["num_heads"], -1)
        q, k, v = ((x @ weight).view(heads) for weight in self.weights[layer, :3])
        start_frame = segment * self.config["ar_config"]["num_frame_per_chunk"]
        q, k = self.ropes[layer].apply(
            q[None], k[None], self.freqs, grid_sizes=torch.tensor([grid]), start_frame=start_frame
        )
        q, k, num_new = q.type_as(v)[0], k.type_as(v)[0], len(x)

        current_end, global_end = (segment + 1) * num_new, cache.get_global_end(layer)
        local_end = cache.get_local_end(layer)
        if manager.is_sliding and current_end > global_end and num_new + local_end > manager.kv_size:
            num_evicted = num_new + local_end - manager.kv_size
            cache.roll_window(layer, manager.sink_size * grid[1] * grid[2], num_evicted)
            local_end -= num_evicted
        stop = local_end + current_end - global_end
        cache.store_kv(k, v, stop - num_new, stop, layer)
        cache.set_ends(layer, current_end, stop)
        first = max(0, stop - manager.max_attention_size)
        keys, values = cache.k_cache(layer, first, stop), cache.v_cache(layer, first, stop)
        num_keys = (keys[0] if isinstance(keys, tuple) else keys).size(0)
        lengths = {"cu_seqlens_q": torch.tensor([0, num_new]), "cu_seqlens_kv": torch.tensor([0, num_keys])}
        lengths |= {"max_seqlen_q": num_new, "max_seqlen_kv": num_keys}
        return self.attentions[layer].apply(q=q, k=keys, v=values, **lengths) @ self.weights[layer, 3]


def roll_out(model: Model, grid: tuple[int, int, int], num_chunks: int, num_steps: int = 2, seed: int = 1) -> Tensor:
    """Outputs of all denoise steps [chunks, steps, n, dim]; each chunk ends with the forward that leaves clean keys.

    Inputs are drawn, not predicted, so that differences of the caches are not amplified from chunk to chunk.
    """
    frames, rows, columns = grid
    model.manager.create(num_chunks * frames, rows, columns)
    generator = torch.Generator().manual_seed(seed)
    outs = []
    for segment in range(num_chunks):
        inputs = torch.randn(num_steps + 1, frames * rows * columns, model.config["dim"], generator=generator)
        for step, x in enumerate(inputs.to(model.dtype)):
            if step < num_steps:
                model.manager.current_step = step
            outs.append(model.forward(x, grid, segment))
    return torch.stack(outs).unflatten(0, (num_chunks, -1))[:, :-1]


def as_library(monkeypatch: Any, version: str = "0.1.0") -> None:
    """Makes this file importable under LightX2V's names."""
    parts = {
        "": {"__version__": version},
        ".common.kvcache.manager": {"register_self_attn_kv_cache": register_self_attn_kv_cache},
        ".common.ops.attn.template": {"AttnWeightTemplate": AttnWeightTemplate},
        ".common.ops.rope.template": {"RopeTemplate": RopeTemplate},
        ".utils.registry_factory": {"ATTN_WEIGHT_REGISTER": ATTENTIONS, "ROPE_REGISTER": ROPES},
    }
    parents = (".common", ".common.kvcache", ".common.ops", ".common.ops.attn", ".common.ops.rope", ".utils")
    for name, content in {**{parent: {} for parent in parents}, **parts}.items():
        module = ModuleType(f"lightx2v{name}")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)


register_self_attn_kv_cache("fp", DensePool)
ATTENTIONS["dense"], ROPES["wan_causal_rope"] = DenseAttention, CausalRope
