"""An open loop: viewers come when they come, however busy the service is. So do videos that nobody watches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import numpy as np

from lib.quality import draw_tasks
from serving.server import Server
from serving.viewer import Viewer, Visit, Wish, answer_of

REQUEST_SECONDS = 120.0
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """A video that nobody watches while it is made."""

    at_seconds: float
    prompt: str
    seed: int
    num_frames: int


@dataclass(frozen=True)
class Load:
    """What comes to a service, and when it is over."""

    seconds: float
    """After which everybody has left."""
    wishes: Sequence[Wish]
    jobs: Sequence[Job] = ()


@dataclass
class Outcome:
    """What came of a load."""

    visits: list[Visit] = field(default_factory=list)
    """In the order of the wishes."""
    num_resident: list[int] = field(default_factory=list)
    """Sessions that held pages of the pool, as seen every half second."""
    frames_of_jobs: int = 0
    """Of videos that nobody watched, made by the end."""


def poisson_times(per_second: float, seconds: float, seed: int) -> list[float]:
    """Times of arrival in [0, seconds): the gaps between them are exponential."""
    generator = np.random.default_rng(seed)
    times: list[float] = []
    now = generator.exponential(1 / per_second)
    while now < seconds:
        times.append(float(now))
        now += generator.exponential(1 / per_second)
    return times


def viewers_at(
    times: Sequence[float],
    num_frames: int,
    frames_per_second: float,
    stay_seconds: float,
    end_seconds: float,
    seed: int,
) -> list[Wish]:
    """A viewer for each time, who asks for a scene of the demo model's world. All have left at `end_seconds`."""
    wishes = []
    for at, task in zip(times, draw_tasks(len(times), seed), strict=True):
        stay = min(stay_seconds, end_seconds - at)
        wishes.append(Wish(at, task.request.prompt, task.request.seed, num_frames, frames_per_second, stay))
    return wishes


def jobs_at(times: Sequence[float], num_frames: int, seed: int) -> list[Job]:
    """A video for each time."""
    tasks = draw_tasks(len(times), seed)
    return [Job(at, task.request.prompt, task.request.seed, num_frames) for at, task in zip(times, tasks, strict=True)]


def bring(server: Server, load: Load) -> Outcome:
    """Brings a load to a server and waits until it is over."""
    return asyncio.run(_bring(server.address, load))


async def _bring(address: str, load: Load) -> Outcome:
    outcome, started = Outcome(), time.monotonic()
    async with client_of(address) as client:
        watching = asyncio.create_task(_watch_pool(client, outcome.num_resident))
        jobs = asyncio.gather(*(_submit(client, job, started) for job in load.jobs))
        outcome.visits += await asyncio.gather(*(_visit(client, wish, started) for wish in load.wishes))
        await asyncio.sleep(started + load.seconds - time.monotonic())
        watching.cancel()
        for id in await jobs:
            outcome.frames_of_jobs += answer_of(await client.get(f"/v1/sessions/{id}"))["frames_done"]
    return outcome


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a bound on its connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=REQUEST_SECONDS, limits=limits) as client:
        yield client


async def _visit(client: httpx.AsyncClient, wish: Wish, started: float) -> Visit:
    await asyncio.sleep(started + wish.at_seconds - time.monotonic())
    return await Viewer(client, wish).stay()


async def _submit(client: httpx.AsyncClient, job: Job, started: float) -> str:
    """The id of its session."""
    await asyncio.sleep(started + job.at_seconds - time.monotonic())
    body = {"prompt": job.prompt, "seed": job.seed, "num_frames": job.num_frames}
    id: str = answer_of(await client.post("/v1/sessions", json=body))["id"]
    return id


async def _watch_pool(client: httpx.AsyncClient, num_resident: list[int]) -> None:
    """Notes how many sessions have pages in the pool, until it is cancelled."""
    while True:
        sessions = answer_of(await client.get("/v1/pool"))["sessions"]
        num_resident.append(sum(session["own_pages"] + session["shared_pages"] > 0 for session in sessions))
        await asyncio.sleep(POLL_SECONDS)
