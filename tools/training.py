"""What the training of pagedvid's own models shares: flags, optimizers, steps, checkpoints, the log and the export.

A tool derives from `Trainer` and gives the network and the loss of a step. Data, noise and rate of a step depend on the
seed and the number of the step alone (with --steps), so that a run that was cut and resumed ends like a whole one.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

HEAD_DIM = 64
WARMUP_STEPS = 100
DECAY_FRACTION = 0.35
EMA_DECAY = 0.998
CHECKPOINT_SECONDS = 240.0
LOG_SECONDS = 15.0
CHECKPOINT = "checkpoint.pt"
STOP = threading.Event()
"""Whether the run is to end after its present step; see `end_politely`."""


def argument_parser(description: str, out: str, layers: int, width: int) -> argparse.ArgumentParser:
    """The flags of every training tool, with its own defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of checkpoint.pt and log.jsonl")
    parser.add_argument("--minutes", type=float, help="length of the whole run, with the time before a --resume")
    parser.add_argument("--steps", type=int, help="length of the whole run in steps, instead of --minutes")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--export", type=Path, metavar="DIR", help="export the averaged weights to DIR; no training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="a third faster; needs a C++ compiler")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--layers", type=int, default=layers)
    parser.add_argument("--width", type=int, default=width, help=f"a multiple of the head size, {HEAD_DIM}")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The flags. Ends the program unless a run has exactly one length, and for an --out that does not suit them."""
    parsed = parser.parse_args(arguments)
    has_checkpoint = (parsed.out / CHECKPOINT).exists()
    if (parsed.resume or parsed.export is not None) and not has_checkpoint:
        parser.error(f"{parsed.out} has no {CHECKPOINT} to go on from or to export; name the --out of the run")
    if parsed.export is not None:
        return parsed
    if (parsed.minutes is None) == (parsed.steps is None):
        parser.error("give exactly one of --minutes and --steps")
    if not all(length is None or length > 0 for length in (parsed.minutes, parsed.steps)):
        parser.error("--minutes and --steps must be above 0")
    if has_checkpoint and not parsed.resume:
        parser.error(f"{parsed.out} has the {CHECKPOINT} of a run; give --resume to go on, or another --out")
    return parsed


def build_optimizers(
    model: nn.Module, hidden_layers: Sequence[str], learning_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the rest (embeddings, gains, biases, in- and output).

    `hidden_layers`: linear layers from hidden states to hidden states, by the last part of their names.
    """
    named = ((name.split(".")[-1], module) for name, module in model.named_modules())
    matrices = [module.weight for name, module in named if name in hidden_layers]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)]


def learning_rate_factor(step: int, progress: float) -> float:
    """Warm-up, then constant, then linear to 0 over the last part of the run."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, 1 - progress) / DECAY_FRACTION)


class Trainer(ABC):
    """State of one run: network, its running average, optimizers, counters."""

    def __init__(self, arguments: argparse.Namespace, hidden_layers: Sequence[str]) -> None:
        torch.manual_seed(arguments.seed)
        self.arguments = arguments
        self.device = torch.device(arguments.device)
        self.model: Any = self.network_of(
            {"width": arguments.width, "num_heads": arguments.width // HEAD_DIM, "num_layers": arguments.layers}
        ).to(self.device)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.optimizers = build_optimizers(self.model, hidden_layers, arguments.learning_rate)
        self.step = 0
        self.seconds = 0.0

    @staticmethod
    @abstractmethod
    def network_of(sizes: Mapping[str, int]) -> Any:
        """A new network, whose sizes are in its `config`. `sizes`: those of the command line or of a checkpoint."""

    @abstractmethod
    def loss(self, rng: np.random.Generator, generator: torch.Generator) -> tuple[Tensor, dict[str, object]]:
        """(loss to minimise, what to log) of one step, whose data are drawn from `rng` and `generator`."""

    def report(self) -> dict[str, object] | None:
        """What is measured of the averaged network from time to time, for the log; None: nothing now."""
        return None

    def facts(self) -> dict[str, object]:
        """How the weights were trained; exported with them."""
        return {
            "steps": self.step,
            "minutes": round(self.seconds / 60, 1),
            "seed": self.arguments.seed,
            "learning_rate": self.arguments.learning_rate,
            "device": self.arguments.device,
            "threads": self.arguments.threads,
            "machine": platform.machine(),
            "torch": str(torch.__version__),
        }

    @property
    def progress(self) -> float:
        """Fraction of the run that is done."""
        if self.arguments.steps is not None:
            return float(self.step / self.arguments.steps)
        return float(self.seconds / (60 * self.arguments.minutes))

    def train_step(self) -> tuple[float, dict[str, object]]:
        """One optimizer step on data that depends on seed and step number only: (loss, what to log)."""
        started = time.perf_counter()
        rng = np.random.default_rng([self.arguments.seed, self.step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        loss, facts = self.loss(rng, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = learning_rate_factor(self.step, self.progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.arguments.learning_rate * factor
            optimizer.step()
            optimizer.zero_grad()
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
        self.step += 1
        self.seconds += time.perf_counter() - started
        return loss.item(), facts

    def save(self) -> None:
        """Writes the checkpoint under a temporary name and renames it, so that a kill leaves the last one intact."""
        path = self.arguments.out / CHECKPOINT
        state = {
            "config": asdict(self.model.config),
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
        """Loads the checkpoint of an earlier run. Ends the program if it was one with other flags."""
        state = torch.load(self.arguments.out / CHECKPOINT, map_location=self.device, weights_only=True)
        ours, theirs = self.facts(), state["facts"]
        decisive = [name for name in ours if name not in ("steps", "minutes", "device", "threads", "machine", "torch")]
        other = {name: (theirs.get(name), ours[name]) for name in decisive if theirs.get(name) != ours[name]}
        if state["config"] != asdict(self.model.config):
            other["sizes"] = (state["config"], asdict(self.model.config))
        if other:
            differing = "; ".join(f"{name} {before}, now {now}" for name, (before, now) in other.items())
            raise SystemExit(
                f"{self.arguments.out} is a run with other flags: {differing}; give those, or another --out"
            )
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]


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
        while trainer.progress < 1 and not STOP.is_set():
            loss, facts = trainer.train_step()
            losses.append(loss)
            now = time.perf_counter()
            if now - last_log > LOG_SECONDS or trainer.progress >= 1:
                mean = sum(losses) / len(losses)
                line = {"step": trainer.step, "minutes": round(trainer.seconds / 60, 2), "loss": round(mean, 5)}
                line |= {"seconds_per_step": round((now - last_log) / len(losses), 3)} | facts
                line |= trainer.report() or {}
                log.write(json.dumps(line) + "\n")
                log.flush()
                bar.update(task, completed=trainer.progress, description=f"step {trainer.step} loss {mean:.4f}")
                if not sys.stdout.isatty():
                    print(json.dumps(line), flush=True)
                losses, last_log = [], time.perf_counter()
            if now - last_save > CHECKPOINT_SECONDS:
                trainer.save()
                last_save = time.perf_counter()


def run(
    kind: type[Trainer],
    parsed: argparse.Namespace,
    save_weights: Callable[[Any, Path, Mapping[str, Any]], None],
) -> None:
    """What a tool does with its flags: it trains, or exports the averaged weights of the checkpoint in --out.

    `save_weights(network, folder, facts)` writes a network in the form that its model reads.
    """
    if parsed.export is not None:
        state = torch.load(parsed.out / CHECKPOINT, map_location="cpu", weights_only=True)
        network = kind.network_of(state["config"])
        network.load_state_dict(state["average"])
        save_weights(network, parsed.export, state["facts"])
        return
    torch.set_num_threads(parsed.threads)
    trainer = kind(parsed)
    if parsed.resume:
        trainer.resume()
    train(trainer)
    trainer.save()


def end_politely() -> None:
    """Makes Ctrl-C and a polite kill end the run after its present step, with a checkpoint from which --resume goes on.
    The second one ends it at once, without."""

    def stop(number: int, frame: object) -> None:
        STOP.set()
        signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
