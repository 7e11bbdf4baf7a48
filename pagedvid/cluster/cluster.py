"""The machines that Ray lends: connecting to them, how many workers they have room for, and starting these."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pagedvid.cluster.engine_builder import EngineBuilder, ModelFacts, load_packed
from pagedvid.cluster.library import ray_library
from pagedvid.cluster.remote_worker import RemoteWorker, own_error
from pagedvid.cluster.worker_actor import Direct, Outlet, WorkerActor
from pagedvid.engine.engine import Engine
from pagedvid.errors import ConfigError
from pagedvid.models.build import RunSpec
from pagedvid.shown import shown

LOCAL, AUTO = "local", "auto"
CONNECT_SECONDS = 3.0
"""What an address has to answer within; Ray itself would try for minutes."""
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How HTTP/2, which Ray speaks, begins; the other end then says something, too."""
_ADDRESS = re.compile(r"(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Device:
    """What one worker takes of a machine."""

    num_cpus: int
    num_gpus: float = 0.0
    """Below 1: workers share a GPU."""

    def num_in(self, resources: dict[str, float]) -> int:
        """How many of it a machine has."""
        num = int(resources.get("CPU", 0) // self.num_cpus)
        return min(num, int(resources.get("GPU", 0) / self.num_gpus + 1e-6)) if self.num_gpus else num

    def __str__(self) -> str:
        cpus = f"{self.num_cpus} CPU core{'s' if self.num_cpus > 1 else ''}"
        return f"{self.num_gpus:g} GPU and {cpus}" if self.num_gpus else cpus


class Cluster:
    """A connection to Ray. Leaving its `with` block ends all workers, and a local Ray with them."""

    def __init__(self, address: str, store_bytes: int) -> None:
        """`address`: "local" starts Ray on this machine, "auto" finds the one that this machine belongs to, HOST:PORT
        names it. `store_bytes`: for objects on this machine, if Ray is started here. Raises ConfigError."""
        self._ray = ray_library()
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == LOCAL:
            how = {"address": LOCAL, "include_dashboard": False, "object_store_memory": store_bytes}
        else:
            if address != AUTO:
                _require_answer(address)
            how = {"address": address}
        try:
            self._ray.init(**how, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"--ray {address}: {error}; the cluster's Ray and Python have to be of the same versions as here, and "
                "a cluster with tokens needs RAY_AUTH_MODE=token"
            ) from error

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()

    def num_workers(self, wanted: int | None, device: Device) -> int:
        """`wanted`, or for None as many as there are devices. Raises ConfigError for more than these."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        num_devices = sum(device.num_in(machine) for machine in machines)
        if (wanted or 1) > num_devices:
            cores, gpus = (sum(int(machine.get(kind, 0)) for machine in machines) for kind in ("CPU", "GPU"))
            raise ConfigError(
                f"{wanted or 1} workers that take {device} each do not fit: Ray has {cores} CPU cores and {gpus} GPUs, "
                f"which is enough for {num_devices}; lower --workers, --gpus-per-worker or generate.threads"
            )
        return wanted or num_devices

    def load(self, run: RunSpec, prompts: Sequence[str], device: Device) -> tuple[EngineBuilder, ModelFacts]:
        """Loads the model once, into the object store. Raises what loading it raises."""
        task = self._ray.remote(num_cpus=device.num_cpus, num_gpus=device.num_gpus, num_returns=2)(load_packed)
        model, facts = task.remote(run, list(prompts))
        try:
            return EngineBuilder.of(run, model), self._ray.get(facts)
        except self._ray.exceptions.RayError as error:
            raise own_error(error) from None

    def start_worker(
        self,
        device: Device,
        build_engine: Callable[[], Engine],
        make_outlet: Callable[[Callable[[Any], None]], Outlet] = Direct,
        settings: dict[str, Any] | None = None,
    ) -> RemoteWorker:
        """A worker on a free device, in a process of its own; see `WorkerActor`. Its `start` is still to be called."""
        actor = self._ray.remote(num_cpus=device.num_cpus, num_gpus=device.num_gpus, max_restarts=0)(WorkerActor)
        return RemoteWorker(actor.remote(build_engine, make_outlet, settings))


def _require_answer(address: str) -> None:
    """Raises ConfigError unless something listens there."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ConfigError(
            f"--ray {shown(address)} is no address; write local, auto or HOST:PORT, the address that `ray start "
            "--head` prints, and start the command on a machine of the cluster"
        )
    try:
        with socket.create_connection((match["host"].strip("[]"), int(match["port"])), CONNECT_SECONDS) as connection:
            connection.sendall(_GREETING)
            connection.recv(1)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--ray {address} does not answer ({error}); give the address of a Ray that runs, as `ray start --head` "
            "prints it, or local"
        ) from error
