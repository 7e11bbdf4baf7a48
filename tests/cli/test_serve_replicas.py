"""`pagedvid serve --ray`: several workers, one of which is killed, and one of which is drained."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.cli.test_serve_end_to_end import PROMPT, frames, serving
from tests.cluster.processes import ray_head, wait_until

pytest.importorskip("ray")

FLAGS = ("--replicas", "2", "--set", "engine.reproducible=true")
NUM_VIDEOS = 3


class Client:
    def __init__(self, address: str) -> None:
        self._http = httpx.Client(base_url=address, timeout=60)

    def ask_for_videos(self) -> list[str]:
        bodies = [{"prompt": PROMPT, "seed": seed, "seconds": "6"} for seed in range(NUM_VIDEOS)]
        return [self._http.post("/v1/videos", json=body).raise_for_status().json()["id"] for body in bodies]

    def videos_of(self, ids: list[str]) -> list[np.ndarray]:
        for id in ids:
            wait_until(lambda id=id: self._http.get(f"/v1/videos/{id}").json()["status"] in ("completed", "failed"))
        return [frames(self._http.get(f"/v1/videos/{id}/content").raise_for_status().content) for id in ids]

    def replicas(self) -> list[dict]:
        return self._http.get("/v1/replicas").raise_for_status().json()["data"]

    def drain(self, number: int) -> None:
        self._http.post(f"/v1/replicas/{number}/drain").raise_for_status()


@pytest.mark.timeout(300)
def test_videos_are_the_same_when_a_replica_is_killed_and_when_one_is_drained(tmp_path: Path) -> None:
    with ray_head() as ray, serving(tmp_path / "data", "--ray", ray.address, *FLAGS) as (address, _):
        client = Client(address)
        wait_until(lambda: [replica["state"] for replica in client.replicas()] == ["working", "working"])
        undisturbed = client.videos_of(client.ask_for_videos())

        ids = client.ask_for_videos()
        wait_until(lambda: all(replica["num_sessions"] for replica in client.replicas()))
        os.kill(ray.workers()[0], signal.SIGKILL)
        for killed, quiet in zip(client.videos_of(ids), undisturbed, strict=True):
            assert np.array_equal(killed, quiet)

        wait_until(lambda: [replica["state"] for replica in client.replicas()] == ["working", "working"])
        ids = client.ask_for_videos()
        wait_until(lambda: client.replicas()[0]["num_sessions"] > 0)
        client.drain(0)
        wait_until(lambda: client.replicas()[0]["num_sessions"] == 0)
        for drained, quiet in zip(client.videos_of(ids), undisturbed, strict=True):
            assert np.array_equal(drained, quiet)
        first, second = client.replicas()
        assert (first["is_draining"], second["is_draining"]) == (True, False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--replicas", "2"), "--replicas goes with --ray"),
        (("--gpus-per-replica", "0.5"), "--gpus-per-replica goes with --ray"),
        (("--ray", "local", "--gpus-per-replica", "0.5"), "model.device is cpu"),
        (("--ray", "nowhere"), "is no address"),
    ],
)
def test_bad_flags(command, tmp_path, flags, message):
    code, _, err = command("serve", "--port", "0", "--data", tmp_path / "data", *flags)
    assert code == 2 and message in err
