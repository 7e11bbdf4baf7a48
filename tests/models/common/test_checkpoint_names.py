"""Names of tensors under what training and other programs wrap around a network."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pagedvid.errors import ConfigError
from pagedvid.models.common.checkpoint import load_checkpoint, tensor_shapes
from pagedvid.models.common.checkpoint_names import WRAPPERS, plain_name
from pagedvid.models.demo.network import Transformer
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.models.magi1.network import MagiNetwork
from pagedvid.models.magi1.spec import PUBLISHED
from pagedvid.models.wan.base.names import library_name
from pagedvid.models.worldplay.network_8b import Network8B
from pagedvid.models.worldplay.network_wan5b import NetworkWan5B
from pagedvid.models.worldplay.spec import Config8B, ConfigWan5B
from tests.models.wan.base.published import converted_names
from tests.models.wan.base.tiny import tiny_transformer

NAME = "blocks.0.self_attn.q.weight"


def wrapped(name: str, places: list[tuple[int, str]]) -> str:
    """The name with wrappers before the given segments."""
    segments = name.split(".")
    for place, wrapper in sorted(places, reverse=True):
        segments.insert(place, wrapper)
    return ".".join(segments)


@pytest.mark.parametrize("outer", sorted(WRAPPERS))
def test_two_wrappers_anywhere_and_in_any_order_are_taken_off(outer):
    for inner, first, second in itertools.product(sorted(WRAPPERS), range(5), range(5)):
        published = wrapped(NAME, [(first, outer), (second, inner)])
        assert plain_name(published) == NAME, published
        assert library_name(published) == "blocks.0.attn1.to_q.weight"


def test_every_name_of_wan_survives_deep_nesting():
    draw = random.Random(0)
    for original, converted in converted_names(2).items():
        depth = len(original.split("."))
        places = [(draw.randrange(depth), draw.choice(sorted(WRAPPERS))) for _ in range(6)]
        assert library_name(wrapped(original, places)) == converted


def test_the_last_segment_is_a_tensor_and_stays():
    assert plain_name("module.model") == "model" and plain_name("modules.model_a.w") == "modules.model_a.w"


def networks() -> dict[str, nn.Module]:
    with torch.device("meta"):
        return {
            "demo": Transformer(TransformerConfig()),
            "magi": MagiNetwork(PUBLISHED["magi-1-4.5b"].network),
            "8b": Network8B(Config8B()),
            "5b": NetworkWan5B(ConfigWan5B()),
            "wan": tiny_transformer("WanTransformer3DModel"),
            "skyreels": tiny_transformer("SkyReelsV2Transformer3DModel"),
        }


def test_no_network_has_a_module_that_is_called_like_a_wrapper():
    for model, network in networks().items():
        names = list(network.state_dict())
        assert names and [plain_name(name) for name in names] == names, model


def test_names_of_the_library_s_own_layout_stay():
    assert all(library_name(name) == name for name in tiny_transformer("WanTransformer3DModel").state_dict())


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)


def test_wrapped_weights_are_loaded_by_every_loader_of_plain_names(tmp_path: Path):
    file, weights = tmp_path / "w.safetensors", {"a.weight": torch.randn(2, 2), "b.weight": torch.randn(2, 2)}
    save_file({f"module._orig_mod.{name}": x for name, x in weights.items()}, file)
    module = Two()
    load_checkpoint(module, file)
    assert torch.equal(module.a.weight, weights["a.weight"]) and torch.equal(module.b.weight, weights["b.weight"])
    assert tensor_shapes(file) == dict.fromkeys(weights, (2, 2))


def test_two_names_for_one_tensor_are_refused(tmp_path: Path):
    x = torch.zeros(2, 2)
    save_file({"a.weight": x, "module.a.weight": x.clone(), "b.weight": x.clone()}, tmp_path / "w.safetensors")
    for call in (tensor_shapes, lambda file: load_checkpoint(Two(), file)):
        with pytest.raises(ConfigError, match=r"holds a.weight and module.a.weight; only one of them can be a.weight"):
            call(tmp_path / "w.safetensors")


def test_two_names_that_are_renamed_to_one_are_refused(tmp_path: Path):
    save_file({name: torch.zeros(2, 2) for name in ("old_a.weight", "a.weight")}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"holds .*a.weight and .*a.weight; only one of them can be a.weight"):
        load_checkpoint(Two(), tmp_path / "w.safetensors", rename=lambda name: name.removeprefix("old_"))


@pytest.mark.parametrize("prefer_ema", [True, False])
@pytest.mark.parametrize("form", ["pt", "safetensors"])
def test_averaged_or_last_weights_are_chosen_in_tables_and_in_flat_names(form, prefer_ema, tmp_path: Path):
    def table(value: float) -> dict[str, torch.Tensor]:
        return {f"model.{part}.weight": torch.full((2, 2), value) for part in "ab"}

    tables = {"generator": table(1.0), "generator_ema": table(2.0), "critic": {"x": torch.zeros(1)}}
    file = tmp_path / f"w.{form}"
    if form == "pt":
        torch.save(tables, file)
    else:
        save_file({f"{key}.{name}": x for key, own in tables.items() for name, x in own.items()}, file)
    module = Two()
    load_checkpoint(module, file, prefer_ema=prefer_ema)
    assert module.a.weight.unique().tolist() == [2.0 if prefer_ema else 1.0]
    assert module.b.weight.unique().tolist() == [2.0 if prefer_ema else 1.0]


def test_an_empty_table_of_averages_gives_way_to_a_full_one_with_a_warning(tmp_path: Path):
    file = tmp_path / "w.pt"
    torch.save({"generator_ema": {}, "generator": {f"model.{p}.weight": torch.ones(2, 2) for p in "ab"}}, file)
    with pytest.warns(UserWarning, match=r"the table 'generator_ema' is empty; 'generator' is taken in its place"):
        load_checkpoint(Two(), file)
