"""One frame as JPEG, read by another library."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pagedvid.output.jpeg import jpeg


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 80), (33, 17), (1, 1), (256, 256)])
def test_pillow_reads_what_was_written(height: int, width: int) -> None:
    rows, columns = np.mgrid[0:height, 0:width]
    frame = np.stack([60 + rows % 128, 90 + columns % 100, np.full_like(rows, 120)], axis=-1).astype(np.uint8)
    picture = Image.open(io.BytesIO(jpeg(frame)))
    assert (picture.format, picture.size) == ("JPEG", (width, height))
    found = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(found - frame).mean() < 3


@pytest.mark.parametrize("color", [(0, 0, 0), (255, 255, 255), (230, 30, 35)])
def test_plain_colours_stay(color: tuple[int, int, int]) -> None:
    frame = np.full((16, 16, 3), color, np.uint8)
    found = np.asarray(Image.open(io.BytesIO(jpeg(frame))).convert("RGB")).astype(int)
    assert np.abs(found - np.array(color)).max() <= 6
