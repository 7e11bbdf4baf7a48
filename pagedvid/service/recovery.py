"""What a worker keeps of each video, so that another engine can go on with it after one that broke."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import Continuation, VideoRequest
from pagedvid.engine.snapshot import JobSnapshot
from pagedvid.errors import ConfigError
from pagedvid.output.given_frames import with_given_frames


class CheckpointFiles(Protocol):
    """Snapshots as files. Both methods raise PagedvidError or OSError."""

    def write(self, snapshot: JobSnapshot, path: Path) -> None:
        """Writes all or nothing; a file that was there is replaced."""
        ...

    def read(self, path: Path) -> JobSnapshot:
        """Refuses files of another model, codec or version."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """What is in a checkpoint file: a video as it stood when it was written."""

    id: str
    prompt: str
    """Of the chunk that was being made; a later one that waits for its chunk is not in the file."""
    num_frames: int
    """Latent frames of the whole video."""
    num_output_frames: int
    """Frames that were given out."""

    @staticmethod
    def of(snapshot: JobSnapshot) -> Checkpoint:
        """What is in the file that holds this snapshot."""
        request = snapshot.request
        return Checkpoint(request.id, request.prompt, request.num_frames, snapshot.num_output_frames)


@dataclass(frozen=True)
class NewPrompt:
    """Another prompt from the video's next chunk on."""

    prompt: str
    recache: bool


@dataclass(frozen=True)
class Extension:
    """Another number of frames."""

    num_frames: int


Change = NewPrompt | Extension | Continuation
"""What was asked of a running video; it may take effect as late as at its next chunk boundary."""
Base = VideoRequest | JobSnapshot | Path
"""From where a video can be made again: from nothing, from memory, or from a checkpoint file."""


@dataclass
class VideoRecord:
    """One video of a worker. All numbers of frames are of output frames."""

    base: Base | None
    """None: a fork that its source has not made yet; it is one of the source's changes."""
    changes: list[Change] = field(default_factory=list)
    """Asked for since `base`, or before and not in effect there."""
    frames_made: int = 0
    """By the present engine, with those that the base had."""
    frames_given: int = 0
    """What the caller has been told of; frames that are made again are not told again."""
    chunks_since_base: int = 0
    is_paused: bool = False
    frames_played: int | None = None
    """As reported last."""
    unasked: list[Change] = field(default_factory=list)
    """Those of `changes` that the present engine has not been given. They wait until it has begun the video: before, it
    would make them at once, in the middle of a chunk."""
    is_given_again: bool = False
    """Whether the present engine was given the video by `restore`, and is not yet where the one before it was."""
    num_breaks: int = 0
    """How often an engine broke while it worked on this video, since the video last gave frames."""

    @property
    def is_behind(self) -> bool:
        """Whether frames that were given out, or changes, are still being made again."""
        return bool(self.unasked) or self.frames_made < self.frames_given

    def begin(self, num_frames: int) -> None:
        """Its first frames are its source's, or were given out by another worker."""
        self.frames_made = num_frames
        self.frames_given = max(self.frames_given, num_frames)

    def take(self, num_frames: int) -> int:
        """Counts a chunk of frames that was made; returns how many of them were given before."""
        num_old = min(num_frames, max(0, self.frames_given - self.frames_made))
        self.frames_made += num_frames
        self.chunks_since_base += 1
        if num_old < num_frames:
            self.frames_given = self.frames_made
            self.num_breaks = 0
        return num_old

    def rebase(self, snapshot: JobSnapshot, path: Path | None = None) -> None:
        """Takes a snapshot, or the file that holds it, as the new base; changes that are in effect there are done."""
        self.base = path or snapshot
        self.chunks_since_base = 0
        self.changes = _outstanding(self.changes, snapshot.request)

    def forget_prompt(self, prompt: NewPrompt) -> None:
        """Removes a prompt that was refused. Of several equal ones it was one that still waited, so the latest goes."""
        for place in reversed(range(len(self.changes))):
            if self.changes[place] == prompt:
                del self.changes[place]
                return

    def restore(self, engine: Engine, id: str, checkpoints: CheckpointFiles | None) -> None:
        """Gives the video to a new engine. Raises what the engine and the reader of checkpoints raise."""
        self.is_given_again, self.unasked, num_rounds = True, list(self.changes), 0
        if self.base is None:
            return
        if isinstance(self.base, VideoRequest):
            engine.submit(with_given_frames(self.base, engine))
            self.frames_made = 0
        else:
            snapshot = required(checkpoints).read(self.base) if isinstance(self.base, Path) else self.base
            engine.restore(snapshot)
            self.frames_made, num_rounds = snapshot.num_output_frames, snapshot.num_rounds_done
        if num_rounds == 0:
            self.ask(engine, id)

    def ask(self, engine: Engine, id: str) -> None:
        """Asks the engine for the changes that it does not know. Raises what the engine raises."""
        changes, self.unasked = self.unasked, []
        for change in changes:
            make(change, engine, id)


def make(change: Change, engine: Engine, id: str) -> None:
    """Asks an engine for a change of the video. Raises what the engine raises."""
    if isinstance(change, NewPrompt):
        engine.prompt(id, change.prompt, recache=change.recache)
    elif isinstance(change, Extension):
        engine.extend(id, change.num_frames)
    else:
        engine.fork(id, [change])


def makes_fork(change: Change, id: str) -> bool:
    """Whether a change makes the video with this id."""
    return isinstance(change, Continuation) and change.id == id


def required(checkpoints: CheckpointFiles | None) -> CheckpointFiles:
    """The files that were given. Raises ConfigError for a worker without."""
    if checkpoints is None:
        raise ConfigError("this worker was made without checkpoint files; give it `checkpoints`")
    return checkpoints


def _outstanding(changes: Sequence[Change], request: VideoRequest) -> list[Change]:
    """The changes that a request does not show. Forks stay until they begin: no request of their source shows them."""
    prompts = [change.prompt for change in changes if isinstance(change, NewPrompt)]
    has_prompt = not prompts or prompts[-1] == request.prompt
    return [
        change
        for change in changes
        if isinstance(change, Continuation)
        or (isinstance(change, NewPrompt) and not has_prompt)
        or (isinstance(change, Extension) and change.num_frames > request.num_frames)
    ]
