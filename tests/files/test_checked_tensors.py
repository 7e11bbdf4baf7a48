"""Files with a checksum: what is written is read, nothing else is, and nothing is lost while writing."""

from __future__ import annotations

import errno
import json
from itertools import count
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from pagedvid.errors import ConfigError
from pagedvid.files import checked_tensors
from pagedvid.files.checked_tensors import MAX_HEADER_BYTES, read_checked, take_tensor, write_checked
from tests.files.json_values import json_values
from tests.output.faults import ERRORS, failing_call, file_size_limit

FORMAT = "pagedvid test 1"
FIELDS = {"a": [1, 2.5, None, True, {"b": '\U0001f600 "checksum":"0000" \ud800 \0'}], "": {}}
TENSORS = {
    "whole": torch.arange(12, dtype=torch.int32).view(3, 4),
    "halves": torch.tensor([1.5, -0.0, float("nan")], dtype=torch.bfloat16),
    "none": torch.zeros(0, 5, dtype=torch.uint8),
    "one": torch.tensor(7.25),
    "flags": torch.tensor([True, False]),
    'odd/ "checksum":"0': torch.tensor([3], dtype=torch.uint8),
}


def read(path: Path):
    return read_checked(path, FORMAT, lambda fields: None)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def assert_same(tensors, expected) -> None:
    assert {name: bits(tensor) for name, tensor in tensors.items()} == {
        name: bits(tensor) for name, tensor in expected.items()
    }


@pytest.fixture
def file(tmp_path) -> Path:
    write_checked(tmp_path / "a.safetensors", FORMAT, FIELDS, TENSORS)
    return tmp_path / "a.safetensors"


# ---------------------------------------------------------------------- what is written is read


def test_round_trip(file):
    fields, tensors = read(file)
    assert fields == FIELDS
    assert_same(tensors, TENSORS)


def test_any_reader_of_safetensors_reads_it(file):
    with safe_open(file, framework="pt") as content:
        assert content.metadata()["format"] == FORMAT
        assert json.loads(content.metadata()["fields"]) == FIELDS
        assert set(content.keys()) == TENSORS.keys()


def test_tensors_may_share_memory_and_be_strided(tmp_path):
    base = torch.arange(24, dtype=torch.float32).view(4, 6)
    given = {"all": base, "same": base, "columns": base[:, ::2], "rows": base[1:3], "turned": base.T}
    write_checked(tmp_path / "a", FORMAT, {}, given)
    _, tensors = read(tmp_path / "a")
    assert_same(tensors, given)


def test_what_was_read_outlives_the_file(file):
    _, tensors = read(file)
    with file.open("r+b") as content:
        content.truncate(0)
    tensors["whole"] += 1
    assert torch.equal(tensors["whole"], TENSORS["whole"] + 1)


@given(fields=st.dictionaries(st.text(), json_values, max_size=4))
def test_any_fields(fields, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "a"
    write_checked(path, FORMAT, fields, {})
    assert read(path) == (fields, {})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**25, object(), {1, 2}])
def test_fields_that_could_not_be_read_are_not_written(value, file):
    with pytest.raises(ConfigError, match=r"a.safetensors cannot be written: "):
        write_checked(file, FORMAT, {"a": value}, {})
    assert read(file)[0] == FIELDS


# ---------------------------------------------------------------------- nothing else is read


def test_every_changed_byte_is_found(file):
    whole = file.read_bytes()
    for place in range(len(whole)):
        for mask in (0x01, 0x20, 0xFF):
            changed = bytearray(whole)
            changed[place] ^= mask
            file.write_bytes(changed)
            with pytest.raises(ConfigError, match=r"a\.safetensors"):
                read(file)
    file.write_bytes(whole)
    assert read(file)[0] == FIELDS


def test_every_truncation_is_found(file):
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"a\.safetensors"):
            read(file)


@pytest.mark.parametrize("extra", [b"\0", b"x" * 1000])
def test_bytes_at_the_end_are_found(extra, file):
    file.write_bytes(file.read_bytes() + extra)
    with pytest.raises(ConfigError, match="is damaged or no safetensors file"):
        read(file)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, r"has the format None; this version of pagedvid reads 'pagedvid test 1' here"),
        ({"format": "pt"}, "has the format 'pt'"),
        ({"format": "pagedvid test 2"}, "has the format 'pagedvid test 2'"),
        ({"format": FORMAT}, "its checksum is wrong"),
        ({"format": FORMAT, "checksum": "0" * 64, "fields": "{}"}, "its checksum is wrong"),
        ({"format": FORMAT, "checksum": "", "fields": "{}"}, "its checksum is wrong"),
        ({"format": FORMAT, "checksum": "é" * 64, "fields": "{}"}, "its checksum is wrong"),
    ],
)
def test_other_safetensors_files_are_refused(metadata, message, tmp_path):
    save_file(TENSORS, tmp_path / "a", metadata)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "a")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"hello world", b"\x10" + bytes(7) + b"not json at all!", b"PK\3\4" * 99]
)
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConfigError, match="/a "):
        read(tmp_path / "a")


def test_what_is_not_a_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="give a file that pagedvid has written"):
            read(path)


@pytest.mark.parametrize("num_bytes", [MAX_HEADER_BYTES + 1, 2**40, 2**63, 2**64 - 1])
def test_a_huge_header_is_not_read(num_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(checked_tensors, "safe_open", lambda *_, **__: pytest.fail("it was read"))
    with (tmp_path / "a").open("wb") as file:
        file.write(num_bytes.to_bytes(8, "little"))
        file.truncate(2 * MAX_HEADER_BYTES)
    with pytest.raises(ConfigError, match=r"at most 32\.0 MiB are read"):
        read(tmp_path / "a")


def test_a_header_that_would_not_be_read_is_not_written(file, monkeypatch):
    monkeypatch.setattr(checked_tensors, "MAX_HEADER_BYTES", 10_000)
    with pytest.raises(ConfigError, match="keeps too many chunks"):
        write_checked(file, FORMAT, {"a": "x" * 10_000}, {})
    assert read(file)[0] == FIELDS
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_no_tensor_is_read_when_the_fields_are_refused(file, monkeypatch):
    def refuse(fields):
        assert fields == FIELDS
        raise ConfigError("not these")

    class Unread:
        """A file whose tensors cannot be had."""

        def __init__(self, *how, **more):
            self.inner = safe_open(*how, **more)

        def __enter__(self):
            self.inner.__enter__()
            return self

        def __exit__(self, *how):
            return self.inner.__exit__(*how)

        def metadata(self):
            return self.inner.metadata()

    monkeypatch.setattr(checked_tensors, "safe_open", Unread)
    with pytest.raises(ConfigError, match="not these"):
        read_checked(file, FORMAT, refuse)


# ---------------------------------------------------------------------- taking tensors


@pytest.mark.parametrize(
    ("name", "dtypes", "shape", "message"),
    [
        ("absent", (torch.int32,), (3, 4), "'absent' is missing"),
        ("whole", (torch.int64,), (3, 4), r"is int32 \[3, 4\]; it must be int64 \[3, 4\]"),
        ("whole", (torch.int32, torch.int64), (3, 5), r"it must be int32 or int64 \[3, 5\]"),
        ("whole", (torch.int32,), (3,), r"it must be int32 \[3\]"),
        ("whole", (torch.int32,), (None, None, None), r"it must be int32 \[any, any, any\]"),
    ],
)
def test_another_tensor_is_refused(name, dtypes, shape, message):
    with pytest.raises(ConfigError, match=message):
        take_tensor(dict(TENSORS), name, dtypes, shape)


def test_a_tensor_is_taken_once():
    tensors = dict(TENSORS)
    assert take_tensor(tensors, "whole", (torch.int32,), (3, None)) is TENSORS["whole"]
    assert "whole" not in tensors and len(tensors) == len(TENSORS) - 1


# ---------------------------------------------------------------------- nothing is lost while writing

OTHER = {"large": torch.arange(5000, dtype=torch.int16)}


def try_to_write(path: Path) -> bool:
    try:
        write_checked(path, FORMAT, {"other": 1}, OTHER)
    except ConfigError as error:
        assert "cannot be written" in str(error)
        return False
    return True


def assert_whole_or_as_before(path: Path, was_written: bool) -> None:
    fields, tensors = read(path)
    assert fields == ({"other": 1} if was_written else FIELDS)
    assert_same(tensors, OTHER if was_written else TENSORS)


def test_a_full_disk_leaves_the_older_file(file):
    write_checked(file, FORMAT, {"other": 1}, OTHER)
    size, num_failed = file.stat().st_size, 0
    for room in [0, 1, 8, 100, *range(size // 9, size, size // 9), size - 1]:
        write_checked(file, FORMAT, FIELDS, TENSORS)
        with file_size_limit(room):
            was_written = try_to_write(file)
        num_failed += not was_written
        assert_whole_or_as_before(file, was_written)
        assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert num_failed > 8


@pytest.mark.parametrize("error_number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("persists", [False, True], ids=["once", "for good"])
def test_each_call_fails_in_turn(persists, error_number, file):
    for number in count(1):
        write_checked(file, FORMAT, FIELDS, TENSORS)
        with failing_call(file.parent, error_number, number, persists) as calls:
            was_written = try_to_write(file)
        if not calls.failed:
            break
        assert_whole_or_as_before(file, was_written)
    assert number > 5 and was_written


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"gone/a cannot be written"):
        write_checked(tmp_path / "gone" / "a", FORMAT, {}, {})
