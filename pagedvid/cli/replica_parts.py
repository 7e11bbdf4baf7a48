"""The flags of `pagedvid serve --ray`, and the workers on many devices that they come to."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from pagedvid.cli.cluster_parts import MOST_WORKERS, STORE_BYTES, connected, device_of
from pagedvid.cli.options import by_rule
from pagedvid.cli.service_parts import BuildWorker, build_served, checkpoint_files, one_worker
from pagedvid.config.rules import number, one_of, whole
from pagedvid.errors import ConfigError

if TYPE_CHECKING:
    from pagedvid.models.build import RunSpec


def add_replica_options(parser: argparse.ArgumentParser) -> None:
    """Adds --ray and the flags that go with it."""
    group = parser.add_argument_group("many devices (see docs/many_devices.md)")
    group.add_argument(
        "--ray", metavar="local|auto|HOST:PORT", help="make the videos with Ray: on this machine, or on a cluster"
    )
    group.add_argument(
        "--replicas",
        metavar="N|auto",
        type=by_rule(one_of("auto") | whole(1, MOST_WORKERS)),
        help="workers, each with a pool on a device of its own (default: auto, one for each device)",
    )
    group.add_argument(
        "--gpus-per-replica",
        metavar="F",
        type=by_rule(number(0.01, 1)),
        help="what a replica takes of a GPU (default: 1; 0.5: two of them share one)",
    )


@contextmanager
def workers_of(args: argparse.Namespace, spec: RunSpec) -> Iterator[BuildWorker]:
    """Yields what makes the worker of a service, or its replicas. Raises ConfigError."""
    if args.ray is None:
        for flag in ("replicas", "gpus_per_replica"):
            if getattr(args, flag) is not None:
                raise ConfigError(f"--{flag.replace('_', '-')} goes with --ray; add --ray local, or leave it out")
        yield one_worker(spec)
        return
    from pagedvid.cluster.actor_worker import ActorWorker
    from pagedvid.service.replicas import Replicas

    device = device_of(spec.config, args.gpus_per_replica, "--gpus-per-replica")
    with connected(args.ray, STORE_BYTES) as cluster:
        num_replicas = cluster.num_workers(None if args.replicas in (None, "auto") else args.replicas, device)
        settings = {"checkpoints": partial(checkpoint_files, spec)}
        start = partial(cluster.start_worker, device, partial(build_served, spec), settings=settings)
        yield partial(Replicas, partial(ActorWorker, start), num_replicas)
