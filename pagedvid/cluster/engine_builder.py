"""Engines on many devices from one model: loaded in one place, and put together again in each worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pagedvid.cluster.library import ray_library
from pagedvid.cluster.packed_model import PackedModel, pack, unpack
from pagedvid.engine.engine import Engine
from pagedvid.models.build import RunSpec, build_engine, load_model


@dataclass(frozen=True)
class ModelFacts:
    """What the driver needs to know of a loaded model."""

    frames_per_second: float
    frames_per_chunk: int


def load_packed(run: RunSpec, prompts: Sequence[str]) -> tuple[PackedModel, ModelFacts]:
    """Encodes the prompts and loads the model, on a device like those of the workers. Raises what that raises."""
    model = load_model(run, prompts)
    return pack(model), ModelFacts(model.frames_per_second, model.geometry.frames_per_chunk)


@dataclass(frozen=True)
class EngineBuilder:
    """Builds an engine in a worker's process; no file of the model has to be on its machine."""

    run: RunSpec
    model: Any
    """Reference to a `PackedModel` in the object store."""
    tables: bytes | None
    """The file of klt tables."""

    @staticmethod
    def of(run: RunSpec, model: Any) -> EngineBuilder:
        """Reads the tables. Raises OSError."""
        return EngineBuilder(run, model, None if run.tables is None else run.tables.read_bytes())

    def __call__(self) -> Engine:
        """Raises what `build_engine` raises."""
        threads = self.run.config.generate.threads
        if threads != "auto":
            torch.set_num_threads(int(threads))
        model = unpack(ray_library().get(self.model))
        run = replace(self.run, model=replace(self.run.model, load=lambda prompts: model))
        with TemporaryDirectory(prefix="pagedvid-") as folder:
            if self.tables is not None:
                tables = Path(folder) / "tables.safetensors"
                tables.write_bytes(self.tables)
                run = replace(run, tables=tables)
            return build_engine(run)
