import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hpc_provider.client.spans import Spans, cut

SIZE = 60
span = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted)


@given(st.lists(span))
def test_spans_hold_what_was_added_sorted_and_apart(added):
    spans = Spans(added)
    there = {byte for start, end in added for byte in range(start, end)}
    told = spans.to_json()
    assert {byte for start, end in told for byte in range(start, end)} == there
    assert all(before[1] < after[0] for before, after in itertools.pairwise(told))
    assert spans.total == len(there)
    assert spans.prefix == next(byte for byte in range(SIZE + 1) if byte not in there)
    missing = {byte for start, end in spans.gaps(SIZE) for byte in range(start, end)}
    assert missing == set(range(SIZE)) - there
    assert Spans(told).to_json() == told


@pytest.mark.parametrize("bad", [[(3, 2)], [(-1, 2)], [5], [("a", "b")]])
def test_what_is_no_span_is_refused(bad):
    with pytest.raises((ValueError, TypeError)):
        Spans(bad)


@given(st.lists(span), st.integers(1, 8), st.integers(1, 20), st.integers(1, 20))
def test_what_is_cut_is_what_was_missing_in_order(added, lanes, largest, smallest):
    gaps = Spans(added).gaps(SIZE)
    pieces = list(cut(gaps, lanes=lanes, largest=max(largest, smallest), smallest=smallest))
    assert [byte for start, end in pieces for byte in range(start, end)] == [
        byte for start, end in gaps for byte in range(start, end)
    ]
    assert all(0 < end - start <= max(largest, smallest) for start, end in pieces)


def test_pieces_are_large_first_and_small_at_the_end():
    sizes = [end - start for start, end in cut([(0, 1000)], lanes=4, largest=100, smallest=10)]
    assert sizes[0] == 100
    assert sizes[-2] == 10 >= sizes[-1]
    assert sizes == sorted(sizes, reverse=True)
