"""Sizes as people write them."""

import pytest

from pagedvid.errors import ConfigError
from pagedvid.units import UNITS, format_bytes, format_setting_bytes, parse_bytes


@pytest.mark.parametrize(
    ("written", "num_bytes"),
    [
        ("2GiB", 2 * 2**30),
        ("1.5 MiB", 3 * 2**19),
        ("24gib", 24 * 2**30),
        ("3KB", 3000),
        ("1TB", 10**12),
        ("512", 512),
        ("7 B", 7),
        (4096, 4096),
        ("0.1GiB", 107374182),
    ],
)
def test_parse_bytes(written, num_bytes):
    assert parse_bytes(written) == num_bytes


@pytest.mark.parametrize("written", ["", "GiB", "2 GG", "-1GiB", "1,5GiB", "2GiB extra", "1e9", "two", "٣GiB"])
def test_what_is_not_a_size_is_refused_with_the_units(written):
    with pytest.raises(ConfigError, match="KiB, MiB, GiB, TiB, KB, MB, GB, TB"):
        parse_bytes(written)


@pytest.mark.parametrize(
    ("num_bytes", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (415080, "405 KiB"), (2**31, "2.00 GiB")]
)
def test_format_bytes(num_bytes, shown):
    assert format_bytes(num_bytes) == shown


@pytest.mark.parametrize("num_bytes", [1, 1000, *UNITS.values(), 3 * 2**29, 2**31])
def test_what_is_written_for_a_setting_is_read_back_exactly(num_bytes):
    assert parse_bytes(format_setting_bytes(num_bytes)) == num_bytes
