"""Wan transformers from GGUF files, in the names of Wan's repository, as ComfyUI's users have them."""

from __future__ import annotations

import pytest
import torch

from pagedvid.models.common.fp8_linear import Fp8Linear
from tests.models.common.gguf_files import write_gguf
from tests.models.specs import load_model, spec_of
from tests.models.wan.base.published import converted_names, original_table, write_heads
from tests.models.wan.base.tiny import embeddings, engine_of, generate, tiny_transformer

SIZE = {"height": 48, "width": 80}


def write(folder, kind: str):
    """Linear layers of the blocks in `kind`, the rest in F32; returns the file and its weights by diffusers' names."""
    tensors = original_table(tiny_transformer("WanTransformer3DModel"), prefix="")
    linears = [name for name, tensor in tensors.items() if tensor.ndim == 2 and name.startswith("blocks.")]
    in_blocks = [name for name in linears if tensors[name].shape[1] % 32 == 0]
    stored = write_gguf(folder / "wan.gguf", tensors, dict.fromkeys(in_blocks, kind))
    write_heads(folder)
    names = converted_names(2)
    return folder / "wan.gguf", {names[name]: torch.from_numpy(values) for name, values in stored.items()}


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_weights_are_those_that_the_library_decodes(kind, tmp_path):
    file, stored = write(tmp_path, kind)
    loaded = load_model("self-forcing", file, **SIZE).transformer.state_dict()
    assert loaded.keys() == stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(loaded[name].double(), tensor), name
    geometry = spec_of("self-forcing", file, **SIZE).geometry
    assert (geometry.num_layers, geometry.num_kv_heads, geometry.head_dim) == (2, 2, 16)


def test_a_folder_with_one_file_and_weights_in_eight_bits_make_a_video(tmp_path):
    _, stored = write(tmp_path, "Q8_0")
    model = load_model("self-forcing", tmp_path, weights_dtype="fp8", offload=True, **SIZE)
    for name, module in model.transformer.named_modules():
        if isinstance(module, Fp8Linear):
            weight = stored[f"{name}.weight"]
            error = (module.weight.double() * module.row_scales.double() - weight).abs()
            assert bool((error <= weight.abs().amax(dim=1, keepdim=True) / 16).all()), name
    video = generate(engine_of(model), {"a": embeddings(1)}, [6])["a"]
    assert video.shape[0] == 6 and bool(video.isfinite().all())
