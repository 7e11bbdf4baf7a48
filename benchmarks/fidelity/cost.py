"""The part "cost": what storing a chunk costs, compared with the denoise steps that made it.

encode    encoding the keys and values of all layers alone, in percent of the time of the chunk's denoise steps
store     a commit pass less a denoise step with the same history: encoding, correction and page writes; in percent too
step      one denoise step of one chunk with a full window, in milliseconds; batched videos share its overhead

Medians of interleaved rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lib.caches import Case
from lib.lab import Lab
from lib.measuring import interleaved, seconds_of
from lib.report import format_table
from pagedvid.attention.store import TOGETHER_VALUES
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream import Stream
from pagedvid.codecs.assignment import KINDS
from pagedvid.engine.schedule import Range
from pagedvid.paged_kv_cache import PagedKVCache

WAYS = ("encode", "denoise", "commit")


@dataclass(frozen=True)
class Workshop:
    """Videos with full windows, to time single forwards on."""

    lab: Lab
    cache: PagedKVCache
    streams: list[Stream]
    conditions: list[Any]
    seen: dict[tuple[int, str], Tensor]
    """Keys and values of the last commit pass by (layer, kind), [videos * H, n, D]."""

    @staticmethod
    def of(lab: Lab, case: Case) -> Workshop:
        """Fills every window by commit passes over noise: speed does not depend on the content."""
        cache, geometry = lab.cache(case), lab.model.geometry
        streams = [cache.open(lab.window, geometry.chunk_tokens) for _ in lab.requests]
        conditions = [lab.model.prepare(request.prompt, {}, lab.num_frames) for request in lab.requests]
        shop = Workshop(lab, cache, streams, conditions, {})
        for _ in range(lab.window.max_chunks):
            shop.forward(commit=True)
        return shop

    @torch.no_grad()
    def forward(self, commit: bool) -> None:
        """One packed forward of all videos."""
        model, index = self.lab.model, self.streams[0].num_committed
        requests = zip(self.conditions, self.lab.requests, strict=True)
        latents = torch.cat([model.initial_latents(condition, request.seed, index) for condition, request in requests])
        size, level = model.geometry.chunk_tokens, 0.0 if commit else 0.5
        ranges = [Range(range(model.geometry.frames_per_chunk), level, commits=commit)] * len(self.conditions)
        with self.cache.step([QueryRange(stream, commit=commit) for stream in self.streams]) as step:

            def attend(layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, /, **how: Any) -> Tensor:
                if commit:
                    for kind, x in zip(KINDS, (k_THD, v_THD), strict=True):
                        self.seen[layer, kind] = x.unflatten(0, (-1, size)).transpose(1, 2).flatten(0, 1).float()
                return step.attend(layer, q_THD, k_THD, v_THD, model.rope, **how)

            model.forward(latents, ranges, self.conditions, attend)

    def encode(self) -> None:
        """Encodes one chunk of every video in all layers, in calls of the size that the cache uses.

        Keys are taken before rotary embedding, whatever the codec.
        """
        codecs, num_heads = self.cache.spec.codecs.steady, self.cache.spec.num_kv_heads
        for (layer, kind), x_RnD in self.seen.items():
            codec = self.cache.book.codec(codecs.of(kind, layer), kind, layer, tuple(range(num_heads)))
            chunks_at_once = max(1, TOGETHER_VALUES // x_RnD[:num_heads].numel())
            for part_RnD in x_RnD.split(num_heads * chunks_at_once):
                codec.encode(part_RnD)


def measure_costs(labs: Sequence[Lab], cases: Sequence[Case], num_rounds: int) -> list[dict[str, Any]]:
    """One row per lab (a number of videos) and case."""
    shops = {(len(lab.requests), case): Workshop.of(lab, case) for lab in labs for case in cases}
    calls = {}
    for key, shop in shops.items():
        ways = (shop.encode, partial(shop.forward, commit=False), partial(shop.forward, commit=True))
        for way, call in zip(WAYS, ways, strict=True):
            calls[key, way] = partial(seconds_of, call)
    seconds = interleaved(calls, num_rounds)
    rows = []
    for (num_videos, case), shop in shops.items():
        by_way = {way: seconds[(num_videos, case), way] for way in WAYS}
        steps = [shop.lab.num_denoise_steps * time / num_videos for time in by_way["denoise"]]
        stores = [(a - b) / num_videos for a, b in zip(by_way["commit"], by_way["denoise"], strict=True)]
        rows.append(
            {
                "storage": case.storage,
                "correction": case.correction,
                "videos": num_videos,
                "encode_ratio": median(a / num_videos / b for a, b in zip(by_way["encode"], steps, strict=True)),
                "store_ratio": median(a / b for a, b in zip(stores, steps, strict=True)),
                "seconds": by_way,
            }
        )
    return rows


def cost_table(rows: Sequence[dict[str, Any]]) -> str:
    """One row per cache and number of videos."""
    cells = [
        (
            f"{row['storage']} {row['correction']}",
            str(row["videos"]),
            f"{1000 * median(row['seconds']['denoise']) / row['videos']:.1f}",
            f"{1000 * median(row['seconds']['encode']) / row['videos']:.1f}",
            f"{100 * row['encode_ratio']:.1f} %",
            f"{100 * row['store_ratio']:.1f} %",
        )
        for row in rows
    ]
    return format_table(("cache", "videos", "step ms", "encode ms", "encode", "store"), cells)
