"""Plans of commits and drops, and codecs of the streams that follow them."""

from __future__ import annotations

from hypothesis import strategies as st

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Commit, Window

CODECS = [
    StreamCodecs("int2"),
    StreamCodecs("int2", newest="bf16"),
    StreamCodecs("int2", sink="int8", newest="int4"),
    StreamCodecs("int4/int2", newest="bf16/int8"),
    StreamCodecs("int2", newest="int8/int2", layers=((0, 0, "int8/int2"),)),
    StreamCodecs("klt2/int4", sink="int4"),
    StreamCodecs("int2", look_back=[(0, 0, 0, 1, True), (1, 0, 0, 2, False)]),
    StreamCodecs("int4", sink="int8", newest="bf16", look_back=[(0, 0, 0, 3, False), (1, 1, 1, 1, False)]),
]


@st.composite
def plans(draw: st.DrawFn) -> tuple[Window, list[Commit]]:
    """A window and commits that drop some of what it keeps."""
    window = Window(draw(st.integers(0, 2)), draw(st.integers(1, 5)))
    plan: list[Commit] = []
    kept: list[int] = []
    for index in range(draw(st.integers(0, 8))):
        droppable = [chunk for chunk in kept if chunk >= window.sink_chunks]
        drops = draw(st.lists(st.sampled_from(droppable), unique=True)) if droppable else []
        plan.append(Commit(draw(st.integers(1, 300)), tuple(drops)))
        kept = [chunk for chunk in [*kept, index] if chunk not in drops and window.keeps(chunk, index + 1)]
    return window, plan
