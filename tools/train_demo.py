"""Trains the built-in demo model on clips that it renders itself, and exports the weights.

The shipped weights took 98 minutes on two cores. demo_batches.py has the data, the attention and the loss.

python tools/train_demo.py --steps 7400 --compile --out runs/demo            # what the shipped weights come from
python tools/train_demo.py --steps 7400 --compile --out runs/demo --resume   # after an interruption
python tools/train_demo.py --out runs/demo --export pagedvid/models/demo/weights

Needs PyTorch 2.9 or newer (its Muon optimizer); the exported weights do not.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from demo_batches import FRAMES_PER_CHUNK, batch_loss, make_batch
from pagedvid.models.demo.network import Transformer, demo_rotary
from pagedvid.models.demo.spec import GRID_SIZE, LATENT_CHANNELS, TOKENS_PER_FRAME, TransformerConfig
from pagedvid.models.demo.weights import save_weights

HIDDEN_LAYERS = ("qkv", "out", "mlp_in", "mlp_out", "hidden_1", "hidden_2")
"""Linear layers from hidden states to hidden states, by the last part of their names."""
WARMUP_STEPS = 100
DECAY_FRACTION = 0.35
EMA_DECAY = 0.998
CHECKPOINT_SECONDS = 240.0
LOG_SECONDS = 15.0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of checkpoint.pt and log.jsonl")
    parser.add_argument("--minutes", type=float, help="length of the whole run, with the time before a --resume")
    parser.add_argument("--steps", type=int, help="length of the whole run in steps, instead of --minutes")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--export", type=Path, metavar="DIR", help="export the averaged weights to DIR; no training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="a third faster; needs a C++ compiler")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--chunks-per-batch", type=int, default=32, help="clean and noisy chunks of one step")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=192, help="a multiple of the head size, 64")
    parsed = parser.parse_args(arguments)
    if parsed.export is None and (parsed.minutes is None) == (parsed.steps is None):
        parser.error("give exactly one of --minutes and --steps")
    return parsed


def build_config(arguments: argparse.Namespace) -> TransformerConfig:
    """Sizes of the network to train."""
    return TransformerConfig(
        latent_channels=LATENT_CHANNELS,
        chunk_tokens=FRAMES_PER_CHUNK * TOKENS_PER_FRAME,
        width=arguments.width,
        num_heads=arguments.width // 64,
        num_layers=arguments.layers,
    )


def build_optimizers(model: Transformer, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest (embeddings, gains, biases, in- and output)."""
    named = ((name.split(".")[-1], module) for name, module in model.named_modules())
    matrices = [module.weight for name, module in named if name in HIDDEN_LAYERS]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)]


def learning_rate_factor(step: int, progress: float) -> float:
    """Warm-up, then constant, then linear to 0 over the last part of the run."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, 1 - progress) / DECAY_FRACTION)


class Trainer:
    """State of one run: network, its running average, optimizers, counters."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(arguments.seed)
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.config = build_config(arguments)
        self.model = Transformer(self.config).to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.rope = demo_rotary(self.config.head_dim, GRID_SIZE, GRID_SIZE)
        self.optimizers = build_optimizers(self.model, arguments.learning_rate)
        if arguments.compile:
            # In place, so that the names of the parameters do not change.
            self.model.compile(dynamic=False)
            self.model.canvas.compile(dynamic=False)
        self.step = 0
        self.seconds = 0.0

    @property
    def progress(self) -> float:
        """Fraction of the run that is done."""
        if self.arguments.steps is not None:
            return self.step / self.arguments.steps
        return self.seconds / (60 * self.arguments.minutes)

    def train_step(self) -> tuple[float, list[float]]:
        """One optimizer step on data that depends on seed and step number only: (loss, errors by chunk position)."""
        started = time.perf_counter()
        rng = np.random.default_rng([self.arguments.seed, self.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        batch = make_batch(rng, self.arguments.chunks_per_batch)
        batch = type(batch)(*(tensor.to(self.device) for tensor in vars(batch).values()))
        with torch.autocast(self.device.type, torch.bfloat16):
            loss, errors_I = batch_loss(self.model, self.rope, batch, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = learning_rate_factor(self.step, self.progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.arguments.learning_rate * factor
            optimizer.step()
            optimizer.zero_grad()
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        self.seconds += time.perf_counter() - started
        return loss.item(), errors_I.tolist()

    def save(self) -> None:
        """Writes the checkpoint under a temporary name and renames it, so that a kill leaves the last one intact."""
        path = self.arguments.out / "checkpoint.pt"
        state = {
            "config": asdict(self.config),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "facts": self.facts(),
        }
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def resume(self) -> None:
        """Loads the checkpoint of an earlier run with the same sizes."""
        state = torch.load(self.arguments.out / "checkpoint.pt", map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def facts(self) -> dict[str, object]:
        """How the weights were trained; exported with them."""
        return {
            "steps": self.step,
            "minutes": round(self.seconds / 60, 1),
            "seed": self.arguments.seed,
            "chunks_per_batch": self.arguments.chunks_per_batch,
            "learning_rate": self.arguments.learning_rate,
            "device": self.arguments.device,
            "threads": self.arguments.threads,
            "machine": platform.machine(),
            "torch": str(torch.__version__),
        }


def train(trainer: Trainer) -> None:
    """Trains to the end, with checkpoints on the way; shows progress as a bar on a terminal, as lines elsewhere."""
    out = trainer.arguments.out
    out.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:5.1f} %"),
        TimeElapsedColumn(),
    )
    last_log = last_save = time.perf_counter()
    losses: list[float] = []
    with Progress(*columns, disable=not sys.stdout.isatty()) as bar, (out / "log.jsonl").open("a") as log:
        task = bar.add_task("training", total=1.0, completed=trainer.progress)
        while trainer.progress < 1:
            loss, errors_I = trainer.train_step()
            losses.append(loss)
            now = time.perf_counter()
            if now - last_log > LOG_SECONDS or trainer.progress >= 1:
                mean = sum(losses) / len(losses)
                line = {"step": trainer.step, "minutes": round(trainer.seconds / 60, 2), "loss": round(mean, 5)}
                line |= {"seconds_per_step": round((now - last_log) / len(losses), 3), "errors": errors_I}
                log.write(json.dumps(line) + "\n")
                log.flush()
                bar.update(task, completed=trainer.progress, description=f"step {trainer.step} loss {mean:.4f}")
                if not sys.stdout.isatty():
                    print(json.dumps(line), flush=True)
                losses, last_log = [], now
            if now - last_save > CHECKPOINT_SECONDS:
                trainer.save()
                last_save = time.perf_counter()


def export(checkpoint: Path, folder: Path) -> None:
    """Writes the averaged weights of a checkpoint in the form that `load_demo` reads."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    network = Transformer(TransformerConfig(**state["config"]))
    network.load_state_dict(state["average"])
    save_weights(network, folder, state["facts"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the script."""
    parsed = parse_arguments(arguments)
    if parsed.export is not None:
        export(parsed.out / "checkpoint.pt", parsed.export)
        return
    torch.set_num_threads(parsed.threads)
    trainer = Trainer(parsed)
    if parsed.resume:
        trainer.resume()
    try:
        train(trainer)
    finally:
        # Also after Ctrl-C: the next --resume continues from this very step.
        trainer.save()


if __name__ == "__main__":
    # A polite kill ends like Ctrl-C: with a checkpoint.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
