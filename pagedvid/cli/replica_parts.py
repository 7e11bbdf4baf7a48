"""What the flags of `pagedvid serve --ray` come to: workers on many devices."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from pagedvid.cli.cluster_parts import STORE_BYTES, connected, device_of, refuse_flags_without_ray
from pagedvid.cli.service_parts import BuildWorker, build_served, checkpoint_files, one_worker

if TYPE_CHECKING:
    from pagedvid.models.build import RunSpec

REPLICA = "replica"
"""What a worker is called in the flags."""


@contextmanager
def workers_of(args: argparse.Namespace, spec: RunSpec) -> Iterator[BuildWorker]:
    """Yields what makes the worker of a service, or its replicas. Raises ConfigError."""
    if args.ray is None:
        refuse_flags_without_ray(args, REPLICA)
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
