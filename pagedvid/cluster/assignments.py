"""Which worker makes which video. Plain bookkeeping; it knows neither Ray nor engines.

Workers take videos one by one, as long as their pools admit those that they have. Near the end of a job they take no
more than a share of what is left, so that none of them is busy with many while others have nothing to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from pagedvid.engine.requests import VideoRequest

MAX_UNADMITTED = 4
"""Videos that wait for pages of one worker."""
MAX_TRIES = 3
"""Workers that may end while they make a video."""


@dataclass
class _Video:
    request: VideoRequest
    frames_left: int
    worker: int | None = None
    """None: it waits."""
    is_admitted: bool = False
    num_deaths: int = 0
    """Workers that ended while they made it."""

    @property
    def is_suspect(self) -> bool:
        """Whether its last try is ahead. It is then alone with a worker, so that no other video is blamed for it."""
        return self.num_deaths == MAX_TRIES - 1


@dataclass
class _Held:
    """What one worker makes."""

    videos: dict[str, _Video] = field(default_factory=dict)
    frames_left: int = 0


class Assignments:
    """The videos of a job that have not ended, and who makes them. Workers are numbers."""

    def __init__(self, requests: Iterable[VideoRequest], num_workers: int) -> None:
        self._videos = {request.id: _Video(request, request.num_frames) for request in requests}
        self._waiting = deque(self._videos)
        self._suspects: deque[str] = deque()
        """They wait, too, until a worker has nothing else to do."""
        self._held: dict[int, _Held] = {}
        self._frames_left = sum(video.frames_left for video in self._videos.values())
        self._num_workers = num_workers

    def take(self, worker: int) -> VideoRequest | None:
        """The next video for a worker, which makes it from now on; None: it has enough for the moment."""
        held = self._held.setdefault(worker, _Held())
        if self._waiting and self._has_room(held):
            return self._give(self._waiting.popleft(), worker)
        if self._suspects and not held.videos:
            return self._give(self._suspects.popleft(), worker)
        return None

    def is_held(self, id: str, worker: int) -> bool:
        """Whether this worker makes the video."""
        return id in self._videos and self._videos[id].worker == worker

    def admit(self, id: str) -> None:
        """The video has pages, and is being made."""
        self._videos[id].is_admitted = True

    def progress(self, id: str, num_frames: int) -> None:
        """So many more of its frames, as the request counts them, are made."""
        video = self._videos[id]
        self._count(video, -min(num_frames, video.frames_left))

    def end(self, id: str) -> None:
        """The video is finished or has failed."""
        video = self._videos.pop(id)
        self._count(video, -video.frames_left)
        if video.worker is None:
            (self._suspects if video.is_suspect else self._waiting).remove(id)
        else:
            del self._held[video.worker].videos[id]

    def lose(self, worker: int) -> tuple[list[str], list[str]]:
        """A worker has ended, and its videos are made again from their first frame. Returns their ids, and those of
        videos that are given up instead, because `MAX_TRIES` workers ended while they made them.

        Videos that had pages are blamed, or all where none had."""
        held = list(self._held.pop(worker, _Held()).videos.values())
        blamed = [video for video in held if video.is_admitted] or held
        for video in blamed:
            video.num_deaths += 1
        again: list[str] = []
        given_up: list[str] = []
        for video in reversed(held):
            self._frames_left += video.request.num_frames - video.frames_left
            video.worker, video.is_admitted, video.frames_left = None, False, video.request.num_frames
            id = video.request.id
            (self._suspects if video.is_suspect else self._waiting).appendleft(id)
            (given_up if video.num_deaths >= MAX_TRIES else again).append(id)
        for id in given_up:
            self.end(id)
        return again, given_up

    def _give(self, id: str, worker: int) -> VideoRequest:
        video, held = self._videos[id], self._held[worker]
        video.worker, held.videos[id] = worker, video
        held.frames_left += video.frames_left
        return video.request

    def _count(self, video: _Video, frames: int) -> None:
        video.frames_left += frames
        self._frames_left += frames
        if video.worker is not None:
            self._held[video.worker].frames_left += frames

    def _has_room(self, held: _Held) -> bool:
        if not held.videos:
            return True
        if any(video.is_suspect for video in held.videos.values()):
            return False
        if sum(not video.is_admitted for video in held.videos.values()) >= MAX_UNADMITTED:
            return False
        return held.frames_left + self._videos[self._waiting[0]].frames_left <= self._share_frames()

    def _share_frames(self) -> float:
        """What one worker may hold: all of it if it is the only one, or else half of what would be its part if all
        workers were equally fast."""
        return self._frames_left if self._num_workers == 1 else self._frames_left / (2 * self._num_workers)
