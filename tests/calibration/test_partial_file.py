"""What an interrupted run had measured is found by the same run only."""

from __future__ import annotations

import pytest
import torch

from pagedvid.calibration.partial_file import PartialFile
from pagedvid.errors import ConfigError


def test_the_same_run_goes_on_and_another_does_not(tmp_path):
    path = tmp_path / ".out.observed"
    PartialFile(path, "a").save({"x": torch.arange(3)}, 5)
    tensors, num_videos = PartialFile(path, "a").load()
    assert num_videos == 5 and torch.equal(tensors["x"], torch.arange(3))
    assert PartialFile(path, "b").load() == ({}, 0)
    PartialFile(path, "a").remove()
    assert PartialFile(path, "a").load() == ({}, 0) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"torn", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_what_cannot_be_read_is_measured_again(tmp_path, content):
    path = tmp_path / ".out.observed"
    path.write_bytes(content)
    assert PartialFile(path, "a").load() == ({}, 0)


def test_a_place_that_cannot_be_written_is_said_and_nothing_is_left(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        PartialFile(tmp_path / "none" / ".out", "a").save({"x": torch.zeros(1)}, 1)
    assert list(tmp_path.iterdir()) == []
