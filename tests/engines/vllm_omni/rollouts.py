"""Rollouts by vLLM-Omni's scheduler and runner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tests.engines.vllm_omni.tiny_lingbot import TinyLingBot, TinyPagedLingBot
from torch import Tensor
from vllm_omni.diffusion.data import OmniDiffusionConfig
from vllm_omni.diffusion.interaction.coordinator import InteractionCoordinator
from vllm_omni.diffusion.request import OmniDiffusionRequest
from vllm_omni.diffusion.sched.step_scheduler import StepScheduler
from vllm_omni.experimental.ar_diffusion.runner import ARDiffusionModelRunner

from pagedvid.integrations.vllm_omni.runner import PagedModelRunner

PAGED = PagedModelRunner
ITS_OWN = ARDiffusionModelRunner


def new_runner(
    kind: type, config: Any, *, dtype: torch.dtype = torch.float32, together: bool = False, tiny: Any = None, **paged: Any
) -> Any:
    """A runner with a tiny LingBot loaded. `together`: with the pipeline that takes several sessions. `tiny`: changes of
    its shape. `paged`: settings of pagedvid."""
    od_config = OmniDiffusionConfig(
        model=str(Path(__file__).parent),  # a folder, so that nothing is looked for on a hub
        dtype=dtype,
        enforce_eager=True,
        step_execution=True,
        streaming_output=True,
        max_num_seqs=2 if together else 1,
        model_config={"tiny": tiny or {}, **({"pagedvid": paged} if kind is PAGED else {})},
    )
    runner = kind(config, od_config, torch.device("cpu"))
    pipeline = TinyPagedLingBot if together else TinyLingBot
    runner.pipeline = pipeline(od_config=od_config).eval()
    coordinator = InteractionCoordinator.build(runner.pipeline, od_config)
    runner._interaction_coordinator = runner.pipeline._interaction_coordinator = coordinator
    runner._preallocate_kv_cache()
    return runner


@contextmanager
def scheduled(runner: Any, requests: Sequence[OmniDiffusionRequest]) -> Iterator[StepScheduler]:
    """The requests in a scheduler of vLLM-Omni."""
    scheduler = StepScheduler()
    scheduler.initialize(runner.od_config)
    for each in requests:
        scheduler.add_request(each)
    yield scheduler
    scheduler.close()


def rollout(runner: Any, *requests: OmniDiffusionRequest) -> dict[str, Tensor]:
    """The latents of every request [1, channels, frames, rows, columns], all its blocks."""
    blocks = defaultdict(list)
    with scheduled(runner, requests) as scheduler:
        while scheduler.has_requests():
            output = cycle(runner, scheduler)
            for made in output.runner_outputs:
                if made.result is not None:
                    assert made.result.error is None, made.result.error
                    blocks[made.request_id].append(made.result.output["payload"]["latents"])
    return {request_id: torch.cat(each, dim=2).float() for request_id, each in blocks.items()}


def cycle(runner: Any, scheduler: StepScheduler) -> Any:
    """One cycle: what is scheduled runs, and the scheduler hears of it."""
    scheduled_now = scheduler.schedule()
    output = runner.execute_stepwise(scheduled_now)
    scheduler.update_from_output(scheduled_now, output)
    return output
