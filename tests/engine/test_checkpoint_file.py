"""Checkpoints: what was saved is loaded bit by bit, and everything else is refused with a reason."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_image import BranchImage, ChunkImage, StreamImage
from pagedvid.cache.window import Commit, Window
from pagedvid.engine.checkpoint_file import FORMAT, Origin, load_checkpoint, save_checkpoint
from pagedvid.engine.requests import VideoRequest
from pagedvid.engine.snapshot import JobSnapshot
from pagedvid.errors import ConfigError
from pagedvid.files.checked_tensors import read_checked, write_checked
from tests.engine.snapshots import CHANNELS, CHUNK_TOKENS, CODECS, assert_same, origin_with, snapshots
from tests.files.json_values import json_values

ORIGIN = origin_with(StreamCodecs("int4/int2", sink="int8", newest="bf16"), ("cond", "uncond"))
SLOW = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def example_image(origin: Origin = ORIGIN) -> StreamImage:
    """Two chunks after three commits."""
    window, codecs, shape = Window(1, 1), origin.cache.codecs, origin.cache.shape

    def chunk(index: int) -> ChunkImage:
        stored = codecs.stored(index, 2 - index, window)
        num_pages = shape.chunk_pages(CHUNK_TOKENS, stored)
        return ChunkImage(
            index,
            index * CHUNK_TOKENS,
            index * CHUNK_TOKENS,
            CHUNK_TOKENS,
            stored,
            torch.arange(num_pages * shape.page_bytes).to(torch.uint8).view(num_pages, shape.page_bytes),
            torch.rand(2, 2) if shape.keeps_alpha(stored) else None,
            torch.rand(2, 2, 8).bfloat16() if shape.keeps_variance(stored) else None,
            {0: (20, 1)},
            tuple(bytes([table] * 16) for table in range(8)),
        )

    branches = {
        name: BranchImage((chunk(0), chunk(2)), frozenset(), frozenset(), 3, 3 * CHUNK_TOKENS)
        for name in origin.geometry.branches
    }
    commits = (Commit(CHUNK_TOKENS), Commit(CHUNK_TOKENS, (1,)), Commit(CHUNK_TOKENS))
    return StreamImage(shape, "chunk", window, codecs, CHUNK_TOKENS, 3, commits, branches)


def example(origin: Origin = ORIGIN) -> JobSnapshot:
    latents = torch.rand(CHUNK_TOKENS, CHANNELS)
    return JobSnapshot(
        request=VideoRequest("a", "3", 12, seed=5, inputs={"file": Path("a.json"), "table": {"x": torch.rand(2)}}),
        num_rounds_done=7,
        num_frames_out=3,
        num_output_frames=9,
        latents={3: latents},
        clean={0: latents, 2: latents.bfloat16()},
        held={3: {"cond": latents[:7], "uncond": latents[7:14]}},
        decoder={"total": torch.tensor([4], dtype=torch.int64)},
        peak_bytes=(1000, 8000),
        image=example_image(origin),
    )


def saved(path: Path, snapshot: JobSnapshot | None = None, origin: Origin = ORIGIN) -> Path:
    save_checkpoint(path, snapshot or example(origin), origin)
    return path


# ---------------------------------------------------------------------- what was saved is loaded


@SLOW
@given(data=st.data(), codecs=st.sampled_from(CODECS), branches=st.sampled_from([("cond",), ("a/b", "")]))
def test_round_trip(data, codecs, branches, tmp_path_factory):
    origin = origin_with(codecs, branches, **data.draw(st.sampled_from([{}, {"correction": "variance"}])))
    snapshot = data.draw(snapshots(origin))
    path = saved(tmp_path_factory.mktemp("checkpoint") / "a", snapshot, origin)
    assert_same(load_checkpoint(path, origin), snapshot)


def test_the_example_that_other_tests_use_is_a_snapshot(tmp_path):
    snapshot = example()
    assert_same(load_checkpoint(saved(tmp_path / "a", snapshot), ORIGIN), snapshot)


def test_a_comparison_would_show_a_difference():
    """`assert_same` is the oracle of the tests above."""
    snapshot = example()
    changed = deepcopy(snapshot)
    assert changed.image is not None
    changed.image.branches["uncond"].chunks[1].records_PB[3, 5] += 1
    with pytest.raises(AssertionError, match=r"image.branches\['uncond'\].chunks\[1\].records_PB"):
        assert_same(changed, snapshot)


def test_a_later_checkpoint_replaces_the_earlier_one(tmp_path):
    saved(tmp_path / "a")
    later = replace(example(), num_rounds_done=8)
    assert load_checkpoint(saved(tmp_path / "a", later), ORIGIN).num_rounds_done == 8
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (VideoRequest("a", "b", 1, seed=10**25), "has 26 digits; the most is 25"),
        (
            VideoRequest("a", "b", 1, inputs={"camera": object()}),
            "the input 'camera' of request 'a' is a object, which",
        ),
        (VideoRequest("a", "b", 1, inputs={"camera": [1]}), "is a list, which cannot be saved"),
        (VideoRequest("a", "b", 1, inputs={"camera": float("nan")}), "cannot be written"),
    ],
)
def test_what_no_file_can_hold_is_not_saved(request_, message, tmp_path):
    saved(tmp_path / "a")
    with pytest.raises(ConfigError, match=message):
        saved(tmp_path / "a", replace(example(), request=request_))
    assert load_checkpoint(tmp_path / "a", ORIGIN).request.prompt == "3"


# ---------------------------------------------------------------------- another origin

GEOMETRY, CACHE, WINDOW = ORIGIN.geometry, ORIGIN.cache, ORIGIN.window


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"model": "demo"}, ["model 'toy' (here 'demo')"]),
        ({"files": {**ORIGIN.files, "weights": "fedcba"}}, ["files.weights '0123456789abcdef' (here 'fedcba')"]),
        ({"files": {**ORIGIN.files, "vae": "fedcba"}}, ["files.vae None (here 'fedcba')"]),
        ({"settings": {**ORIGIN.settings, "dtype": "bfloat16"}}, ["model.dtype 'float32' (here 'bfloat16')"]),
        ({"num_denoise_steps": None}, ["denoise_steps 4 (here None)"]),
        ({"window": Window(2, 2, "window")}, ["window.sink_chunks 1 (here 2)", "window.positions 'absolute' (here 'w"]),
        ({"geometry": replace(GEOMETRY, frames_per_chunk=4)}, ["geometry.frames_per_chunk 3 (here 4)"]),
        ({"geometry": replace(GEOMETRY, branches=("cond",))}, ["geometry.branches '[\"cond\", \"uncond\"]' (here"]),
        ({"cache": replace(CACHE, codecs=StreamCodecs("int4/int2", "int8"))}, ["codecs.newest 'bf16' (here None)"]),
        ({"cache": replace(CACHE, page_rows=18)}, ["cache.page_rows 36 (here 18)"]),
        ({"cache": replace(CACHE, correction="off")}, ["cache.correction 'measured' (here 'off')"]),
        ({"cache": replace(CACHE, correction_unit="page")}, ["cache.correction_unit 'chunk' (here 'page')"]),
        ({"cache": replace(CACHE, keys_arrive="rotated")}, ["cache.keys_arrive 'before_rotary' (here 'rotated')"]),
        ({"cache": replace(CACHE, frames_per_block=3)}, ["cache.frames_per_block 1 (here 3)"]),
    ],
)  # fmt: skip
def test_every_difference_is_named_with_both_values(changes, messages, tmp_path):
    path = saved(tmp_path / "a")
    with pytest.raises(ConfigError, match="was made with another model or other settings") as caught:
        load_checkpoint(path, replace(ORIGIN, **changes))
    assert all(message in str(caught.value) for message in messages), str(caught.value)
    assert str(caught.value).count("(here") == len(messages)


def test_all_differences_are_named_at_once(tmp_path):
    other = replace(
        ORIGIN, model="demo", window=Window(0, 1), num_denoise_steps=2, geometry=replace(GEOMETRY, head_dim=4)
    )
    with pytest.raises(ConfigError) as caught:
        load_checkpoint(saved(tmp_path / "a"), other)
    for name in ("model", "window.sink_chunks", "window.recent_chunks", "denoise_steps", "geometry.head_dim"):
        assert f"{name} " in str(caught.value)


def test_long_codecs_that_differ_at_their_end_differ(tmp_path):
    layers = {layer: ("int4", "int8")[layer % 2] for layer in range(30)}
    spec = replace(CACHE, num_layers=30, codecs=StreamCodecs("int2", layers=layers))
    other = replace(spec, codecs=StreamCodecs("int2", layers={**layers, 29: "int4"}))
    path = saved(tmp_path / "a", replace(example(), image=None), replace(ORIGIN, cache=spec))
    with pytest.raises(ConfigError, match=r"another model or other settings: cache\.codecs\.layers .{40,60} \(here"):
        load_checkpoint(path, replace(ORIGIN, cache=other))


def test_debug_checks_make_no_difference(tmp_path):
    load_checkpoint(saved(tmp_path / "a"), replace(ORIGIN, cache=replace(CACHE, debug_checks=True)))


def test_the_origin_is_looked_at_before_anything_is_made_of_the_file(tmp_path):
    fields, tensors = read_checked(saved(tmp_path / "a"), FORMAT, lambda _: None)
    write_checked(tmp_path / "a", FORMAT, {**fields, "video": None}, tensors)
    with pytest.raises(ConfigError, match="another model"):
        load_checkpoint(tmp_path / "a", replace(ORIGIN, model="demo"))


# ---------------------------------------------------------------------- files that are no checkpoints


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(place, bit, tmp_path_factory):
    path = saved(tmp_path_factory.mktemp("checkpoint") / "a")
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="/a "):
        load_checkpoint(path, ORIGIN)


@given(share=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_found(share, tmp_path_factory):
    path = saved(tmp_path_factory.mktemp("checkpoint") / "a")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ConfigError, match="/a "):
        load_checkpoint(path, ORIGIN)


def test_another_version_is_refused(tmp_path):
    write_checked(tmp_path / "a", "pagedvid checkpoint 2", {}, {})
    with pytest.raises(ConfigError, match="has the format 'pagedvid checkpoint 2'; this version of pagedvid reads"):
        load_checkpoint(tmp_path / "a", ORIGIN)


def test_klt_tables_are_no_checkpoint():
    tables = Path(__file__).parents[2] / "pagedvid/models/demo/weights/klt_tables.safetensors"
    with pytest.raises(ConfigError, match="has the format 'pagedvid klt tables"):
        load_checkpoint(tables, ORIGIN)


# ---------------------------------------------------------------------- impossible values


def changed(path: Path, change: Any) -> Path:
    """The example with `change` applied to fields and tensors, and a correct checksum."""
    fields, tensors = read_checked(saved(path), FORMAT, lambda _: None)
    change(fields["video"], tensors)
    write_checked(path, FORMAT, fields, tensors)
    return path


def set_field(*keys: Any) -> Any:
    *where, last, value = keys

    def change(video, _):
        for key in where:
            video = video[key]
        video[last] = value

    return change


def set_tensor(name: str, tensor: torch.Tensor) -> Any:
    return lambda _, tensors: tensors.update({name: tensor})


CHUNK = ("image", "branches", 0, "chunks", 0)
RECORDS = "image/0/0/records"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field("num_rounds_done", -1), "num_rounds_done is -1; it must be at least 0"),
        (set_field("num_frames_out", 1.0), "num_frames_out is 1.0, of type float"),
        (set_field("num_output_frames", True), "num_output_frames is True"),
        (set_field("extra", 1), "the video has missing or unknown fields: 'extra'"),
        (set_field("peak_bytes", [1]), "peak_bytes is"),
        (set_field("request", "num_frames", 0), "num_frames of request 'a' is 0"),
        (set_field("request", "prompt", 3), "prompt of a request is 3"),
        (set_field("request", {"id": "a"}), "the request has missing or unknown fields: 'inputs, keep"),
        (set_field("request", "inputs", {"file": {"path": 3}}), "which is no input"),
        (set_field("request", "inputs", {"file": {"run": "x"}}), "which is no input"),
        (set_field("request", "inputs", []), "the inputs are"),
        (set_field("image", 3), "the stream is 3; it must be an object"),
        (set_field("image", "window", "recent_chunks", 0), "recent_chunks is 0"),
        (set_field("image", "chunk_tokens", 0), "chunk_tokens is 0"),
        (set_field("image", "max_chunks", 2**41), "max_chunks is 2199023255552; it must be at most"),
        (set_field("image", "commits", [[1]]), "commits is"),
        (set_field("image", "commits", [[0, []]]), "num_tokens of a commit is 0"),
        (set_field("image", "commits", [[1, ["a"]]]), "drops is 'a'"),
        (set_field("image", "codecs", "history", "int3.7"), "int3.7"),
        (set_field("image", "codecs", "layers", [[0, 9, "int8"]]), "codecs are given for layer 9"),
        (set_field("image", "branches", 1, "name", "cond"), "the branch 'cond' is there twice"),
        (set_field("image", "branches", 1, "name", "other"), "branches 'cond, other', not cond, uncond"),
        (set_field("image", "branches", 0, "pinned", [1]), r"chunks \[1\] are pinned, but only \[0, 2\] are there"),
        (set_field("image", "branches", 0, "num_committed", 2), "chunk 2 is not kept after 2 commits"),
        (set_field("image", "branches", 0, "num_committed", 9), "chunk 2 is not kept after 9 commits"),
        (set_field("image", "branches", 0, "num_committed_tokens", 40), "chunk 2 has the tokens from 42 to 63 of 40"),
        (set_field("image", "branches", 0, "chunks", 1, "index", 0), r"the chunks \[0, 0\] are not in ascending order"),
        (set_field(*CHUNK, "num_tokens", 2**40), r"records' is uint8 .*; it must be uint8 \[[0-9]{10,}, 288\]"),
        (set_field(*CHUNK, "codecs", {"pair": "fp32", "layers": [], "heads": []}), "records"),
        (set_field(*CHUNK, "runs", [[2, [21]]]), "layer of runs is 2; it must be at most 1"),
        (set_field(*CHUNK, "runs", [[0, [20]]]), "the runs of layer 0 have 20 tokens, their chunk 21"),
        (set_field("image", None), "there are tensors that belong to nothing: '?image/0/0/alpha"),
        (set_tensor("image/0/2/records", torch.zeros(1)), "tensors that belong to nothing: 'image/0/2/records'"),
        (set_tensor(RECORDS, torch.zeros(3, 288, dtype=torch.uint8)), r"records' is uint8 \[3, 288\]; it must be"),
        (set_tensor("image/0/0/alpha", torch.zeros(2, 2).double()), r"alpha' is float64 \[2, 2\]; it must be float32"),
        (set_tensor("image/0/0/digests", torch.zeros(8, 15, dtype=torch.uint8)), "digests"),
        (lambda _, tensors: tensors.pop(RECORDS), f"the tensor '{RECORDS}' is missing"),
        (lambda _, tensors: tensors.pop("input/1/x"), "the tensor 'input/1/x' is missing"),
        (set_tensor("latents/3", torch.zeros(20, 6)), r"'latents/3' is float32 \[20, 6\]; it must be .* \[21, any\]"),
        (set_tensor("latents/3", torch.zeros(21, 6, dtype=torch.int32)), "it must be float32 or bfloat16 or float16"),
        (set_tensor("latents/03", torch.zeros(21, 6)), "'03' is not the number of a chunk"),
        (set_tensor("clean/x", torch.zeros(21, 6)), "'x' is not the number of a chunk"),
        (set_tensor("held/-1/cond", torch.zeros(21, 6)), "'-1' is not the number of a chunk"),
    ],
)  # fmt: skip
def test_impossible_values_are_refused(change, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"(?s)/a is no checkpoint that pagedvid writes: .*{message}"):
        load_checkpoint(changed(tmp_path / "a", change), ORIGIN)


def leaves(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values in JSON, containers among them."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [where, *(place for key, each in inner for place in leaves(each, (*where, key)))]


@settings(max_examples=100)
@given(data=st.data())
def test_whatever_stands_in_a_field_there_is_a_reason_or_a_snapshot(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "a"
    fields, _ = read_checked(saved(path), FORMAT, lambda _: None)
    *where, last = data.draw(st.sampled_from([place for place in leaves(fields["video"]) if place]))
    value = data.draw(
        json_values | st.integers(-2, 4) | st.sampled_from(["int2", [], {}, [[0, 0]], [[0, [21]]], 2**62])
    )
    changed(path, set_field(*where, last, value))
    try:
        snapshot = load_checkpoint(path, ORIGIN)
    except ConfigError as error:
        assert len(str(error)) < 1000 and "\n" not in str(error)
    else:
        assert_same(load_checkpoint(saved(path, snapshot), ORIGIN), snapshot)
