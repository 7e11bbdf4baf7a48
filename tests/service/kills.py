"""kill -9 of a real `pagedvid serve` under load, again and again, and what is left of the videos that it had accepted.

Clients ask for videos of a few kinds without a pause, and try again when nobody answers. At a random moment the process
is killed, and another one goes on with its folder. In the end every video that was accepted is complete, is there once,
and has the frames of an undisturbed run.
"""

from __future__ import annotations

import io
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np

from serving.server import Server

SETTINGS = {
    "generate.scale": 1,
    "engine.reproducible": "true",
    "engine.denoise_steps": 2,
    "cache.memory": "1MiB",
    "cache.host_memory": "4MiB",
    "serve.max_queued": 8,
    "serve.checkpoint_chunks": 2,
}
"""Small frames, few steps, a pool for three or four videos; the same frames in whatever company."""
PROMPTS = ("a large red circle moving left on a black background", "a small blue square on a gray background")
LENGTHS_FRAMES = (24, 48, 120)
"""3, 6 and 15 chunks: the longest have checkpoints when the process is killed."""
KILL_SECONDS = (0.3, 4.0)
"""Least and most time between a start that is ready and its end."""
NUM_CLIENTS = 2
FINISH_SECONDS = 300.0
FRAMES_PER_SECOND = 12

Kind = tuple[str, int, int]
"""(Prompt, seed, frames.)"""


def kinds() -> list[Kind]:
    """What clients ask for."""
    return [(prompt, seed, frames) for seed, prompt in enumerate(PROMPTS) for frames in LENGTHS_FRAMES]


@dataclass
class Report:
    """What was accepted, and what was wrong with it in the end."""

    num_kills: int
    accepted: dict[str, Kind] = field(default_factory=dict)
    """By id."""
    num_unfinished_at_kills: list[int] = field(default_factory=list)
    """Videos that were accepted and not complete when the process was killed."""
    num_checkpoints_at_kills: list[int] = field(default_factory=list)
    """Those that had a checkpoint then."""
    findings: list[str] = field(default_factory=list)


def kill_repeatedly(num_kills: int, seed: int, folder: Path) -> Report:
    """Does all that, in a folder of its own."""
    expected = undisturbed(folder / "quiet")
    report, randomness = Report(num_kills), random.Random(seed)
    server = Server(folder / "killed", SETTINGS, num_threads=1)
    server.start()
    clients = [Client(server, report, random.Random(f"{seed} client {number}")) for number in range(NUM_CLIENTS)]
    try:
        for client in clients:
            client.start()
        for number in range(num_kills):
            time.sleep(randomness.uniform(*KILL_SECONDS))
            server.kill()
            _note(server, report)
            if number == num_kills - 1:
                for client in clients:
                    client.stop()
            server.start()
        _check(server, report, expected)
        if server.stop() != 0:
            report.findings.append("the service did not end well when it was asked to")
    finally:
        for client in clients:
            client.stop()
        server.kill()
    return report


def undisturbed(folder: Path) -> dict[Kind, np.ndarray]:
    """The frames of every kind, from a service that nobody kills."""
    with Server(folder, SETTINGS, num_threads=1) as server, httpx.Client(base_url=server.address) as client:
        ids = {kind: _ask(client, kind).json()["id"] for kind in kinds()}
        _wait_until_all_ended(client)
        return {kind: _frames(client, id) for kind, id in ids.items()}


class Client(threading.Thread):
    """Asks for one video after another."""

    def __init__(self, server: Server, report: Report, randomness: random.Random) -> None:
        super().__init__(daemon=True)
        self._server, self._report, self._random = server, report, randomness
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(self._random.uniform(0.0, 0.5)):
            kind = self._random.choice(kinds())
            try:
                with httpx.Client(base_url=self._server.address, timeout=10) as client:
                    response = _ask(client, kind)
            except httpx.HTTPError:
                continue  # it is dead, or died before it answered
            if response.status_code == httpx.codes.OK:
                self._report.accepted[response.json()["id"]] = kind
            elif response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                self._report.findings.append(f"a client got {response.status_code}: {response.text}")

    def stop(self) -> None:
        """Returns when no more is asked for."""
        self._is_over.set()
        if self.is_alive():
            self.join()


def _ask(client: httpx.Client, kind: Kind) -> httpx.Response:
    prompt, seed, frames = kind
    body = {"prompt": prompt, "seed": seed, "seconds": str(frames / FRAMES_PER_SECOND)}
    return client.post("/v1/videos", json=body)


def _note(server: Server, report: Report) -> None:
    """What the killed process left in its folder."""
    with closing(sqlite3.connect(server.data / "pagedvid.sqlite")) as database:
        unfinished = "SELECT id FROM sessions WHERE is_accepted AND state IN ('queued', 'in_progress')"
        ids = {id for (id,) in database.execute(unfinished)}
        with_checkpoint = {id for (id,) in database.execute("SELECT session_id FROM checkpoints")}
    report.num_unfinished_at_kills.append(len(ids))
    report.num_checkpoints_at_kills.append(len(ids & with_checkpoint))


def _check(server: Server, report: Report, expected: Mapping[Kind, np.ndarray]) -> None:
    with httpx.Client(base_url=server.address, timeout=60) as client:
        ended = _wait_until_all_ended(client)
        times = Counter(video["id"] for video in ended)
        for id in report.accepted:
            if times[id] != 1:
                report.findings.append(f"{id} was accepted and is listed {times[id]} times")
        for video in ended:  # also those whose client got no answer
            num_frames = round(float(video["seconds"]) * FRAMES_PER_SECOND)
            _compare(client, video, expected[video["prompt"], PROMPTS.index(video["prompt"]), num_frames], report)


def _compare(client: httpx.Client, video: Mapping[str, Any], expected: np.ndarray, report: Report) -> None:
    id = video["id"]
    if video["status"] != "completed":
        report.findings.append(f"{id} is {video['status']}: {video['error']}")
        return
    frames = _frames(client, id)
    if frames.shape != expected.shape:
        report.findings.append(f"{id} has {len(frames)} frames instead of {len(expected)}")
    elif not np.array_equal(frames, expected):
        first = int(np.flatnonzero((frames != expected).any(axis=(1, 2, 3)))[0])
        report.findings.append(f"{id} differs from the undisturbed run from frame {first} on")


def _wait_until_all_ended(client: httpx.Client) -> list[dict[str, Any]]:
    """Every video, when none is queued or in progress. Raises TimeoutError."""
    deadline = time.monotonic() + FINISH_SECONDS
    while time.monotonic() < deadline:
        videos = _all_videos(client)
        if all(video["status"] in ("completed", "failed") for video in videos):
            return videos
        time.sleep(0.2)
    raise TimeoutError(f"videos are not finished after {FINISH_SECONDS:g} s: {videos}")


def _all_videos(client: httpx.Client) -> list[dict[str, Any]]:
    page = client.get("/v1/videos", params={"limit": 100}).raise_for_status().json()
    videos: list[dict[str, Any]] = page["data"]
    while page["has_more"]:
        parameters = {"limit": 100, "after": page["last_id"]}
        page = client.get("/v1/videos", params=parameters).raise_for_status().json()
        videos += page["data"]
    return videos


def _frames(client: httpx.Client, id: str) -> np.ndarray:
    """Decoded from the fragments, uint8 [frames, height, width, 3]."""
    content = client.get(f"/v1/sessions/{id}/stream.mp4").raise_for_status().content
    with av.open(io.BytesIO(content)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
