"""Chunks in flight: each a fixed number of steps behind the one before it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pagedvid.models.common.in_flight import InFlight, chunks_in_flight


def test_the_table_of_the_docstring():
    assert list(chunks_in_flight(0, 3, num_steps=3, lag=2)) == [
        InFlight({0: 0}, None),
        InFlight({0: 1}, None),
        InFlight({0: 2, 1: 0}, None),
        InFlight({1: 1}, 0),
        InFlight({1: 2, 2: 0}, None),
        InFlight({2: 1}, 1),
        InFlight({2: 2}, None),
    ]


@given(st.data(), st.integers(0, 5), st.integers(1, 7), st.integers(1, 9))
def test_every_chunk_takes_its_steps_one_by_one_and_begins_on_its_time(data, first, num_chunks, num_steps):
    lag = data.draw(st.integers(1, num_steps))
    moments = list(chunks_in_flight(first, first + num_chunks, num_steps, lag))
    for number in range(num_chunks):
        chunk, start = first + number, number * lag
        times = [time for time, moment in enumerate(moments) if chunk in moment.steps]
        assert times == list(range(start, start + num_steps))
        assert [moments[time].steps[chunk] for time in times] == list(range(num_steps))
        stored = [time for time, moment in enumerate(moments) if moment.clean == chunk]
        assert stored == ([start + num_steps] if number < num_chunks - 1 else [])
    assert all(list(moment.steps) == sorted(moment.steps) != [] for moment in moments)
