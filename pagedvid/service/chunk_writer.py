"""A chunk of a worker -> a fragment in its session's file, and then its row."""

from __future__ import annotations

import numpy as np

from pagedvid.errors import ConfigError, IntegrityError
from pagedvid.output.fragments import fragment, init_segment
from pagedvid.output.mp4 import enlarge, frame_rate
from pagedvid.service.errors import storage_errors
from pagedvid.service.events import ChunkEvent
from pagedvid.service.records import RecordedChunk, SessionRecord, VideoFormat
from pagedvid.service.session_files import SessionFiles
from pagedvid.service.store import Store
from pagedvid.service.stored_chunks import NewChunk


class ChunkWriter:
    """Appends chunks to the files of sessions."""

    def __init__(self, store: Store, files: SessionFiles, video: VideoFormat) -> None:
        """Raises ConfigError for a speed that no mp4 file can have."""
        self._store, self._files = store, files
        self._rate, self._scale = frame_rate(video.frames_per_second), video.scale

    def write(self, session: SessionRecord, event: ChunkEvent) -> RecordedChunk | None:
        """Records the frames that are new; None: there are none, because they were made again after a restart.

        Raises IntegrityError for frames that are missing, ConfigError for frames of another size or kind, StorageError,
        and one of `mp4.write_errors()`.
        """
        frames = self._new_frames(session, event)
        if len(frames) == 0:
            return None
        height, width = enlarge(frames[:1], self._scale).shape[1:3]
        if session.width is not None and (session.width, session.height) != (width, height):
            raise ConfigError(
                f"the video has {session.width} x {session.height} pixels and its next chunk {width} x {height}: "
                "it was begun with another model or other settings; start the service with those, or delete the video"
            )
        init = init_segment(*frames.shape[1:3], self._rate, self._scale)
        content = fragment(frames, session.frames_done, self._rate, session.chunks_done + 1, self._scale)
        start = self._store.chunks.end(session.id) or len(init)
        with storage_errors():
            if session.chunks_done == 0:
                self._files.append(session.id, 0, init + content)
            else:
                self._files.append(session.id, start, content)
        place = RecordedChunk(session.chunks_done, session.frames_done, len(frames), start, start + len(content))
        new = NewChunk(place, len(init), width, height, event.stored_bytes, event.bf16_bytes)
        self._store.chunks.add(session.id, new)
        return place

    def _new_frames(self, session: SessionRecord, event: ChunkEvent) -> np.ndarray:
        if event.frames.dtype != np.uint8:
            raise ConfigError("the model gives out latents, of which no video can be made; give it a decoder")
        num_known = session.frames_done - event.first_frame
        if num_known < 0:
            raise IntegrityError(
                f"the frames {session.frames_done} to {event.first_frame - 1} of the video were never told; delete it "
                "and make it again"
            )
        return event.frames[num_known:]
