"""The viewers of a live session: who is there, how far they are, and whether the session should wait for them. Pure:
the time is an argument, in seconds of a clock that never goes back."""

from __future__ import annotations

from pagedvid.engine.playout import Playout


class Audience:
    """The viewers of one live session."""

    def __init__(
        self, frames_per_second: float, num_frames: int, now: float, max_ahead_seconds: float, grace_seconds: float
    ) -> None:
        """`num_frames`: that were recorded and played before, as in a fork or after a restart."""
        self._playout = Playout(frames_per_second, now, num_frames)
        self._max_ahead_seconds, self._grace_seconds = max_ahead_seconds, grace_seconds
        self._num_viewers = 0
        self._left_at: float | None = None
        """When the last one went away; None: somebody is there, or nobody ever was."""
        self._is_ahead = False

    def come(self) -> None:
        """One more viewer."""
        self._num_viewers += 1
        self._left_at = None

    def leave(self, now: float) -> None:
        """One viewer less."""
        if self._num_viewers > 0:
            self._num_viewers -= 1
            if self._num_viewers == 0:
                self._left_at = now

    def forget_departure(self) -> None:
        """The session goes on without viewers because its user wants it to."""
        self._left_at = None

    def receive(self, num_frames: int, now: float) -> None:
        """So many more output frames are recorded."""
        self._playout.deliver(num_frames, now)

    def report(self, num_frames: int, now: float) -> None:
        """So many frames of the video were played. Raises ConfigError for more than are recorded."""
        self._playout.report(num_frames, now)

    def credit_seconds(self, now: float) -> float:
        """How long the viewers can play on; negative: they wait."""
        return self._playout.credit_seconds(now)

    def is_gone(self, now: float) -> bool:
        """Whether nobody has watched for the grace time."""
        return self._left_at is not None and now - self._left_at >= self._grace_seconds

    def should_wait(self, now: float) -> bool:
        """Whether the session should wait: from `max_ahead_seconds` ahead until it is only half of that ahead."""
        credit = self.credit_seconds(now)
        self._is_ahead = credit > self._max_ahead_seconds / (2 if self._is_ahead else 1)
        return self._is_ahead
