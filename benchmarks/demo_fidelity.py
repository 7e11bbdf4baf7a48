"""What the quantized cache does to the demo model's videos, and what the correction gives back.

Reference is the run with a bf16 cache: same engine, prompts, seeds and number format. The history starts to be read in
chunk 1 (chunk 0 is committed first), so frames are compared on chunks 1 and 2; later chunks diverge chaotically and say
nothing.

PSNR     over those frames, mean and standard error over the prompts; "vs off" is the difference to no correction,
         prompt by prompt, with the standard error of that difference; frames that agree but for rounding count 58.9 dB
SSIM     of the same frames
forced   PSNR when the history holds the reference's own chunks ("teacher forcing"), so that chunk 2 does not inherit
         the errors of chunk 1

Below it, for the first codec: the share of attention that goes to cached keys, by layer, with the keys as they were and
as they are stored under every correction. All four use the queries and current keys of the reference run (all denoise
steps of chunks 1 and 2), so no drift enters. The last line is the mean distance to the unquantized column.

    python benchmarks/demo_fidelity.py
    python benchmarks/demo_fidelity.py --prompts 8 --codec int4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attention_mass import VARIANTS, MassMeter
from forced_run import ForcedRun, Generated, Request
from frame_quality import psnr, ssim
from report import format_table, make_parser, mean_and_error, use_threads, write_report
from torch import Tensor

from pagedvid.config import CODEC_NAMES, CacheConfig, Config
from pagedvid.engine.build import cache_spec
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import ChunkOutput, EngineSettings, VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.geometry import Window, is_quantized, stream_bytes
from pagedvid.models.base import VideoModel
from pagedvid.models.demo.captions import caption
from pagedvid.models.demo.world import random_scene
from pagedvid.models.registry import load_model
from pagedvid.paged_kv_cache import PagedKVCache

COMPARED_CHUNKS = (1, 2)
"""The first two that read quantized pages."""
CORRECTIONS = ("off", "formula", "measured")
REFERENCE = ("bf16", "off")
Case = tuple[str, str]
"""(codec, correction)."""


def draw_requests(num_prompts: int, seed: int) -> list[Request]:
    """Captions of random scenes of the demo world; a smaller count gives the first ones of a larger."""
    generator = np.random.default_rng(seed)
    return [Request(caption(random_scene(generator)), seed + i) for i in range(num_prompts)]


@dataclass(frozen=True)
class Lab:
    """Runs the same videos with any cache."""

    model: VideoModel
    requests: list[Request]
    num_frames: int
    num_denoise_steps: int

    @property
    def window(self) -> Window:
        """The default one."""
        return Window(CacheConfig().sink_chunks, CacheConfig().recent_chunks, positions=self.model.positions)

    @property
    def num_chunks(self) -> int:
        """Chunks of a video."""
        return -(-self.num_frames // self.model.geometry.frames_per_chunk)

    def cache(self, case: Case) -> PagedKVCache:
        """An empty cache with room for all videos."""
        codec, correction = case
        spec = cache_spec(Config(cache=CacheConfig(codec=codec, correction=correction)), self.model.geometry)
        per_video = stream_bytes(spec.shape, self.window, spec.codecs, self.model.geometry.chunk_tokens)
        return PagedKVCache(spec, len(self.requests) * per_video)

    def engine_frames(self, case: Case) -> np.ndarray:
        """What a user gets: uint8 [videos, frames, H, W, 3]. Raises the error of the first video that fails."""
        print(f"engine: {' '.join(case)}", file=sys.stderr, flush=True)
        settings = EngineSettings(num_denoise_steps=self.num_denoise_steps)
        engine = Engine(self.model, self.cache(case), self.window, settings)
        for number, request in enumerate(self.requests):
            engine.submit(VideoRequest(str(number), request.prompt, self.num_frames, request.seed))
        videos: list[list[np.ndarray]] = [[] for _ in self.requests]
        for output in engine.run():
            if not isinstance(output, ChunkOutput):
                raise output.error
            videos[int(output.request_id)].append(output.frames)
        return np.stack([np.concatenate(chunks) for chunks in videos])

    def forced(self, case: Case) -> ForcedRun:
        """A run whose history can be given."""
        print(f"forced: {' '.join(case)}", file=sys.stderr, flush=True)
        num_chunks = max(COMPARED_CHUNKS) + 1
        return ForcedRun(self.model, self.cache(case), self.window, self.requests, num_chunks, self.num_denoise_steps)

    def compared(self, videos: np.ndarray) -> np.ndarray:
        """The frames of the compared chunks, [videos, frames, H, W, 3]."""
        size = self.model.geometry.frames_per_chunk
        return videos[:, size * COMPARED_CHUNKS[0] : size * (COMPARED_CHUNKS[-1] + 1)]


def frames_of(made: Generated) -> np.ndarray:
    """All frames, [videos, frames, H, W, 3]."""
    return np.concatenate(made.frames, axis=1)


def measure_frames(
    lab: Lab, cases: Sequence[Case], history: list[Tensor], forced_frames: np.ndarray
) -> dict[Case, Any]:
    """Per case: PSNR, SSIM and teacher-forced PSNR of every prompt."""
    reference, forced_reference = lab.compared(lab.engine_frames(REFERENCE)), lab.compared(forced_frames)
    results = {}
    for case in cases:
        frames = lab.compared(lab.engine_frames(case))
        forced = lab.compared(frames_of(lab.forced(case).generate(history)))
        results[case] = {
            "psnr": [psnr(a, b) for a, b in zip(frames, reference, strict=True)],
            "ssim": [ssim(a, b) for a, b in zip(frames, reference, strict=True)],
            "forced_psnr": [psnr(a, b) for a, b in zip(forced, forced_reference, strict=True)],
        }
    return results


def frames_table(results: dict[Case, Any], codec: str) -> str:
    """One row per case; differences against the same codec's row without correction."""

    def text(values: Sequence[float]) -> str:
        mean, error = mean_and_error(values)
        return f"{mean:.2f} ± {error:.2f}"

    def versus_off(case: Case, what: str) -> str:
        off = results[codec, "off"]
        if case[0] != codec or case[1] == "off":
            return ""
        difference = np.subtract(results[case][what], off[what])
        return f"{difference.mean():+.2f} ± {mean_and_error(list(difference))[1]:.2f}"

    headers = ("cache", "PSNR dB", "vs off", "SSIM", "forced dB", "vs off")
    rows = [
        (
            " ".join(case),
            text(values["psnr"]),
            versus_off(case, "psnr"),
            f"{np.mean(values['ssim']):.4f}",
            text(values["forced_psnr"]),
            versus_off(case, "forced_psnr"),
        )
        for case, values in results.items()
    ]
    return format_table(headers, rows)


def mass_table(masses: Tensor) -> str:
    """One row per layer, mean over the videos."""
    mean = masses.mean(dim=-1)
    rows = [(str(layer), *(f"{mass:.4f}" for mass in mean[:, layer])) for layer in range(mean.shape[1])]
    rows.append(("distance", *(f"{distance:.4f}" for distance in (mean - mean[0]).abs().mean(dim=1))))
    return format_table(("layer", *VARIANTS), rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, writes the JSON file."""
    arguments = parse(argv)
    use_threads(arguments.threads)
    model = load_model("demo", arguments.weights, "cpu", torch.float32)
    lab = Lab(model, draw_requests(arguments.prompts, arguments.seed), arguments.frames, arguments.steps)
    if lab.num_chunks <= COMPARED_CHUNKS[-1]:
        raise ConfigError(
            f"--frames is {arguments.frames}; chunks {COMPARED_CHUNKS} are compared, so 3 chunks are needed"
        )
    codec = arguments.codec
    cases = [(codec, correction) for correction in CORRECTIONS]
    cases += [(extra, "measured") for extra in arguments.extra_codecs if extra != codec]
    meter = MassMeter(model, lab.cache((codec, "measured")), lab.window, arguments.prompts, COMPARED_CHUNKS)
    made = lab.forced(REFERENCE).generate(watch=meter)
    frames = measure_frames(lab, cases, made.latents, frames_of(made))
    print(f"{arguments.prompts} prompts, chunks 1 and 2 of {arguments.frames} frames, against the bf16 cache\n")
    print(frames_table(frames, codec))
    print(f"\nattention on cached keys, {codec}\n\n{mass_table(meter.masses)}")
    results = {
        "prompts": [request.prompt for request in lab.requests],
        "frames": [{"codec": case[0], "correction": case[1], **values} for case, values in frames.items()],
        "cached_mass": dict(zip(VARIANTS, meter.masses.tolist(), strict=True)),
    }
    write_report(arguments, "demo_fidelity", results)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ends with a message for those that cannot be measured."""
    parser = make_parser("demo_fidelity", __doc__)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--steps", type=int, default=EngineSettings().num_denoise_steps, help="denoise steps")
    parser.add_argument("--frames", type=int, default=24, help="length of a video, at least 3 chunks")
    quantized = [name for name in CODEC_NAMES if is_quantized(name)]
    parser.add_argument("--codec", choices=quantized, default="int2", help="codec that is run with every correction")
    parser.add_argument("--extra-codecs", nargs="*", choices=quantized, default=["int4", "int8"])
    parser.add_argument("--weights", type=Path, help="folder of the demo model's weights (default: the shipped ones)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
