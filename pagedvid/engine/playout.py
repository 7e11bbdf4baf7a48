"""What a viewer has seen of a video that is played while it is made: its credit, and how much of the time it stood
still. Pure: the time is an argument, in seconds of any clock that never goes back.

The viewer plays at a fixed speed from the first chunk on, and can only play frames that were delivered. When they run
out it stalls, and what it plays later is later by as long:

    second     0      1      2      3      4      5      6      7
    delivered                2 s                                2 s
    viewer     waits         plays         stalls               plays
    credit     0     -1      2      1      0     -1     -2      2

Nothing is owed to a viewer while the video is paused or after its last frame: then running out of frames is no stall.
"""

from __future__ import annotations

from pagedvid.arguments import whole_number
from pagedvid.errors import ConfigError


class Playout:
    """The clock of one viewer. Frames are output frames."""

    def __init__(self, frames_per_second: float, now: float, num_frames: int = 0) -> None:
        """The viewer waits from `now` on. `num_frames`: delivered and played before, as in a fork or after a restart.

        Raises ConfigError for a speed that is not above 0.
        """
        if not frames_per_second > 0:
            raise ConfigError(f"frames_per_second is {frames_per_second}; a viewer plays at a speed above 0")
        self.frames_per_second = frames_per_second
        self._first_frame = self._num_delivered = whole_number("num_frames", num_frames, 0, error=ConfigError)
        self._num_played: float = num_frames
        """Frames that were played at `_since`; the viewer has gone on from there."""
        self._since = now
        self._waited_seconds = self._stalled_seconds = 0.0
        """Until the first chunk, and after it; without a wait or stall that is still going on."""
        self._is_owed = True

    # ------------------------------------------------------------------ what happens

    def deliver(self, num_frames: int, now: float) -> None:
        """So many more frames can be played. Raises ConfigError for a negative number."""
        if whole_number("num_frames", num_frames, 0, error=ConfigError):
            self._end_stall(now)
            self._num_delivered += num_frames

    def report(self, num_frames: int, now: float) -> None:
        """The client has played that many frames of the video, the first ones of a fork included; its clock goes on
        from there. Raises ConfigError for more frames than were delivered."""
        whole_number("frames that were played", num_frames, 0, error=ConfigError)
        if num_frames > self._num_delivered:
            raise ConfigError(
                f"the client reports {num_frames} frames as played, but {self._num_delivered} were delivered; report "
                "how many frames it has shown, counted from the first one of the video"
            )
        if num_frames == self._num_delivered and self.credit_seconds(now) < 0:
            return  # it waits for frames, as the clock says
        self._num_played, self._since = num_frames, now

    def excuse(self, now: float) -> None:
        """No frame is owed from now on: the video is paused or has ended."""
        self._end_stall(now)
        self._is_owed = False

    def owe(self, now: float) -> None:
        """Frames are owed again: the video was resumed or extended."""
        if not self._is_owed:
            self._end_stall(now)
            self._is_owed = True

    # ------------------------------------------------------------------ what follows from it

    def credit_seconds(self, now: float) -> float:
        """How long the viewer can play on with what was delivered. Negative: it has waited or stalled for so long.

        Never negative while nothing is owed.
        """
        seconds = self._delivered_seconds - (now - self._since)
        return seconds if self._is_owed else max(0.0, seconds)

    def stalled_seconds(self, now: float) -> float:
        """How long the viewer stood still because frames were late, after its first chunk."""
        return self._stalled_seconds + (self._missed_seconds(now) if self._has_begun else 0.0)

    def waited_seconds(self, now: float) -> float:
        """How long the viewer has waited for its first chunk."""
        return self._waited_seconds + (0.0 if self._has_begun else self._missed_seconds(now))

    def play_ratio(self, now: float) -> float:
        """Share of the time in which frames were owed to the viewer or played by it that it played, from 0 to 1.

        This is what SlackServe (arXiv 2606.15319) calls Continuous Play Ratio in words; its formula was not at hand.
        The wait for the first chunk counts like a stall here, so that a viewer who never sees a frame has ratio 0.
        Without it: played / (played + `stalled_seconds`).
        """
        played = self.played_seconds(now)
        whole = played + self.waited_seconds(now) + self.stalled_seconds(now)
        return played / whole if whole > 0 else 1.0

    def played_seconds(self, now: float) -> float:
        """How much of the video the viewer has seen, without what was played before this clock began."""
        played = min(self._num_delivered, self._num_played + (now - self._since) * self.frames_per_second)
        return max(0.0, played - self._first_frame) / self.frames_per_second

    # ------------------------------------------------------------------ parts

    @property
    def _has_begun(self) -> bool:
        return self._num_delivered > self._first_frame

    @property
    def _delivered_seconds(self) -> float:
        """What was delivered and not played at `_since`."""
        return (self._num_delivered - self._num_played) / self.frames_per_second

    def _missed_seconds(self, now: float) -> float:
        """The stall or wait that goes on at `now`; 0 for none."""
        return max(0.0, -self.credit_seconds(now))

    def _end_stall(self, now: float) -> None:
        """Counts a stall or wait that goes on; the viewer goes on from `now` when it has played everything."""
        if now - self._since < self._delivered_seconds:
            return
        missed = self._missed_seconds(now)
        if self._has_begun:
            self._stalled_seconds += missed
        else:
            self._waited_seconds += missed
        self._num_played, self._since = self._num_delivered, now
