"""Any order of open, denoise, commit, failing commit, fork, pin, drop, replace, extend, copies to the host and back,
and release, against a dictionary model.

After every action: `check()` recomputes invariants I1 to I6 of cache/integrity.py; live chunks, the heads that hold
them, codecs, bytes, positions, pages in use and the budget equal the model's. Refusals for lack of capacity are
predicted exactly, and a commit of an admitted stream is never refused. Each run draws a cache: its page size, its
frames and its correction.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pagedvid.cache.chunk import Chunk
from pagedvid.cache.plan import QueryRange, RangePlan
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_image import StreamImage
from pagedvid.cache.window import Window
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.codecs.book import CodecBook
from pagedvid.errors import CapacityError, NonFiniteError, StateError
from pagedvid.paged_kv_cache import PagedKVCache
from tests.cache.patterns import PatternCodec, assert_holds, attend_all, attend_layer, pattern
from tests.cache.stream_simulation import (
    Form,
    Place,
    Tables,
    are_alike,
    first_form,
    form_of,
    head_codecs,
    is_kept,
    passed_heads,
    settled_form,
    simulated_peak,
    thin_form,
)

NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM = 2, 2, 16
NUM_PAGES = 400
MOST_STREAMS = 5
MOST_IMAGES = 3


@dataclass(frozen=True)
class Kind:
    """A kind of cache, and its page sizes by hand."""

    page_rows: int
    page_tokens: dict[str, int]
    correction: str = "measured"
    tokens_per_frame: int = 1
    frames_per_block: int = 1

    @property
    def spec(self) -> CacheSpec:
        return CacheSpec(
            NUM_LAYERS,
            NUM_KV_HEADS,
            HEAD_DIM,
            num_query_heads=4,
            page_rows=self.page_rows,
            tokens_per_frame=self.tokens_per_frame,
            frames_per_block=self.frames_per_block,
            correction=self.correction,
            debug_checks=True,
        )

    @property
    def tables(self) -> Tables:
        return Tables(NUM_LAYERS, NUM_KV_HEADS, self.page_tokens, self.tokens_per_frame, self.frames_per_block)

    def new_cache(self) -> PagedKVCache:
        spec = self.spec
        own = {name: PatternCodec(spec.shape.page, name) for name in ("klt2", "klt1.5")}
        book = CodecBook(spec.shape.page, NUM_KV_HEADS, own=own)
        return PagedKVCache(spec, NUM_PAGES * spec.shape.page_bytes, book=book)


KINDS_OF_CACHE = [
    Kind(36, {"bf16": 18, "int8": 32, "int4": 64, "int2": 128, "token2-g16": 72, "klt2": 144, "klt1.5": 192}),
    Kind(
        20,
        {"bf16": 10, "int8": 16, "int4": 32, "int2": 64, "token2-g16": 40, "klt2": 80, "klt1.5": 107},
        correction="variance",
    ),
    Kind(
        32,
        {"bf16": 16, "int8": 28, "int4": 56, "int2": 112, "token2-g16": 64, "klt2": 128, "klt1.5": 172},
        tokens_per_frame=10,
        frames_per_block=4,
    ),
]


def by_head(written: str, *heads: tuple[int, int, int, str | None]) -> ChunkCodecs:
    return ChunkCodecs.read(written, heads=heads)


WINDOWS = st.builds(Window, st.integers(0, 2), st.integers(1, 3), st.sampled_from(["absolute", "window"]))
CODECS = st.sampled_from(
    [
        StreamCodecs("int4"),
        StreamCodecs("int2", sink="int8"),
        StreamCodecs("int2", newest="bf16"),
        StreamCodecs("int2", sink="int8", newest="bf16"),
        StreamCodecs("int8", sink="bf16", newest="int2"),
        StreamCodecs("int4/int2", sink="int8/int4"),
        StreamCodecs("int2", newest="int4/int2", layers=((1, 1, "int8/int2"),)),
        StreamCodecs("int2", newest="int2", layers=((0, 1, "bf16"), (0, 0, "int2"))),
        StreamCodecs("token2-g16", sink="int4/token2-g16", newest="bf16"),
        StreamCodecs("klt2", sink="klt2/int4"),
        StreamCodecs("klt1.5/klt2", newest="int8", layers=((0, 0, "int4/klt2"),)),
        StreamCodecs(by_head("int4", (0, 1, 1, "int2"), (1, 0, 0, "bf16/int4"))),
        StreamCodecs(by_head("int2", (0, 0, 0, None)), sink="int4"),
        StreamCodecs(by_head("klt2", (0, 1, 1, None), (1, 0, 0, "int4/klt1.5")), newest="int8"),
        StreamCodecs(
            by_head("int2", (0, 0, 0, "bf16"), (1, 0, 1, None)),
            sink=by_head("int8", (1, 0, 0, None)),
            newest=by_head("bf16", (0, 0, 0, "int4"), (1, 0, 0, None)),
        ),
    ]
)
LOOK_BACKS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 1), st.just(1), st.integers(1, 4), st.booleans()), max_size=4
)
"""Layer, first head, last head, recent chunks, whether sinks are kept."""

MOSTLY = st.sampled_from([True, True, True, False])


@dataclass(eq=False)
class Entry:
    """What one stream keeps of a committed chunk. A chunk that is written again has another origin."""

    serial: int
    num_tokens: int
    first_token: int
    form: Form
    heads: dict[Place, int]
    """Pages of every head that keeps the chunk."""
    origin: object = field(default_factory=object)

    @property
    def pages(self) -> int:
        return sum(self.heads.values())


Parts = list[tuple[object, dict[Place, int]]]
"""Origins of chunks, and some of their heads with their pages."""


def distinct_pages(parts: Parts) -> int:
    """Pages of parts of chunks, each head of a chunk counted once."""
    return sum({(id(origin), place): pages for origin, heads in parts for place, pages in heads.items()}.values())


@dataclass
class BranchModel:
    entries: dict[int, Entry] = field(default_factory=dict)
    pins: set[int] = field(default_factory=set)
    num_committed: int = 0
    num_tokens: int = 0

    def copy(self) -> BranchModel:
        return BranchModel(dict(self.entries), set(self.pins), self.num_committed, self.num_tokens)


@dataclass(eq=False)
class StreamModel:
    stream: Stream
    tables: Tables
    window: Window
    codecs: StreamCodecs
    chunk_tokens: int
    max_chunks: int | None
    branches: dict[str, BranchModel]

    def __repr__(self) -> str:
        return f"stream {self.stream.id}"

    def copy(self, stream: Stream | None = None) -> StreamModel:
        """The same chunks on pages of their own, in `stream`."""
        branches = {name: branch.copy() for name, branch in self.branches.items()}
        for branch in branches.values():
            branch.entries = {index: replace(entry, origin=object()) for index, entry in branch.entries.items()}
        return replace(self, stream=stream, branches=branches)

    def settled(self, index: int) -> Form:
        return settled_form(self.codecs, self.window, index)

    def entry(self, serial: int, num_tokens: int, first_token: int, form: Form) -> Entry:
        return Entry(serial, num_tokens, first_token, form, self.tables.head_pages(num_tokens, form))

    def entries(self) -> Iterator[Entry]:
        for branch in self.branches.values():
            yield from branch.entries.values()

    def is_settled(self, branch: BranchModel, index: int) -> bool:
        newest = first_form(self.codecs, self.window, index)
        return index < branch.num_committed - 1 or are_alike(newest, self.settled(index))

    def permanent(self) -> Parts:
        """Origins of pins and sinks, with the heads that no window drops."""
        return [part for branch in self.branches.values() for index in branch.entries
                for part in self.permanent_part(branch, index)]  # fmt: skip

    def permanent_part(self, branch: BranchModel, index: int) -> Parts:
        """That of one chunk, or nothing."""
        entry = branch.entries[index]
        if not self.is_settled(branch, index):
            return []
        if index in branch.pins:
            return [(entry.origin, entry.heads)]
        if index < self.window.sink_chunks:
            passed = passed_heads(self.codecs, self.window, index, None)
            return [(entry.origin, {place: pages for place, pages in entry.heads.items() if place not in passed})]
        return []

    def permanent_pages(self) -> int:
        return sum(sum(heads.values()) for _, heads in self.permanent())

    def pin_pages(self, branch: BranchModel, index: int) -> int:
        entry = branch.entries[index]
        if self.is_settled(branch, index):
            return entry.pages
        return max(entry.pages, self.tables.chunk_pages(entry.num_tokens, self.settled(index)))

    @cached_property
    def base_peak(self) -> int:
        commits = 60 if self.max_chunks is None else self.max_chunks
        return simulated_peak(self.tables, self.window, self.codecs, self.chunk_tokens, commits)

    def peak(self) -> int:
        pins = sum(self.pin_pages(branch, index) for branch in self.branches.values() for index in branch.pins)
        return len(self.branches) * self.base_peak + pins

    def held(self) -> int:
        return sum(entry.pages for entry in self.entries())

    def may_commit(self, branch: str) -> bool:
        return self.max_chunks is None or self.branches[branch].num_committed < self.max_chunks

    def positions(self, branch: str) -> tuple[dict[int, int], int]:
        """Rotary position of every live chunk, and of the next one."""
        model = self.branches[branch]
        if self.window.positions == "absolute":
            return {index: entry.first_token for index, entry in model.entries.items()}, model.num_tokens
        positions, start = {}, 0
        for index, entry in sorted(model.entries.items()):
            positions[index] = start
            start += entry.num_tokens
        return positions, start

    def commit(self, branch: str, serial: int, num_tokens: int) -> None:
        model = self.branches[branch]
        index = model.num_committed
        last = model.entries.get(index - 1)
        if last is not None and not self.is_settled(model, index - 1):
            final = self.entry(last.serial, last.num_tokens, last.first_token, self.settled(index - 1))
            model.entries[index - 1] = final
        form = first_form(self.codecs, self.window, index)
        model.entries[index] = self.entry(serial, num_tokens, model.num_tokens, form)
        model.num_committed += 1
        model.num_tokens += num_tokens
        self.slide(branch)

    def slide(self, branch: str) -> None:
        model = self.branches[branch]
        for index, entry in list(model.entries.items()):
            if index in model.pins:
                continue
            if not is_kept(self.window, index, model.num_committed):
                del model.entries[index]
                continue
            form = thin_form(entry.form, self.codecs, self.window, index, model.num_committed - 1 - index)
            if form != entry.form:
                thin = self.entry(entry.serial, entry.num_tokens, entry.first_token, form)
                thin.origin = entry.origin
                model.entries[index] = thin


class Broken(Exception):
    """The model's forward failed."""


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.models: list[StreamModel] = []
        self.images: list[tuple[StreamImage, StreamModel]] = []
        self.next_serial = 0

    @initialize(kind=st.sampled_from(KINDS_OF_CACHE))
    def make_cache(self, kind):
        self.tables, self.correction = kind.tables, kind.correction
        self.cache = kind.new_cache()

    # -------------------------------------------------------------- the model's view of capacity

    def budget(self) -> int:
        own = sum(model.peak() - model.permanent_pages() for model in self.models)
        return own + distinct_pages([part for model in self.models for part in model.permanent()])

    def permanent_pages_of(self, parts: Parts, min_streams: int = 1) -> int:
        """Pages of those heads of the parts that at least so many streams hold permanently."""
        held = Counter((id(o), place) for model in self.models for o, heads in model.permanent() for place in heads)
        heads = ((id(o), place, pages) for o, heads in parts for place, pages in heads.items())
        return sum(pages for origin, place, pages in heads if held[origin, place] >= min_streams)

    def expect_capacity(self, num_pages: int) -> Any:
        """A context that expects CapacityError, with the numbers, exactly when these pages are not left."""
        left = NUM_PAGES - self.budget()
        if num_pages <= left:
            return None
        return pytest.raises(CapacityError, match=rf"needs {num_pages} pages.*of {NUM_PAGES}.*{left} are left")

    def new_serial(self) -> int:
        self.next_serial += 1
        return self.next_serial

    def any_model(self, data: st.DataObject) -> StreamModel:
        return data.draw(st.sampled_from(self.models), label="stream")

    def has_chunks(self) -> bool:
        return any(branch.entries for model in self.models for branch in model.branches.values())

    def any_chunk(
        self, data: st.DataObject, preferred: Callable[[StreamModel, BranchModel, int], bool]
    ) -> tuple[StreamModel, str, int]:
        """A live chunk, mostly a preferred one if there is any."""
        chunks = [(m, name, index) for m in self.models for name, b in m.branches.items() for index in b.entries]
        liked = [(m, name, index) for m, name, index in chunks if preferred(m, m.branches[name], index)]
        choices = liked if liked and data.draw(MOSTLY, label="preferred") else chunks
        return data.draw(st.sampled_from(choices), label="chunk")

    def some_ranges(self, data: st.DataObject, can_commit: bool) -> list[tuple[StreamModel, QueryRange]]:
        """Ranges of several streams and branches, some with fewer tokens; commits where allowed and drawn."""
        chosen = []
        for model in data.draw(st.lists(st.sampled_from(self.models), min_size=1, unique=True), label="streams"):
            for branch in model.branches:
                num_tokens = data.draw(st.sampled_from([None, 1, model.chunk_tokens - 1]), label="tokens") or None
                commit = can_commit and model.may_commit(branch) and data.draw(MOSTLY, label="commit")
                chosen.append((model, QueryRange(model.stream, branch, num_tokens, commit=commit)))
        return chosen

    # -------------------------------------------------------------- streams

    @precondition(lambda self: len(self.models) < MOST_STREAMS)
    @rule(
        window=WINDOWS,
        codecs=CODECS,
        look_back=LOOK_BACKS,
        chunk_tokens=st.sampled_from([1, 20, 128, 129, 150]),
        num_branches=st.integers(1, 2),
        max_chunks=st.sampled_from([None, None, None, 0, 1, 3, 6]),
    )
    def open(self, window, codecs, look_back, chunk_tokens, num_branches, max_chunks):
        codecs = replace(codecs, look_back=look_back)
        names = ("cond", "uncond")[:num_branches]
        model = StreamModel(
            None, self.tables, window, codecs, chunk_tokens, max_chunks, {name: BranchModel() for name in names}
        )
        refused = self.expect_capacity(model.peak())

        def open_it() -> Stream:
            return self.cache.open(window, chunk_tokens, branches=names, max_chunks=max_chunks, codecs=codecs)

        if refused:
            with refused:
                open_it()
        else:
            model.stream = open_it()
            self.models.append(model)

    @precondition(lambda self: len(self.models) > 1 and self.budget() <= NUM_PAGES - 4 * 8)
    @rule()
    def use_up_the_pool(self):
        """Opens streams whose peaks add up to all that is left, so that one page too many anywhere is noticed."""
        num_chunks, rest = divmod(NUM_PAGES - self.budget(), 8)  # there are 8 tables
        page = self.tables.page_tokens["bf16"]
        places = itertools.product(range(NUM_LAYERS), range(NUM_KV_HEADS))
        longer = [(*place, place[1], "bf16" if 2 * i + 1 < rest else "bf16/int2") for i, place in enumerate(places)]
        one_more = StreamCodecs(by_head("int2", *longer[: -(-rest // 2)]))  # in `rest` tables, for that many tokens
        for window, tokens, end, codecs in (
            (Window(0, 1), 2 * page, 1, one_more),
            (Window(0, num_chunks - 2), page, None, StreamCodecs("int2")),
        ):
            stream = self.cache.open(window, tokens, codecs=codecs, max_chunks=end)
            self.models.append(StreamModel(stream, self.tables, window, codecs, tokens, end, {"cond": BranchModel()}))
        assert self.budget() == NUM_PAGES

    @precondition(lambda self: 0 < len(self.models) < MOST_STREAMS)
    @rule(data=st.data())
    def fork(self, data):
        with_sinks = [model for model in self.models if model.permanent_pages()]
        model = data.draw(st.sampled_from(with_sinks or self.models), label="stream")
        refused = self.expect_capacity(model.peak() - model.permanent_pages())
        if refused:
            with refused:
                self.cache.fork(model.stream)
            return
        twin = self.cache.fork(model.stream)
        branches = {name: branch.copy() for name, branch in model.branches.items()}
        self.models.append(
            StreamModel(twin, self.tables, model.window, model.codecs, model.chunk_tokens, model.max_chunks, branches)
        )

    @precondition(lambda self: len(self.models) > 1)
    @rule(data=st.data())
    def release(self, data):
        model = self.any_model(data)
        self.cache.release(model.stream)
        self.models.remove(model)
        with pytest.raises(StateError, match="was released"):
            self.cache.release(model.stream)

    @precondition(lambda self: self.models and len(self.images) < MOST_IMAGES)
    @rule(data=st.data(), is_released=st.booleans())
    def copy_out(self, data, is_released):
        model = self.any_model(data)
        image = self.cache.copy_out(model.stream)
        assert image.num_pages == model.held()
        self.images.append((image, model.copy()))
        if is_released and len(self.models) > 1:
            self.cache.release(model.stream)
            self.models.remove(model)

    @precondition(lambda self: self.images and len(self.models) < MOST_STREAMS)
    @rule(data=st.data(), is_forgotten=st.booleans())
    def copy_in(self, data, is_forgotten):
        """On other pages, perhaps several times, with all that happened in between."""
        image, model = data.draw(st.sampled_from(self.images), label="image")
        assert self.cache.image_pages(image) == model.peak()
        refused = self.expect_capacity(model.peak())
        if refused:
            with refused:
                self.cache.copy_in(image)
            return
        self.models.append(model.copy(self.cache.copy_in(image)))
        if is_forgotten:
            self.images = [kept for kept in self.images if kept[0] is not image]

    @precondition(lambda self: self.models)
    @rule(data=st.data(), max_chunks=st.sampled_from([None, 1, 3, 6, 9]))
    def extend(self, data, max_chunks):
        model = self.any_model(data)
        planned = replace(model, max_chunks=max_chunks)
        num_committed = max(branch.num_committed for branch in model.branches.values())
        if max_chunks is not None and max_chunks < num_committed:
            expected = pytest.raises(StateError, match="too short")
        else:
            expected = self.expect_capacity(planned.peak() - model.peak())
        if expected:
            with expected:
                self.cache.extend(model.stream, max_chunks=max_chunks)
            return
        self.cache.extend(model.stream, max_chunks=max_chunks)
        self.models[self.models.index(model)] = planned

    @precondition(lambda self: self.has_chunks())
    @rule(data=st.data())
    def pin(self, data):
        model, branch, index = self.any_chunk(
            data, lambda m, b, i: i >= m.window.sink_chunks and not m.is_settled(b, i)
        )
        if index in model.branches[branch].pins or index < model.window.sink_chunks:
            with pytest.raises(StateError, match="is a sink or pinned already"):
                self.cache.pin(model.stream, index, branch)
            return
        entry, pages = model.branches[branch].entries[index], model.pin_pages(model.branches[branch], index)
        refused = self.expect_capacity(pages - self.permanent_pages_of([(entry.origin, entry.heads)]))
        if refused:
            with refused:
                self.cache.pin(model.stream, index, branch)
        else:
            self.cache.pin(model.stream, index, branch)
            model.branches[branch].pins.add(index)

    @precondition(lambda self: any(branch.pins for model in self.models for branch in model.branches.values()))
    @rule(data=st.data())
    def unpin(self, data):
        pins = [(m, name, index) for m in self.models for name, b in m.branches.items() for index in sorted(b.pins)]
        model, branch, index = data.draw(st.sampled_from(pins), label="pin")
        self.cache.unpin(model.stream, index, branch)
        model.branches[branch].pins.remove(index)
        model.slide(branch)

    @precondition(lambda self: self.has_chunks())
    @rule(data=st.data())
    def drop(self, data):
        """Before the window would; a chunk is dropped in all branches or in none."""
        model, _, index = self.any_chunk(data, lambda m, b, i: i >= m.window.sink_chunks and i not in b.pins)
        for branch in model.branches.values():  # the first that objects is heard
            if index not in branch.entries:
                message = "are not kept"
            elif index < model.window.sink_chunks or index in branch.pins:
                message = rf"chunks \[{index}\] .* are sinks or pinned"
            else:
                continue
            with pytest.raises(StateError, match=message):
                self.cache.drop(model.stream, [index])
            return
        self.cache.drop(model.stream, [index])
        for branch in model.branches.values():
            del branch.entries[index]

    # -------------------------------------------------------------- steps

    def assert_planned(self, model: StreamModel, asked: QueryRange, planned: RangePlan) -> None:
        """Reads every live chunk at its position and comes after them."""
        positions, following = model.positions(asked.branch)
        assert {read.chunk.index: read.first_token for read in planned.reads} == positions
        assert [read.chunk.index for read in planned.reads] == sorted(positions)
        assert planned.first_token == following
        assert planned.num_tokens == (asked.num_tokens or model.chunk_tokens)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def denoise(self, data):
        chosen = self.some_ranges(data, can_commit=False)
        free_before = self.cache.pool.free_ids.copy()
        with self.cache.denoise([asked for _, asked in chosen]) as step:
            for (model, asked), planned in zip(chosen, step.plan.ranges, strict=True):
                self.assert_planned(model, asked, planned)
            attend_layer(self.cache, step, 1, [self.new_serial() for _ in chosen])
            self.cache.check()
        assert np.array_equal(free_before, self.cache.pool.free_ids)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def step_with_commits(self, data):
        """Never refused: capacity was promised when the streams were opened."""
        chosen = self.some_ranges(data, can_commit=True)
        serials = [self.new_serial() for _ in chosen]
        with self.cache.step([asked for _, asked in chosen]) as step:
            for (model, asked), planned in zip(chosen, step.plan.ranges, strict=True):
                self.assert_planned(model, asked, planned)
            attend_all(self.cache, step, serials)
            self.cache.check()
        for (model, asked), serial in zip(chosen, serials, strict=True):
            if asked.commit:
                model.commit(asked.branch, serial, asked.num_tokens or model.chunk_tokens)

    @precondition(lambda self: self.models)
    @rule(num_times=st.integers(1, 3))
    def everyone_commits(self, num_times):
        """Commits in all streams, so that windows slide."""
        for _ in range(num_times):
            chosen = [(m, QueryRange(m.stream, b)) for m in self.models for b in m.branches if m.may_commit(b)]
            if not chosen:
                return
            serials = [self.new_serial() for _ in chosen]
            with self.cache.commit([asked for _, asked in chosen]) as step:
                attend_all(self.cache, step, serials)
            for (model, asked), serial in zip(chosen, serials, strict=True):
                model.commit(asked.branch, serial, model.chunk_tokens)

    @precondition(lambda self: self.models)
    @rule(data=st.data(), failure=st.sampled_from(["raises", "forgets a layer", "not a number", "attends twice"]))
    def failing_step(self, data, failure):
        chosen = self.some_ranges(data, can_commit=True)
        if not any(asked.commit for _, asked in chosen):
            return
        serials = [self.new_serial() for _ in chosen]
        error, message = {
            "raises": (Broken, None),
            "forgets a layer": (StateError, r"before layers \[1\] were attended"),
            "not a number": (NonFiniteError, r"values of layer 1, KV head 1, chunk \d+ cannot be stored"),
            "attends twice": (StateError, "attended twice"),
        }[failure]
        with pytest.raises(error, match=message), self.cache.step([asked for _, asked in chosen]) as step:
            attend_layer(self.cache, step, 0, serials)
            if failure == "raises":
                raise Broken
            if failure == "attends twice":
                attend_layer(self.cache, step, 0, serials)
            if failure == "not a number":
                row = data.draw(st.sampled_from([r.stop - 1 for r in step.plan.ranges if r.writes]), label="row")
                x = torch.zeros(step.plan.num_tokens, NUM_KV_HEADS, HEAD_DIM)
                x[row, 1, 3] = torch.nan
                step.attend(1, x.repeat(1, 2, 1), torch.zeros_like(x), x)

    @precondition(lambda self: self.has_chunks())
    @rule(data=st.data(), succeeds=MOSTLY)
    def replace(self, data, succeeds):
        model, branch, index = self.any_chunk(data, lambda m, b, i: i in b.pins)
        self.replace_chunk(model, branch, index, succeeds)

    @precondition(lambda self: self.shared_for_good())
    @rule(data=st.data(), succeeds=MOSTLY)
    def replace_what_a_fork_shares_for_good(self, data, succeeds):
        self.replace_chunk(*data.draw(st.sampled_from(self.shared_for_good()), label="chunk"), succeeds)

    def shared_for_good(self) -> list[tuple[StreamModel, str, int]]:
        branches = [(model, name, branch) for model in self.models for name, branch in model.branches.items()]
        return [
            (model, name, index)
            for model, name, branch in branches
            for index in branch.entries
            if self.permanent_pages_of(model.permanent_part(branch, index), min_streams=2)
        ]

    def replace_chunk(self, model: StreamModel, branch: str, index: int, succeeds: bool) -> None:
        old = model.branches[branch].entries[index]
        beyond = max(0, model.held() + old.pages - model.peak())
        part = model.permanent_part(model.branches[branch], index)
        refused = self.expect_capacity(beyond + self.permanent_pages_of(part, min_streams=2))
        serial = self.new_serial()
        if refused:
            with refused, self.cache.replace(model.stream, index, branch):
                pass
            return
        if not succeeds:
            with pytest.raises(Broken), self.cache.replace(model.stream, index, branch) as step:
                attend_layer(self.cache, step, 0, [serial])
                raise Broken
            return
        with self.cache.replace(model.stream, index, branch) as step:
            positions, _ = model.positions(branch)
            (planned,) = step.plan.ranges
            assert planned.first_token == positions[index]
            assert [read.chunk.index for read in planned.reads] == [i for i in sorted(positions) if i < index]
            attend_all(self.cache, step, [serial])
            self.cache.check()
        model.branches[branch].entries[index] = model.entry(serial, old.num_tokens, old.first_token, old.form)

    @precondition(lambda self: any(not m.may_commit(b) for m in self.models for b in m.branches))
    @rule()
    def commit_beyond_the_end(self):
        model, branch = next((m, b) for m in self.models for b in m.branches if not m.may_commit(b))
        with (
            pytest.raises(StateError, match=f"max_chunks={model.max_chunks}"),
            self.cache.commit([QueryRange(model.stream, branch)]),
        ):
            pass

    # -------------------------------------------------------------- what always holds

    @invariant()
    def bookkeeping_is_consistent(self):
        self.cache.check()
        assert self.cache.reserved_pages == self.budget() <= NUM_PAGES

    @invariant()
    def chunks_are_those_of_the_model(self):
        held: Parts = []
        origins: dict[int, object] = {}
        for model in self.models:
            assert set(model.stream.branches) == set(model.branches)
            for name, branch in model.branches.items():
                history = model.stream.branches[name]
                assert history.num_committed == branch.num_committed
                assert list(history.chunks) == sorted(branch.entries)
                for index, entry in branch.entries.items():
                    chunk = history.chunks[index]
                    held.append((entry.origin, entry.heads))
                    assert origins.setdefault(chunk.id, entry.origin) is entry.origin
                    form = form_of(chunk.codecs)
                    assert (chunk.index, chunk.num_tokens) == (index, entry.num_tokens)
                    assert are_alike(form, entry.form)
                    assert chunk.num_pages == entry.pages
                    assert_holds(self.cache, chunk, entry.serial)
                    self.assert_keeps_what_the_correction_needs(chunk, entry)
        assert len(set(map(id, origins.values()))) == len(origins)  # forks share chunks, not copies
        holders = Counter((id(origin), place) for origin, heads in held for place in heads)
        stats = self.cache.stats()
        assert stats.num_chunks == len(origins) and stats.num_streams == len(self.models)
        assert stats.num_shared_chunks == len({origin for (origin, _), count in holders.items() if count > 1})
        assert stats.pages_used == distinct_pages(held)

    def assert_keeps_what_the_correction_needs(self, chunk: Chunk, entry: Entry) -> None:
        places = itertools.product(range(NUM_LAYERS), range(NUM_KV_HEADS))
        keys = {name for place in places for name in head_codecs(entry.form, *place)[:1]} - {"bf16"}
        if self.correction == "variance":
            wanted = (False, bool(keys))
        else:
            wanted = (bool(keys), any(name.startswith("klt") for name in keys))
        assert (chunk.alpha is not None, chunk.variance is not None) == wanted
        assert chunk.ropes == dict.fromkeys(range(NUM_LAYERS))

    def teardown(self):
        for model in self.models:
            self.cache.release(model.stream)
        self.cache.check()
        assert self.cache.reserved_pages == 0
        assert sorted(self.cache.pool.free_ids.tolist()) == list(range(NUM_PAGES))
        pattern.cache_clear()


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(stateful_step_count=40)
