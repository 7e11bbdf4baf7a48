"""`generate.devices`: the processes that make every video together, one for each device.

The process that the user starts is rank 0: it writes the files and speaks to the terminal. It starts the same command
for every other rank (followers.py), which builds the same engine and does what rank 0 does (engine/lockstep.py). When
torchrun starts the command, it starts no others; it is one of the ranks then, on one machine or on several.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from pagedvid.cli.followers import Followers
from pagedvid.cli.messages import error_line, reason
from pagedvid.cli.terminal import EXIT_FAILED, EXIT_SUCCESS, end_at_once
from pagedvid.cli.threads import ThreadChoice
from pagedvid.cli.variables import LOCAL_RANK, RANK, RENDEZVOUS, TORCHRUN, WORLD_SIZE, number_of, value_of
from pagedvid.errors import ConfigError, RankError

if TYPE_CHECKING:
    from pagedvid.config.sections import Config
    from pagedvid.distributed.control import Control
    from pagedvid.engine.engine import Engine
    from pagedvid.models.build import RunSpec

LOOK_SECONDS = 1.0
"""How often a follower looks whether rank 0 is still there."""


@dataclass(frozen=True)
class Place:
    """Which of the ranks this process is."""

    rank: int
    num_ranks: int
    local_rank: int
    """Among those of this machine."""
    rendezvous: str | None
    """PyTorch's `init_method`; None: rank 0 chooses it when it starts the others."""


def place_of(config: Config) -> Place | None:
    """None: one device, and no other process. Raises ConfigError when torchrun started another number of processes."""
    num_ranks, rendezvous = config.generate.devices, value_of(RENDEZVOUS)
    if rendezvous is None and value_of(TORCHRUN) is None:
        return None if num_ranks == 1 else Place(0, num_ranks, 0, None)
    if number_of(WORLD_SIZE) != num_ranks:
        raise ConfigError(
            f"torchrun started {number_of(WORLD_SIZE)} processes, but generate.devices is {num_ranks}; give --devices "
            f"{number_of(WORLD_SIZE)}"
        )
    return Place(number_of(RANK), num_ranks, number_of(LOCAL_RANK), rendezvous or "env://")


def on_own_device(config: Config, place: Place | None) -> Config:
    """The settings of one rank. Raises ConfigError for more devices than there are, and for a numbered one."""
    name = config.model.device
    if place is None or name == "cpu":
        return config
    if ":" in name:
        raise ConfigError(f"model.device is {name!r} and generate.devices is {place.num_ranks}; name no number")
    import torch

    num_gpus = torch.cuda.device_count()
    num_here = place.num_ranks if place.rendezvous is None else place.local_rank + 1
    if num_here > num_gpus:
        raise ConfigError(f"generate.devices is {place.num_ranks}, but PyTorch sees {num_gpus} CUDA devices here")
    return replace(config, model=replace(config.model, device=f"{name}:{place.local_rank}"))


def own_share(spec: RunSpec, place: Place | None) -> RunSpec:
    """What one rank stores; the model is as it was. Raises ConfigError for heads that the ranks cannot share evenly."""
    if place is None:
        return spec
    from pagedvid.distributed.heads import HeadShard

    heads = HeadShard.of_rank(place.rank, place.num_ranks, spec.cache.num_kv_heads)
    return replace(spec, cache=heads.of_spec(spec.cache))


# ---------------------------------------------------------------------- rank 0


@dataclass
class Ranks:
    """All of them, as rank 0 sees them."""

    control: Control
    followers: Followers | None
    """None: torchrun looks after them."""
    has_built: bool = field(default=False, init=False)

    def build(self, spec: RunSpec, prompts: Sequence[str]) -> Engine:
        """The engine of rank 0, once the others have built theirs. Raises what building any of them raises, and
        RankError when it is asked for another one."""
        if self.has_built:
            raise RankError("an engine of several devices cannot be built again; start again with --resume")
        from pagedvid.engine.lockstep import LeadingEngine

        self.has_built = True
        self.control.tell(list(prompts))
        return _build_together(self.control, spec, prompts, partial(LeadingEngine, leader=self.control))

    def require_all(self) -> None:
        """Raises RankError if one of them has ended."""
        if self.followers is not None:
            self.followers.require_all()


@contextmanager
def leading(place: Place | None, spec: RunSpec, command_line: Sequence[str]) -> Iterator[Ranks | None]:
    """Starts the others, unless torchrun has, and ends them after the block. None: there are no others."""
    if place is None:
        yield None
    elif place.rendezvous is None:
        with Followers(command_line, place.num_ranks) as followers:
            followers.wait_until_ready()
            with _joined(replace(place, rendezvous=followers.rendezvous), spec) as control:
                yield Ranks(control, followers)
                control.end()
            followers.wait_until_ended()
    else:
        with _joined(place, spec) as control:
            yield Ranks(control, None)
            control.end()


# ---------------------------------------------------------------------- the others


def follow_rank_0(place: Place, spec: RunSpec) -> int:
    """Does what rank 0 does until it ends; the exit code. An error ends the process at once, because the others wait
    for it in an exchange."""
    from pagedvid.engine.engine import Engine
    from pagedvid.engine.lockstep import follow

    ThreadChoice.of(spec.config)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 ends its step, and then the others
    if place.rendezvous != "env://":
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        Followers.announce(place.rank)
    try:
        with _joined(place, spec) as control:
            prompts = control.hear()
            if prompts is not None:
                follow(_build_together(control, spec, prompts, Engine), control)
    except Exception as error:
        print(f"pagedvid: error: rank {place.rank}:", error_line(reason(error)), file=sys.stderr)
        end_at_once(EXIT_FAILED)
    return EXIT_SUCCESS


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    end_at_once(EXIT_FAILED)


# ---------------------------------------------------------------------- all of them


@contextmanager
def _joined(place: Place, spec: RunSpec) -> Iterator[Control]:
    """One of the process group, until the block ends without an error."""
    import torch
    import torch.distributed as dist

    from pagedvid.distributed.control import Control

    is_on_gpu = spec.config.model.device.startswith("cuda")
    if is_on_gpu:
        torch.cuda.set_device(spec.config.model.device)
    dist.init_process_group(
        "nccl" if is_on_gpu else "gloo", init_method=place.rendezvous, rank=place.rank, world_size=place.num_ranks
    )
    yield Control.of_all()
    dist.destroy_process_group()


def _build_together(
    control: Control, spec: RunSpec, prompts: Sequence[str], engine_type: Callable[..., Engine]
) -> Engine:
    """The engine of this rank. Raises what building it raises, or RankError when that of another rank failed; other
    ranks than 0 end without a word then."""
    import torch.distributed as dist

    from pagedvid.models.build import build_engine
    from pagedvid.paged_kv_cache import PagedKVCache

    error: Exception | None = None
    try:
        engine = build_engine(spec, prompts, partial(PagedKVCache, shard=dist.group.WORLD), engine_type)
    except Exception as failed:
        error = failed
    messages = control.shared(None if error is None else reason(error))
    if control.rank > 0 and any(messages):
        with suppress(RuntimeError):
            control.hear()  # until rank 0, which says why, has ended: whoever ends first fails the exchange of others
        end_at_once(EXIT_FAILED)
    if error is not None:
        raise error
    failures = [f"rank {rank} could not build its engine: {why}" for rank, why in enumerate(messages) if why]
    if failures:
        raise RankError("; ".join(failures))
    return engine
