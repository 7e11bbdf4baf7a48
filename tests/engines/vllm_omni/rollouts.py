"""Rollouts by vLLM-Omni's scheduler and runner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm_omni.diffusion.data import OmniDiffusionConfig
from vllm_omni.diffusion.request import OmniDiffusionRequest
from vllm_omni.diffusion.sched.step_scheduler import StepScheduler
from vllm_omni.experimental.ar_diffusion.runner import ARDiffusionModelRunner

from pagedvid.integrations.vllm_omni.runner import PagedModelRunner
from tests.engines.vllm_omni.tiny_lingbot import TinyLingBot

PAGED = PagedModelRunner
ITS_OWN = ARDiffusionModelRunner


def new_runner(
    kind: type,
    config: Any,
    *,
    pipeline: type = TinyLingBot,
    dtype: torch.dtype = torch.float32,
    tiny: Mapping[str, int] | None = None,
    max_num_seqs: int = 1,
    step_execution: bool = True,
    eager: bool = True,
    reuse: bool = False,
    **paged: Any,
) -> Any:
    """A runner with a tiny LingBot loaded.

    `tiny`: changes of its shape. `reuse`: whether the last denoise step of a block stores, in place of a forward of its
    own. `paged`: settings of pagedvid, which vLLM-Omni's own runner does not read.
    """
    od_config = OmniDiffusionConfig(
        model=str(Path(__file__).parent),  # a folder, so that nothing is looked for on a hub
        dtype=dtype,
        enforce_eager=eager,
        step_execution=step_execution,
        streaming_output=step_execution,
        max_num_seqs=max_num_seqs,
        model_config={"tiny": tiny or {}, "lingbot_reuse_last_step_kv": reuse, "pagedvid": paged},
    )
    runner = kind(config, od_config, torch.device("cpu"))
    runner.load_model(load_format="custom_pipeline", custom_pipeline_name=pipeline)
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


def rollout(runner: Any, *requests: OmniDiffusionRequest, arrivals: Sequence[int] | None = None) -> dict[str, Tensor]:
    """The latents of every request [1, channels, frames, rows, columns], all its blocks.

    `arrivals`: cycles that have run when each request arrives; None: all are there at once.
    """
    blocks = defaultdict(list)
    waiting = sorted(zip(arrivals or [0] * len(requests), range(len(requests)), requests, strict=True))
    with scheduled(runner, ()) as scheduler:
        for number in count():
            while waiting and waiting[0][0] <= number:
                scheduler.add_request(waiting.pop(0)[-1])
            if not scheduler.has_requests():
                break
            for made in cycle(runner, scheduler).runner_outputs:
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
