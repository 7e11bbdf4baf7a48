"""Generate videos with the demo model and a plain dense cache, and draw them as one contact sheet.

    python tools/demo_sheet.py --out sheet.png --frames 48 "a large red circle moving left on a black background"

The loop here is the simplest that can be right: keys and values as float tensors, no pages, one video at a time.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pagedvid.models.base import Piece
from pagedvid.models.demo.model import DemoModel
from pagedvid.models.demo.rope import rotate_half


class DenseHistory:
    """`Attend` of one video over plain tensors; `commit` decides whether the call's keys and values are kept.

    Keys are kept before rotary embedding, so positions are numbered inside the window, as the engine does.
    """

    def __init__(self, model: DemoModel, max_chunks: int) -> None:
        self.model, self.max_chunks = model, max_chunks
        self.layers: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(model.geometry.num_layers)]
        self.commit = False

    def __call__(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        chunks = [*self.layers[layer], (k_THD, v_THD)]
        keys, values = (torch.cat(tensors) for tensors in zip(*chunks, strict=True))
        cos, sin = (table.to(q_THD) for table in self.model.rope.tables(0, len(keys)))
        query = rotate_half(q_THD, cos[-len(q_THD) :], sin[-len(q_THD) :])
        heads_first = (x.transpose(0, 1) for x in (query, rotate_half(keys, cos, sin), values))
        out_HTD = F.scaled_dot_product_attention(*heads_first)
        if self.commit:
            # The first chunk is the sink; the newest max_chunks - 2 others stay beside it and the chunk to come.
            self.layers[layer] = chunks if len(chunks) < self.max_chunks else [chunks[0], *chunks[2:]]
        return out_HTD.transpose(0, 1)


def generate(
    model: DemoModel, prompt: str, seed: int, num_chunks: int, num_denoise_steps: int = 8, max_chunks: int = 6
) -> Iterator[np.ndarray]:
    """Yield the frames of one chunk after the other, uint8 [8, 32, 32, 3]."""
    condition = model.encode_prompt(prompt)
    history = DenseHistory(model, max_chunks)
    levels = model.noise_levels(num_denoise_steps)
    size = model.geometry.chunk_tokens
    for chunk in range(num_chunks):
        latents = model.initial_noise(seed, chunk)
        history.commit = False
        for level, next_level in itertools.pairwise(levels):
            prediction = model.forward(latents, [Piece(size, level, "cond", condition)], history)
            latents = model.advance(latents, {"cond": prediction}, level, next_level)
        history.commit = True
        model.forward(latents, [Piece(size, 0.0, "cond", condition)], history)
        yield model.decode(latents)


def contact_sheet(videos: Sequence[np.ndarray], every: int, scale: int = 2) -> Image.Image:
    """One row per video, every so-maniest frame side by side with a thin gap."""
    rows = [
        np.concatenate([np.pad(f, ((1, 1), (1, 1), (0, 0)), constant_values=128) for f in v[::every]], 1)
        for v in videos
    ]
    sheet = Image.fromarray(np.concatenate(rows, 0))
    return sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--weights", type=Path, help="folder of exported weights; default: the shipped ones")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--every", type=int, default=4, help="show every n-th frame")
    parser.add_argument("--denoise-steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(parsed.threads)
    model = DemoModel.load(parsed.weights)
    num_chunks = -(-parsed.frames // model.geometry.frames_per_chunk)
    videos = [
        np.concatenate(list(generate(model, prompt, parsed.seed, num_chunks, parsed.denoise_steps)))[: parsed.frames]
        for prompt in parsed.prompts
    ]
    contact_sheet(videos, parsed.every).save(parsed.out)


if __name__ == "__main__":
    main()
