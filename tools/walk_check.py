"""How much a walk model remembers with its whole history in bf16: outings in a square that end where they began.

python tools/walk_check.py WEIGHTS --frames 201 --maps 8
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import ChunkOutput, VideoRequest
from pagedvid.models.walk.pipeline import WalkModel
from pagedvid.models.walk.score import read_landmarks, same_landmarks
from pagedvid.models.walk.spec import FRAMES_PER_CHUNK, VIEW_CELLS
from pagedvid.models.walk.weights import load_walk
from pagedvid.models.walk.world import render
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.quality.metrics import psnr


def square(num_frames: int) -> str:
    """A walk of `num_frames`, of the form 4 n + 1: right, down, left, up, back to the first place."""
    side = (num_frames - 1) // 4
    return ", ".join(f"{action} {side}" for action in ("right", "down", "left", "up"))


def walk(model: WalkModel, prompts: Sequence[str], num_frames: int) -> list[np.ndarray]:
    """Frames of each prompt, uint8 [F, 64, 64, 3], with every chunk kept in bf16."""
    geometry, num_chunks = model.geometry, -(-num_frames // FRAMES_PER_CHUNK)
    spec = CacheSpec(geometry.num_layers, geometry.num_kv_heads, geometry.head_dim, codecs=StreamCodecs("bf16"))
    window = Window(0, num_chunks, model.positions)
    pages = spec.shape.chunk_pages(geometry.chunk_tokens, spec.codecs.at_commit(0, window))
    memory = (len(prompts) * num_chunks + 1) * pages * spec.shape.page_bytes
    cache = PagedKVCache(spec, memory, model.network.patch_in.weight.device)
    engine = Engine(model, cache, window)
    for number, prompt in enumerate(prompts):
        engine.submit(VideoRequest(str(number), prompt, num_frames, seed=number))
    frames: dict[str, list[np.ndarray]] = {}
    for output in engine.run():
        if not isinstance(output, ChunkOutput):
            raise RuntimeError(f"video {output.request_id} failed: {output}")
        frames.setdefault(output.request_id, []).append(output.frames)
    return [np.concatenate(frames[str(number)]) for number in range(len(prompts))]


def outing_scores(model: WalkModel, num_frames: int, maps: Iterable[int]) -> Mapping[str, float]:
    """Of squares over some maps: landmarks of the first view that are there again in the last one, and its PSNR to
    the first view, which was given, so that it is the map's truth; and how many landmarks the views on the way have."""
    started, seeds = time.perf_counter(), list(maps)
    videos = walk(model, [f"map {seed}: {square(num_frames)}" for seed in seeds], num_frames)
    num_first = num_same = num_invented = 0
    noise, on_the_way = [], range(VIEW_CELLS, num_frames - VIEW_CELLS, VIEW_CELLS)
    for seed, frames in zip(seeds, videos, strict=True):
        first = read_landmarks(render(seed, 0, 0, VIEW_CELLS, VIEW_CELLS))
        num_first += len(first)
        num_same += same_landmarks(first, read_landmarks(frames[-1]))
        noise.append(psnr(frames[0], frames[-1]))
        num_invented += sum(len(read_landmarks(frames[frame])) for frame in on_the_way)
    return {
        "frames_away": num_frames - 1,
        "revisited": round(num_same / max(1, num_first), 4),
        "landmarks": num_first,
        "revisited_psnr": round(float(np.mean(noise)), 2),
        "invented_per_frame": round(num_invented / max(1, len(seeds) * len(on_the_way)), 2),
        "check_seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--frames", type=int, default=201, help="of the form 4 n + 1")
    parser.add_argument("--maps", type=int, default=8)
    parsed = parser.parse_args()
    print(json.dumps(outing_scores(load_walk(parsed.weights), parsed.frames, range(parsed.maps))))


if __name__ == "__main__":
    main()
