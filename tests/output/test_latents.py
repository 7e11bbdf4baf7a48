"""Latents in files."""

from __future__ import annotations

import os
import stat

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pagedvid.errors import ConfigError
from pagedvid.output.latents import LatentWriter, read_latents

PARTS = [np.random.default_rng(i).normal(size=(4, 3, 2, 5)).astype(np.float32) for i in range(3)]


def write(path, rate=6.0, parts=PARTS):
    writer = LatentWriter(path, rate)
    for part in parts:
        writer.add(part)
    writer.finish()
    writer.publish()
    return writer


def test_the_library_reads_what_was_written(tmp_path):
    writer = write(tmp_path / "a.safetensors")
    assert writer.num_frames == 12
    expected = torch.from_numpy(np.concatenate(PARTS)).transpose(0, 1)
    assert torch.equal(load_file(tmp_path / "a.safetensors")["latents"], expected)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_the_umask_decides_who_may_read(tmp_path, umask):
    before = os.umask(umask)
    try:
        write(tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("rate", [24000 / 1001, 1 / 3, 0.0001, 6])
def test_the_speed_is_kept_to_the_last_bit(tmp_path, rate):
    write(tmp_path / "a.safetensors", rate)
    assert read_latents(tmp_path / "a.safetensors")[1] == rate


def test_a_torn_file_is_no_latents(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path)
    for size in (0, 7, 90, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ConfigError, match="holds no latents of pagedvid"):
            read_latents(path)
        write(path)


@pytest.mark.parametrize("rate", [None, "", "fast"])
def test_a_file_without_a_speed_is_no_latents(tmp_path, rate):
    metadata = None if rate is None else {"frames_per_second": rate}
    save_file({"latents": torch.zeros(3, 1, 2, 2)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(ConfigError, match="holds no latents of pagedvid"):
        read_latents(tmp_path / "x.safetensors")
