"""Processes of one group, which run the same functions of it: copies of a server that has imported PyTorch, as this
takes most time."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

Job = Callable[[dist.ProcessGroup], Any]
SECONDS = 240


def on_ranks(num_ranks: int, jobs: Mapping[str, Job]) -> dict[str, list[Any]]:
    """What every job returns on every rank, by name. The jobs are functions of modules."""
    with tempfile.TemporaryDirectory() as folder:
        context = get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed", "diffusers", "pagedvid.models.registry"])
        processes = [
            context.Process(target=_run_rank, args=(rank, num_ranks, Path(folder), dict(jobs)), daemon=True)
            for rank in range(num_ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
        for process in processes:
            process.kill()  # those that wait for a rank that has failed
        results = []
        for rank in range(num_ranks):
            error = Path(folder) / f"error-{rank}"
            assert not error.exists(), f"rank {rank}:\n{error.read_text()}"
            results.append(torch.load(Path(folder) / f"result-{rank}", weights_only=False))
    return {name: [result[name] for result in results] for name in jobs}


def _run_rank(rank: int, num_ranks: int, folder: Path, jobs: Mapping[str, Job]) -> None:
    try:
        torch.set_num_threads(1)
        store = dist.FileStore(str(folder / "store"), num_ranks)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=num_ranks, timeout=timedelta(seconds=SECONDS)
        )
        results = {name: job(dist.group.WORLD) for name, job in jobs.items()}
        torch.save(results, folder / f"result-{rank}")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error-{rank}").write_text(traceback.format_exc())
        raise
