"""Trains the built-in demo model on clips that it renders itself, and exports the weights.

The shipped weights took 98 minutes on two cores. demo_batches.py has the data, the attention and the loss.

python tools/train_demo.py --steps 7400 --compile --out runs/demo            # what the shipped weights come from
python tools/train_demo.py --steps 7400 --compile --out runs/demo --resume   # after an interruption
python tools/train_demo.py --out runs/demo --export pagedvid/models/demo/weights

Needs PyTorch 2.9 or newer (its Muon optimizer); the exported weights do not.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

import training
from demo_batches import FRAMES_PER_CHUNK, batch_loss, make_batch
from pagedvid.models.demo.network import Transformer, demo_rotary
from pagedvid.models.demo.spec import GRID_SIZE, LATENT_CHANNELS, TOKENS_PER_FRAME, TransformerConfig
from pagedvid.models.demo.weights import save_weights

HIDDEN_LAYERS = ("qkv", "out", "mlp_in", "mlp_out", "hidden_1", "hidden_2")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Flags of the command line."""
    parser = training.argument_parser(__doc__ or "", out="runs/demo", layers=6, width=192)
    parser.add_argument("--chunks-per-batch", type=int, default=32, help="clean and noisy chunks of one step")
    return training.parse(parser, arguments)


class Trainer(training.Trainer):
    """Trains on clips of scenes with their captions."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments, HIDDEN_LAYERS)
        self.rope = demo_rotary(self.model.config.head_dim, GRID_SIZE, GRID_SIZE)
        if arguments.compile:
            # In place, so that the names of the parameters do not change.
            self.model.compile(dynamic=False)
            self.model.canvas.compile(dynamic=False)

    @staticmethod
    def network_of(sizes: Mapping[str, int]) -> Transformer:
        """A new network; `sizes` are those of `TransformerConfig`."""
        latents = {"latent_channels": LATENT_CHANNELS, "chunk_tokens": FRAMES_PER_CHUNK * TOKENS_PER_FRAME}
        return Transformer(TransformerConfig(**{**latents, **sizes}))

    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, dict[str, object]]:
        """The loss of one batch, and its errors by chunk position."""
        batch = make_batch(rng, self.arguments.chunks_per_batch)
        batch = type(batch)(*(tensor.to(self.device) for tensor in vars(batch).values()))
        with torch.autocast(self.device.type, torch.bfloat16):
            loss, errors_I = batch_loss(self.model, self.rope, batch, generator)
        return loss, {"errors": errors_I.tolist()}

    def facts(self) -> dict[str, object]:
        """How the weights were trained."""
        return super().facts() | {"chunks_per_batch": self.arguments.chunks_per_batch}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    training.run(Trainer, parse_arguments(arguments), save_weights)


if __name__ == "__main__":
    training.end_politely()
    main()
