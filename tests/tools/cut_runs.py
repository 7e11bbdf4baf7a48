"""A training that is cut and resumed, for the tests of the training tools."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


def trained(program: ModuleType, sizes: Sequence[str], folder: Path, stops: Sequence[int]) -> Any:
    """The trainer of a tool after the last of these steps. At each of them the run is saved, and begun again from the
    file."""
    for number, stop in enumerate(stops):
        resume = ["--resume"] if number else []
        # --steps also shapes the decay at the end: fix the progress that the schedule sees.
        arguments = program.parse_arguments([*sizes, "--steps", "1000", "--out", str(folder), *resume])
        trainer = program.Trainer(arguments)
        arguments.out.mkdir(exist_ok=True)
        if resume:
            trainer.resume()
        while trainer.step < stop:
            trainer.train_step()
        trainer.save()
    return trainer
