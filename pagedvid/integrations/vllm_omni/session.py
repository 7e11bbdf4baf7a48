"""One session of vLLM-Omni with its history in pages: what a pipeline is given in place of an `ARDiffusionKVState`.

The contract of a forward, of vLLM-Omni 0.30:

    caches = state.get_kv_caches(branch, seq_len, commit_current)   # one object a layer, for the transformer's kv_cache
    ...                                                             # the forward
    state.commit_paged_context(branch)                              # after a committing forward: its block is history
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream import Stream
from pagedvid.errors import ShapeError, StateError
from pagedvid.integrations.vllm_omni.cross_attention import CrossAttention
from pagedvid.integrations.vllm_omni.forward import PagedForward
from pagedvid.integrations.vllm_omni.geometry import SessionGeometry
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.tables import RopeTables


class PagedSession:
    """The streams and texts of one session."""

    def __init__(
        self,
        session_id: str,
        cache: PagedKVCache,
        geometry: SessionGeometry,
        rope: RopeTables | None,
        texts: CrossAttention,
        streams: Sequence[Stream],
    ) -> None:
        """`streams`: opened for it, by the numbers of `geometry.streams`."""
        self.session_id = session_id
        self.cache, self.geometry = cache, geometry
        self.streams = list(streams)
        self.rope, self._texts = rope, texts
        self._forwards: dict[str, PagedForward] = {}

    @property
    def kv_branch_names(self) -> tuple[str, ...]:
        """The guidance branches."""
        return tuple(self.geometry.streams)

    # ------------------------------------------------------------------ forwards

    def get_kv_caches(self, kv_branch: str, seq_len: int | None = None, commit_current: bool = False) -> list[Any]:
        """One object a layer, through which the next forward of a branch attends over pages.

        Raises StateError while a block waits for `commit_paged_context`, ShapeError for another number of tokens than
        a block's.
        """
        from vllm_omni.experimental.ar_diffusion.kv_cache.paged_attention import ARDiffusionPagedLayerContext

        if seq_len != self.geometry.block_tokens:
            raise ShapeError(
                f"a forward of {seq_len} tokens was begun; blocks of this pipeline have {self.geometry.block_tokens} "
                f"({self.geometry.frames_per_block} frames of {self.geometry.tokens_per_frame})"
            )
        forward = PagedForward(self.cache, [self.next_block(kv_branch, commit=commit_current)], self.rope)
        self.begin(kv_branch, forward)
        return [ARDiffusionPagedLayerContext(layer, forward) for layer in range(self.geometry.num_layers)]

    prepare_paged_context = get_kv_caches

    def next_block(self, kv_branch: str, *, commit: bool) -> QueryRange:
        """The next block of a branch in a forward. Raises StateError as `get_kv_caches`."""
        stream = self._stream(kv_branch)
        former = self._forwards.get(kv_branch)
        if former is not None and former.is_commit and former.has_begun:
            raise StateError(
                f"a block of branch {kv_branch!r} of session {self.session_id!r} has had its last forward: call "
                "commit_paged_context before the next one begins"
            )
        return QueryRange(stream, commit=commit, visible=self.geometry.visible(stream.num_committed))

    def begin(self, kv_branch: str, forward: PagedForward) -> None:
        """Makes it the branch's forward; one that did not come to its end is given up."""
        self._give_up(kv_branch)
        self._forwards[kv_branch] = forward

    def commit_paged_context(self, kv_branch: str) -> None:
        """Publishes the block of the last forward of a branch, if that was a committing one."""
        self._stream(kv_branch)
        forward = self._forwards.get(kv_branch)
        if forward is not None and forward.is_commit and forward.has_begun:
            forward.end()
            del self._forwards[kv_branch]

    def _stream(self, kv_branch: str) -> Stream:
        if not self.streams:
            raise StateError(f"session {self.session_id!r} is closed")
        if kv_branch not in self.geometry.streams:
            raise StateError(f"there is no guidance branch {kv_branch!r}; there are {', '.join(self.kv_branch_names)}")
        return self.streams[self.geometry.streams[kv_branch]]

    def _give_up(self, kv_branch: str) -> None:
        forward = self._forwards.pop(kv_branch, None)
        if forward is not None:
            forward.abandon()

    # ------------------------------------------------------------------ texts

    def is_cross_attention_populated(self, kv_branch: str, cache_name: str) -> bool:
        """Whether the keys and values of a text are there."""
        return self._texts.has(kv_branch, cache_name)

    def populate_cross_attention(
        self, kv_branch: str, cache_name: str, layer_kv: Iterable[tuple[Tensor, Tensor]]
    ) -> None:
        """Keeps the keys and values of a text, k and v [1, tokens, heads, head_dim] of every layer."""
        self._texts.put(kv_branch, cache_name, layer_kv)

    def get_cross_attention_kv(self, kv_branch: str, cache_name: str) -> list[dict[str, Tensor | bool]]:
        """For every layer "k" and "v" [1, tokens, heads, head_dim], and "is_init" True."""
        layers = self._texts.get(kv_branch, cache_name)
        return [{"is_init": True, "k": k_LHD.unsqueeze(0), "v": v_LHD.unsqueeze(0)} for k_LHD, v_LHD in layers]

    def clear_cross_attention(self) -> None:
        """Forgets the texts (prompt change); the history stays."""
        self._texts.keep(())

    # ------------------------------------------------------------------ the end

    def fork(self, session_id: str) -> PagedSession:
        """A session that continues from the same blocks and texts; no byte is copied. Raises CapacityError."""
        twin = PagedSession(session_id, self.cache, self.geometry, self.rope, self._texts.copy(), ())
        try:
            for stream in self.streams:
                twin.streams.append(self.cache.fork(stream))
        except BaseException:
            twin.close()
            raise
        return twin

    def close(self) -> None:
        """Frees all pages and texts. A second call does nothing."""
        for branch in list(self._forwards):
            self._give_up(branch)
        while self.streams:
            self.cache.release(self.streams.pop())
        self.clear_cross_attention()

    def reset(self, *, keep_cross_attention: Collection[str] = ()) -> None:
        """Begins the video anew, with the texts of these names."""
        for branch in list(self._forwards):
            self._give_up(branch)
        for number, stream in enumerate(self.streams):
            self.cache.release(stream)
            self.streams[number] = self.cache.open(stream.window, stream.chunk_tokens)
        self._texts.keep(keep_cross_attention)


def begin_joint_forward(sessions: Sequence[PagedSession], kv_branch: str) -> PagedForward:
    """One denoise step of the next block of several sessions of a worker, packed in this order. Raises StateError."""
    ranges = [session.next_block(kv_branch, commit=False) for session in sessions]
    forward = PagedForward(sessions[0].cache, ranges, sessions[0].rope)
    for session in sessions:
        session.begin(kv_branch, forward)
    return forward
