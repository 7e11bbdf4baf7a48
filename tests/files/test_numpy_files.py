"""Files of numpy arrays that cannot be trusted."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pagedvid.errors import ConfigError
from pagedvid.files.numpy_files import read_arrays


def test_arrays_come_back_as_they_were_saved(tmp_path: Path):
    saved = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True, False])}
    for save, name in ((np.savez, "plain"), (np.savez_compressed, "compressed")):
        save(tmp_path / name, **saved)
        read = read_arrays(tmp_path / f"{name}.npz", 10_000)
        assert read.keys() == saved.keys()
        for key, array in saved.items():
            assert read[key].dtype == array.dtype
            np.testing.assert_array_equal(read[key], array)


def npy_of(shape: str) -> bytes:
    """An array of that shape by its header, with 8 bytes of numbers."""
    content = io.BytesIO()
    np.save(content, np.zeros(1))
    return content.getvalue().replace(b"(1,), ", f"({shape}), ".encode())[: len(content.getvalue())]


@pytest.mark.parametrize(
    "content",
    [b"not a zip", b"PK\x03\x04 cut", npy_of("1,")],
    ids=["no zip", "cut", "npy"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.npz cannot be read as numpy arrays"):
        read_arrays(tmp_path / "x.npz", 10_000)


def test_python_objects_are_refused(tmp_path: Path):
    np.savez(tmp_path / "x.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ConfigError, match=r"x\.npz cannot be read as numpy arrays"):
        read_arrays(tmp_path / "x.npz", 10_000)


def test_a_shape_beyond_the_file_is_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", npy_of("1000000000,"))
    with pytest.raises(ConfigError, match=r"x\.npz cannot be read as numpy arrays"):
        read_arrays(tmp_path / "x.npz", 10_000)


def test_too_large_an_array_is_refused_before_it_is_read(tmp_path: Path):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(2**20))
    assert (tmp_path / "x.npz").stat().st_size < 2**15
    with pytest.raises(ConfigError, match=r"x\.npz holds 8\.00 MiB of arrays; at most 1\.00 MiB are expected"):
        read_arrays(tmp_path / "x.npz", 2**20)


def test_a_missing_file_is_told(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"x\.npz is missing"):
        read_arrays(tmp_path / "x.npz", 10_000)
