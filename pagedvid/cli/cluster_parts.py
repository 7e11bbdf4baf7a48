"""The flags of `pagedvid generate --ray`, and what they come to; `serve --ray` connects in the same way."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedvid.cli.options import by_rule
from pagedvid.cli.progress import ProgressView
from pagedvid.cli.run_result import RunResult
from pagedvid.cli.variables import set_value
from pagedvid.config.rules import number, one_of, whole
from pagedvid.config.sections import Config
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.units import MIB

if TYPE_CHECKING:
    from pagedvid.cluster.cluster import Cluster, Device
    from pagedvid.cluster.url_folder import UrlFolder
    from pagedvid.models.build import RunSpec
    from pagedvid.output.folder import OutputFolder

STORE_BYTES = 256 * MIB
"""Of the object store of a local Ray, besides the model."""
RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to Ray's makers
    "RAY_NUM_REDIS_GET_RETRIES": "2",  # against a server that answers, but is not a Ray that we can use
}
"""Read by Ray when it is imported."""
MOST_WORKERS = 10_000

Maker = Callable[[Any, Sequence[VideoRequest], ProgressView, Mapping[str, str]], RunResult]
"""Makes the videos of a run: (open folder, requests, view, versions) -> what it did."""


def add_cluster_options(parser: argparse.ArgumentParser, worker: str = "worker") -> None:
    """Adds --ray and the flags that go with it. `worker`: what the command calls one."""
    group = parser.add_argument_group("many devices (see docs/many_devices.md)")
    group.add_argument(
        "--ray", metavar="local|auto|HOST:PORT", help="make the videos with Ray: on this machine, or on a cluster"
    )
    group.add_argument(
        f"--{worker}s",
        metavar="N|auto",
        type=by_rule(one_of("auto") | whole(1, MOST_WORKERS)),
        help=f"{worker}s, each on a device of its own (default: auto, one for each device)",
    )
    group.add_argument(
        f"--gpus-per-{worker}",
        metavar="F",
        type=by_rule(number(0.01, 1)),
        help=f"what a {worker} takes of a GPU (default: 1; 0.5: two {worker}s share one)",
    )


def refuse_flags_without_ray(args: argparse.Namespace, worker: str = "worker") -> None:
    """Raises ConfigError for flags that need --ray."""
    for flag in (f"{worker}s", f"gpus_per_{worker}"):
        if getattr(args, flag) is not None:
            raise ConfigError(f"--{flag.replace('_', '-')} goes with --ray; add --ray local, or leave it out")


@contextmanager
def cluster_maker(args: argparse.Namespace, spec: RunSpec) -> Iterator[Maker]:
    """Connects to Ray, and yields what makes the videos there. Raises ConfigError."""
    device = device_of(spec.config, args.gpus_per_worker)
    with (
        connected(args.ray, STORE_BYTES + 2 * _model_bytes(spec)) as cluster,
        redirect_stdout(sys.stderr),  # Ray prints what happens to its processes, and stdout is for the summary
    ):
        wanted = None if args.workers in (None, "auto") else args.workers
        num_workers = cluster.num_workers(wanted, device)

        def make(
            folder: OutputFolder | UrlFolder,
            requests: Sequence[VideoRequest],
            view: ProgressView,
            versions: Mapping[str, str],
        ) -> RunResult:
            from pagedvid.cli.cluster_run import ClusterRun, VideoFacts
            from pagedvid.cluster.file_outlet import FileOutlet, VideoFormat

            to_encode = [prompt for it in requests if "embeddings" not in it.inputs for prompt in it.prompts]
            builder, model = cluster.load(spec, to_encode, device)
            generate = spec.config.generate
            format = VideoFormat(
                generate.frames_per_second or model.frames_per_second,
                generate.scale or spec.model.pixel_scale,
                spec.model.writes_latents,
            )
            outlet = partial(FileOutlet, url=folder.url, format=format)
            facts = VideoFacts(format.frames_per_second, model.frames_per_chunk, versions)
            start = partial(cluster.start_worker, device, builder, outlet)
            return ClusterRun(start, min(num_workers, len(requests)), folder, requests, view, facts).run()

        yield make


def connected(address: str, store_bytes: int) -> Cluster:
    """A connection to Ray; the caller closes it. `store_bytes`: for objects, if Ray starts here. Raises ConfigError."""
    from pagedvid.cluster.cluster import Cluster

    for name, value in RAY_VARIABLES.items():
        set_value(name, value)
    return Cluster(address, store_bytes)


def device_of(config: Config, gpus_per_worker: float | None, flag: str = "--gpus-per-worker") -> Device:
    """What one worker takes of a machine. `flag`: name of the flag, for messages. Raises ConfigError."""
    from pagedvid.cluster.cluster import Device

    threads, device = config.generate.threads, config.model.device
    num_cpus = 1 if threads == "auto" else int(threads)
    if device == "cpu":
        if gpus_per_worker is not None:
            raise ConfigError(
                f"{flag} is for models on GPUs, and model.device is cpu; add --set model.device=cuda, or "
                "leave the flag out"
            )
        return Device(num_cpus)
    if device != "cuda":
        raise ConfigError(f"model.device is {device}, but Ray gives every worker its own GPU; write cuda")
    return Device(num_cpus, 1.0 if gpus_per_worker is None else gpus_per_worker)


def _model_bytes(spec: RunSpec) -> int:
    """Of all files next to the weights; the numbers of a checkpoint may get twice as wide when they are read."""
    from pagedvid.models.registry import model_weights

    config = spec.config.model
    places = [model_weights(config.name, None if config.weights is None else Path(config.weights))]
    places += [Path(part) for part in (config.vae,) if part is not None]
    files = [file for place in places if place for file in ([place] if place.is_file() else place.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())
