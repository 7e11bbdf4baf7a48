"""Trains the walk model on outings over maps that it renders itself, and exports the weights.

walk_batches.py has the data, the attention and the loss; walk_check.py measures from time to time how much of a first
visit is there again at the next one.

python tools/train_walk.py --steps 6000 --threads 1 --out runs/walk            # about an hour on one core
python tools/train_walk.py --steps 6000 --threads 1 --out runs/walk --resume   # after an interruption
python tools/train_walk.py --out runs/walk --export DIR                        # what `load_walk` reads

With --minutes in place of --steps, a run takes as many steps as fit, and is not the same every time. Needs PyTorch 2.9
or newer (its Muon optimizer); the exported weights do not.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

import training
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.models.walk.network import Transformer
from pagedvid.models.walk.pipeline import WalkModel
from pagedvid.models.walk.spec import CHUNK_TOKENS, LATENT_CHANNELS
from pagedvid.models.walk.weights import save_weights
from walk_batches import Batch, batch_loss, make_batch
from walk_check import outing_scores

HIDDEN_LAYERS = ("qkv", "out", "mlp_in", "mlp_out")
SHORT_OUTING, LONG_OUTING = 24, 320
"""Most frames of an outing when training begins, and later."""
LONGER_PER_STEP = 0.1
"""Frames by which outings grow with every step."""
CROWDED_EVERY, CROWDED_TIMES = 16, 3
"""Every so many steps have so many times as many chunks, so that attention stays sharp over a long history."""
LANDMARK_WEIGHT = 4.0
"""Of cells with a landmark in the loss, until the rate falls. Landmarks are rare, and learned sooner when they count
more; but what minimises such a loss shows too many of them, so in the end all cells count alike."""
CHECK_SECONDS = 300.0
CHECK_FRAMES, CHECK_MAPS = 33, 2
"""Of the outings that are checked while the network is trained."""


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Flags of the command line."""
    parser = training.argument_parser(__doc__ or "", out="runs/walk", layers=4, width=192)
    parser.add_argument("--maps-per-batch", type=int, default=1)
    parser.add_argument("--chunks-per-map", type=int, default=8)
    return training.parse(parser, arguments)


class Trainer(training.Trainer):
    """Trains on outings that become longer."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments, HIDDEN_LAYERS)
        self.last_check = time.perf_counter()
        if arguments.compile:
            self.model.compile(dynamic=False)  # in place, so that the names of the parameters do not change

    @staticmethod
    def network_of(sizes: Mapping[str, int]) -> Transformer:
        """A new network; `sizes` are those of `TransformerConfig`."""
        latents = {"latent_channels": LATENT_CHANNELS, "chunk_tokens": CHUNK_TOKENS}
        return Transformer(TransformerConfig(**{**latents, **sizes}))

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, dict[str, object]]:
        """The loss of one batch, and its errors in seen and in new cells."""
        longest = min(LONG_OUTING, SHORT_OUTING + int(LONGER_PER_STEP * self.step))
        is_crowded = self.step % CROWDED_EVERY == CROWDED_EVERY - 1
        chunks_per_map = self.arguments.chunks_per_map * (CROWDED_TIMES if is_crowded else 1)
        landmark_weight = LANDMARK_WEIGHT if self.progress < 1 - training.DECAY_FRACTION else 1.0
        batch = make_batch(rng, self.arguments.maps_per_batch, chunks_per_map, longest, landmark_weight)
        batch = Batch(*(tensor.to(self.device) for tensor in vars(batch).values()))
        # Small matrices in bfloat16 are slower than in float32 on most processors.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu"):
            loss, errors = batch_loss(self.model, batch, generator)
        return loss, dict(errors)

    def report(self) -> dict[str, object] | None:
        """Scores of short outings with the averaged network, every few minutes."""
        if time.perf_counter() - self.last_check < CHECK_SECONDS:
            return None
        scores = outing_scores(WalkModel.of(self.average), CHECK_FRAMES, range(CHECK_MAPS))
        self.last_check = time.perf_counter()
        return dict(scores)

    def facts(self) -> dict[str, object]:
        """How the weights were trained."""
        names = ("maps_per_batch", "chunks_per_map")
        return super().facts() | {name: getattr(self.arguments, name) for name in names}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    training.run(Trainer, parse_arguments(arguments), save_weights)


if __name__ == "__main__":
    training.end_politely()
    main()
