"""Page storage: ids on a stack, bytes in one tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pagedvid.cache.pool import PagePool, PageTable
from pagedvid.errors import CapacityError, IntegrityError


def test_ids_are_taken_once_and_come_back():
    pool = PagePool(10, 8)
    first, second = pool.take(4), pool.take(6)
    assert sorted([*first, *second]) == list(range(10))
    assert pool.num_free_pages == 0 and pool.num_used_pages == 10
    pool.give_back(first)
    assert sorted(pool.free_ids) == sorted(first)
    assert sorted(pool.take(4)) == sorted(first)
    assert pool.peak_used_pages == 10


def test_the_first_ids_come_first_and_given_back_ids_come_again():
    pool = PagePool(10, 8)
    assert pool.take(3).tolist() == [0, 1, 2]
    ids = pool.take(2)
    pool.give_back(ids)
    assert pool.take(3).tolist() == [3, 4, 5]


def test_taken_ids_are_a_copy():
    pool = PagePool(10, 8)
    ids = pool.take(3)
    expected = ids.copy()
    pool.give_back(ids)
    pool.take(3)[:] = 99
    assert np.array_equal(ids, expected)
    assert sorted(pool.free_ids) == list(range(3, 10))


def test_free_ids_cannot_be_changed_from_outside():
    pool = PagePool(10, 8)
    pool.give_back(pool.take(4)[:2])
    expected = pool.free_ids
    pool.free_ids[:] = 3
    assert np.array_equal(pool.free_ids, expected)


def test_ids_come_back_in_parts_and_are_taken_across_them():
    pool = PagePool(10, 8)
    ids = pool.take(8)
    pool.give_back(ids[:3])
    pool.give_back(ids[5:])
    assert pool.num_free_pages == 8 and pool.peak_used_pages == 8
    assert pool.take(2).tolist() == [5, 6]
    assert pool.take(5).tolist() == [7, 0, 1, 2, 8]
    assert pool.free_ids.tolist() == [9] and pool.num_used_pages == 9


def test_taking_or_giving_back_too_many_pages_is_an_error():
    pool = PagePool(10, 8)
    ids = pool.take(7)
    with pytest.raises(IntegrityError, match="4 pages wanted, 3 free"):
        pool.take(4)
    assert pool.num_free_pages == 3
    with pytest.raises(IntegrityError, match="8 pages given back to a pool with only 7 taken"):
        pool.give_back(np.arange(8, dtype=np.int32))
    pool.give_back(ids)
    assert pool.num_free_pages == 10


def test_taking_no_page_at_all_is_allowed():
    pool = PagePool(1, 8)
    assert len(pool.take(0)) == 0
    pool.give_back(np.empty(0, dtype=np.int32))
    assert pool.num_free_pages == 1


def test_reading_copies_records_in_the_order_and_shape_asked_for():
    pool = PagePool(6, 288)
    pool.records.copy_(torch.arange(6, dtype=torch.uint8)[:, None].expand(6, 288))
    records = pool.read(np.array([4, 1], dtype=np.int32))
    assert records.shape == (2, 288) and records[:, 0].tolist() == [4, 1]
    records.zero_()
    assert int(pool.records[4, 0]) == 4
    ids = np.array([[4, 1, 5], [0, 2, 4]], dtype=np.int32)
    assert pool.read(ids)[..., 7].tolist() == ids.tolist()
    assert pool.read(ids[:, :0]).shape == (2, 0, 288)


def test_writing_changes_these_pages_and_no_others():
    pool = PagePool(6, 8)
    pool.records.fill_(9)
    ids = np.array([[5, 0], [2, 1]], dtype=np.int32)
    written = torch.arange(32, dtype=torch.uint8).view(2, 2, 8)
    pool.write(ids, written)
    assert torch.equal(pool.read(ids), written)
    assert (pool.records[[3, 4]] == 9).all()
    assert pool.records[0].tolist() == list(range(8, 16))


@pytest.mark.parametrize("num_pages", [0, -1])
def test_a_pool_without_pages_is_refused(num_pages):
    with pytest.raises(CapacityError, match=r"the memory holds no page; one needs 288 bytes.*more memory"):
        PagePool(num_pages, 288)


def test_more_memory_than_exists_is_refused():
    with pytest.raises(CapacityError, match=r"cannot allocate a pool of .* bytes on cpu"):
        PagePool(2**45, 128)


def test_page_tables_are_read_for_any_heads_that_are_stored_alike():
    """Two layers of three heads; heads 0 and 2 have two pages of keys in layer 1, head 1 has none, all have one of
    values."""
    lengths = [1, 1, 1, 2, 0, 2, 3, 3, 3, 1, 1, 1]
    indptr = np.cumsum([0, *lengths], dtype=np.int64)
    table = PageTable(np.arange(100, 100 + indptr[-1], dtype=np.int32), indptr, 3)
    for heads, expected in {
        ("keys", 0, (0, 1, 2)): [[100], [101], [102]],
        ("keys", 1, (0, 2)): [[103, 104], [105, 106]],
        ("keys", 1, (1,)): [[]],
        ("values", 0, (1, 2)): [[110, 111, 112], [113, 114, 115]],
        ("values", 1, (0, 2)): [[116], [118]],
    }.items():
        assert table.layer(*heads).tolist() == expected == table.layer_on(torch.device("cpu"), *heads).tolist()
        assert table.layer(*heads).dtype == np.int32
    assert table.layer("keys", 0, (0, 1, 2)).base is not None, "a view"
