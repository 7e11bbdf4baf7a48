"""A step of a Ray Data pipeline: rows with prompts become rows with frames."""

from __future__ import annotations

import numpy as np
import pytest

from pagedvid.cluster.video_generator import VideoGenerator
from pagedvid.errors import ConfigError
from tests.cluster.processes import ray_head

PROMPTS = [
    "a large red circle moving left on a black background",
    "quantum entanglement",
    "a small white cross staying still on a navy background",
]
SETTINGS = {"cache.memory": "16MiB", "engine.reproducible": True, "generate.threads": 1, "generate.seed": 5}


@pytest.fixture(scope="module")
def generator() -> VideoGenerator:
    return VideoGenerator(SETTINGS)


def test_rows_get_frames_or_an_error(generator):
    batch = {"prompt": np.array(PROMPTS), "num_frames": np.array([8, 8, 16]), "note": np.array([1, 2, 3])}
    made = generator(batch)
    assert [len(frames) for frames in made["frames"]] == [8, 0, 16]
    assert made["frames"][0].shape == (8, 32, 32, 3) and made["frames"][0].dtype == np.uint8
    assert [error.partition(":")[0] for error in made["error"]] == ["", "PromptError", ""]
    assert list(made["note"]) == [1, 2, 3]
    again = generator({"prompt": np.array(PROMPTS[:1]), "num_frames": np.array([8]), "seed": np.array([5])})
    assert np.array_equal(again["frames"][0], made["frames"][0])


def test_a_batch_without_prompts_is_refused(generator):
    with pytest.raises(ConfigError, match='has no prompts; name a column "prompt"'):
        generator({"text": np.array(["red"])})


@pytest.mark.timeout(240)
def test_in_a_pipeline(generator):
    """On a Ray with two cores."""
    pytest.importorskip("pyarrow", reason="Ray Data needs pyarrow and pandas: pip install 'ray[data]'")
    import ray

    with ray_head() as head:
        ray.init(head.address, log_to_driver=False)
        try:
            prompts = ray.data.from_items(
                [{"prompt": PROMPTS[number % 3], "num_frames": 8, "seed": number} for number in range(4)]
            )
            videos = prompts.map_batches(
                VideoGenerator, fn_constructor_kwargs={"settings": SETTINGS}, batch_size=2, num_cpus=1, concurrency=1
            )
            rows = sorted(videos.take_all(), key=lambda row: row["seed"])
        finally:
            ray.shutdown()
    assert [row["error"].partition(":")[0] for row in rows] == ["", "PromptError", "", ""]
    expected = generator({"prompt": np.array(PROMPTS[:1]), "num_frames": np.array([8]), "seed": np.array([3])})
    assert np.array_equal(rows[3]["frames"], expected["frames"][0])
