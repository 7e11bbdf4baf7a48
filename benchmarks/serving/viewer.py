"""One viewer of the service: asks for a live session, watches it over its WebSocket, and leaves.

Everything is measured here, at the client: a chunk arrives when the message that announces it does, whose bytes follow
at once. What the viewer has seen, and how long it stood still, is kept by `pagedvid.engine.playout.Playout` from these
times; the viewer reports it to the service with every chunk.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from pagedvid.engine.playout import Playout

REFUSED = 429
MESSAGE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Wish:
    """What a viewer comes for."""

    at_seconds: float
    """When, after the load has begun."""
    prompt: str
    seed: int
    num_frames: int
    frames_per_second: float
    stay_seconds: float
    """How long the viewer stays, whatever it sees."""

    def body(self) -> dict[str, Any]:
        """The request."""
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "num_frames": self.num_frames,
            "live_frames_per_second": self.frames_per_second,
        }


@dataclass
class Visit:
    """What a viewer got. Times are in seconds after the viewer came."""

    at_seconds: float
    refusal: str | None = None
    chunk_seconds: list[float] = field(default_factory=list)
    """When each chunk arrived."""
    num_frames: int = 0
    played_seconds: float = 0.0
    waited_seconds: float = 0.0
    """For the first chunk."""
    stalled_seconds: float = 0.0
    """After it."""

    @property
    def play_ratio(self) -> float:
        """Share of its time that the viewer saw the video going on; see `Playout.play_ratio`."""
        whole = self.played_seconds + self.waited_seconds + self.stalled_seconds
        return self.played_seconds / whole if whole else 0.0

    @property
    def gaps_seconds(self) -> list[float]:
        """Between one chunk and the next."""
        return [later - earlier for earlier, later in zip(self.chunk_seconds, self.chunk_seconds[1:], strict=False)]


class Viewer:
    """Watches one session."""

    def __init__(self, client: httpx.AsyncClient, wish: Wish) -> None:
        self._client, self._wish = client, wish
        self._came = time.monotonic()
        self._playout = Playout(wish.frames_per_second, self._came)
        self.visit = Visit(wish.at_seconds)

    async def stay(self) -> Visit:
        """Comes, watches and leaves. Raises RuntimeError for an answer that is neither a session nor a refusal."""
        response = await self._client.post("/v1/sessions", json=self._wish.body())
        if response.status_code == REFUSED:
            self.visit.refusal = response.json()["error"]["message"]
            return self.visit
        id = answer_of(response)["id"]
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._watch(id), self._left_seconds())
        await asyncio.sleep(self._left_seconds())
        self._note_played()
        answer_of(await self._client.delete(f"/v1/sessions/{id}"))
        return self.visit

    async def _watch(self, id: str) -> None:
        """Takes chunks until the last one has arrived."""
        address = str(self._client.base_url).replace("http", "ws", 1).rstrip("/")
        async with connect(f"{address}/v1/sessions/{id}/live?format=mp4", max_size=MESSAGE_BYTES) as websocket:
            with suppress(ConnectionClosed):
                async for message in websocket:
                    if isinstance(message, bytes):
                        continue
                    said = json.loads(message)
                    if said["type"] in ("failed", "error"):
                        raise RuntimeError(f"a session failed: {said}")
                    if said["type"] == "chunk" and self._take(said):
                        return
                    if said["type"] == "chunk":
                        await websocket.send(json.dumps({"type": "played", "num_frames": self._num_played()}))

    def _take(self, chunk: Mapping[str, Any]) -> bool:
        """Counts a chunk; whether it was the last."""
        now = time.monotonic()
        self._playout.deliver(chunk["num_frames"], now)
        self.visit.chunk_seconds.append(now - self._came)
        self.visit.num_frames = chunk["frames_done"]
        is_last = chunk["frames_done"] >= self._wish.num_frames
        if is_last:
            self._playout.excuse(now)
        return bool(is_last)

    def _num_played(self) -> int:
        return int(self._playout.played_seconds(time.monotonic()) * self._wish.frames_per_second)

    def _left_seconds(self) -> float:
        return max(0.0, self._came + self._wish.stay_seconds - time.monotonic())

    def _note_played(self) -> None:
        now = time.monotonic()
        self.visit.played_seconds = self._playout.played_seconds(now)
        self.visit.waited_seconds = self._playout.waited_seconds(now)
        self.visit.stalled_seconds = self._playout.stalled_seconds(now)


def answer_of(response: httpx.Response) -> Mapping[str, Any]:
    """The object in an answer. Raises RuntimeError for any other answer than 200."""
    if response.status_code != httpx.codes.OK:
        raise RuntimeError(f"the service answered {response.status_code}: {response.text}")
    answer: Mapping[str, Any] = response.json()
    return answer
