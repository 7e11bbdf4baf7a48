"""Which library attends where, and the reasons of the others."""

from __future__ import annotations

import importlib.metadata
import sys
from types import SimpleNamespace

import pytest
import torch

from pagedvid.attention.dense import choice
from pagedvid.attention.dense.base import missing, missing_operator
from pagedvid.attention.dense.choice import (
    PROVIDERS,
    choose_fp8_provider,
    choose_provider,
    fp8_is_faster,
    fp8_provider_reasons,
    provider_reasons,
)
from pagedvid.errors import BackendError
from tests.attention.dense import libraries

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def on_capability(monkeypatch):
    """Makes up a device of some compute capability, in a PyTorch that was built with CUDA and cuDNN."""

    def pretend(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)

    return pretend


@pytest.fixture
def all_libraries(monkeypatch):
    """Installs stand-ins of all libraries."""
    libraries.flash_attn_4(monkeypatch)
    cute = sys.modules["flash_attn.cute"]
    libraries.flash_attn_2(monkeypatch)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    libraries.flash_attn_3(monkeypatch)
    libraries.xformers(monkeypatch)
    distributions(monkeypatch, "flash-attn", "flash-attn-4", "xformers")


def distributions(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Makes up what is installed."""

    def version(name: str) -> str:
        if name not in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("pagedvid.attention.dense.flash_attn_4.version", version)


def usable(reasons: dict[str, list[str]]) -> list[str]:
    return [name for name, why in reasons.items() if not why]


# ---------------------------------------------------------------- order


def test_the_cpu_has_one_provider_and_reasons_for_the_others() -> None:
    reasons = provider_reasons(CPU, torch.bfloat16, 128)
    assert list(reasons) == list(PROVIDERS)
    assert reasons.pop("torch-cpu") == []
    assert all(why == ["it runs on cuda, not on cpu"] for why in reasons.values()), reasons
    assert choose_provider(CPU, torch.float32, 64).name == "torch-cpu"


def test_no_provider_is_an_error_with_all_reasons(monkeypatch) -> None:
    monkeypatch.delitem(choice.PROVIDERS, "torch-cpu")
    with pytest.raises(BackendError, match=r"no library for dense attention can run on cpu: .* xformers: "):
        choose_provider(CPU, torch.float32, 64)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 5), []),
        ((8, 0), ["flash-attn-2", "torch-cudnn", "torch-flash", "xformers", "torch-efficient"]),
        (
            (9, 0),
            [
                *("flash-attn-3", "flash-attn-4", "torch-cudnn", "flash-attn-2"),
                *("torch-flash", "xformers", "torch-efficient"),
            ],
        ),
        ((10, 0), ["flash-attn-4", "torch-cudnn", "flash-attn-2", "torch-flash", "xformers", "torch-efficient"]),
    ],
    ids=str,
)
def test_what_each_device_may_use_in_order(
    on_capability, all_libraries, capability: tuple[int, int], expected: list[str]
) -> None:
    """All libraries installed, head_dim 128; the device is made up."""
    on_capability(*capability)
    assert usable(provider_reasons(CUDA, torch.bfloat16, 128)) == expected
    in_float32 = provider_reasons(CUDA, torch.float32, 128)
    assert usable(in_float32) == (["torch-efficient"] if expected else [])
    assert "float32 activations; it takes bfloat16 and float16" in in_float32["flash-attn-2"]


def test_head_sizes(on_capability, all_libraries) -> None:
    on_capability(9, 0)
    large = provider_reasons(CUDA, torch.bfloat16, 256)
    assert usable(large) == ["flash-attn-3", "flash-attn-2", "torch-flash", "xformers", "torch-efficient"]
    assert large["torch-cudnn"] == ["head_dim 256; it takes multiples of 8 up to 128"]
    assert usable(provider_reasons(CUDA, torch.bfloat16, 512)) == ["torch-efficient"]
    assert usable(provider_reasons(CUDA, torch.bfloat16, 100)) == []


# ---------------------------------------------------------------- libraries that cannot do what is needed


def test_bare_pytorch_takes_cudnn(on_capability) -> None:
    on_capability(9, 0)
    reasons = provider_reasons(CUDA, torch.bfloat16, 128)
    assert usable(reasons) == ["torch-cudnn", "torch-flash", "torch-efficient"]
    assert reasons["flash-attn-2"] == ["flash_attn is not installed (pip install flash-attn)"]
    assert reasons["flash-attn-4"] == ["flash-attn-4 is not installed (pip install flash-attn-4)"]


@pytest.mark.parametrize(("cudnn", "reason"), [(None, "cuDNN is missing"), (8907, "cuDNN 8907")])
def test_old_cudnn(monkeypatch, on_capability, cudnn: int | None, reason: str) -> None:
    on_capability(9, 0)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    assert provider_reasons(CUDA, torch.bfloat16, 128)["torch-cudnn"] == [f"{reason}; it needs 90000 or newer"]


def test_the_folder_cute_of_flash_attn_2_is_not_flash_attn_4(monkeypatch, on_capability) -> None:
    """flash-attn 2.8.3 ships an early `flash_attn/cute`, whose import fails."""
    on_capability(9, 0)
    libraries.flash_attn_2(monkeypatch)
    distributions(monkeypatch, "flash-attn")
    reasons = provider_reasons(CUDA, torch.bfloat16, 128)
    assert reasons["flash-attn-4"] == ["flash-attn-4 is not installed (pip install flash-attn-4)"]
    assert reasons["flash-attn-2"] == []


def test_flash_attn_4_alone_is_not_flash_attn_2(monkeypatch, on_capability) -> None:
    """Its wheel brings a folder `flash_attn` without version 2 in it."""
    on_capability(9, 0)
    libraries.flash_attn_4(monkeypatch)
    distributions(monkeypatch, "flash-attn-4")
    reasons = provider_reasons(CUDA, torch.bfloat16, 128)
    assert reasons["flash-attn-2"] == ["flash_attn has no flash_attn_func (pip install flash-attn)"]
    assert reasons["flash-attn-4"] == []


def test_an_early_flash_attn_4_lacks_what_is_called(monkeypatch, on_capability) -> None:
    on_capability(9, 0)
    libraries.install(
        monkeypatch, "flash_attn.cute", flash_attn_func=lambda q, k, v, softmax_scale=None, causal=False: None
    )
    distributions(monkeypatch, "flash-attn-4")
    reasons = provider_reasons(CUDA, torch.bfloat16, 128)
    assert reasons["flash-attn-4"] == ["flash_attn.cute.flash_attn_func does not take return_lse"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import cuda_of_nowhere", "broken_library cannot be imported: No module named 'cuda_of_nowhere'"),
        ("raise OSError('libfoo.so: undefined symbol')", "broken_library cannot be imported: libfoo.so: undefined"),
        ("raise RuntimeError('built for torch 1.0')", "broken_library cannot be imported: built for torch 1.0"),
        ("", "broken_library has no attend (get it)"),
        ("def attend(q): pass", "broken_library.attend does not take k, scale"),
    ],
)
def test_a_library_that_does_not_work_is_a_reason(monkeypatch, tmp_path, source: str, reason: str) -> None:
    (tmp_path / "broken_library.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_library", raising=False)
    [found] = missing("broken_library", "attend", ("q", "k", "scale"), "get it")
    assert found.startswith(reason)


def test_missing_names_the_library() -> None:
    assert missing("no_such_library.inner", "f", (), "get it") == ["no_such_library.inner is not installed (get it)"]
    assert missing("json", "dumps", ("indent",), "") == []


def test_missing_operators() -> None:
    assert missing_operator("_no_such_operator", ()) == [f"torch {torch.__version__} has no operator _no_such_operator"]
    [reason] = missing_operator("_flash_attention_forward", ("query", "sinks"))
    assert reason.endswith("does not take sinks")


# ---------------------------------------------------------------- FP8


def test_fp8_on_each_device(monkeypatch, on_capability) -> None:
    assert choose_fp8_provider(CPU, torch.float32, 64).name == "torch-cpu-fp8"
    assert not fp8_is_faster(CPU, torch.float32, 64)
    libraries.flash_attn_3(monkeypatch)
    on_capability(9, 0)
    assert choose_fp8_provider(CUDA, torch.bfloat16, 128).name == "flash-attn-3-fp8"
    assert fp8_is_faster(CUDA, torch.bfloat16, 128)
    reasons = fp8_provider_reasons(CUDA, torch.bfloat16, 72)
    assert reasons["flash-attn-3-fp8"] == ["head_dim 72; it takes multiples of 16 up to 256"]
    on_capability(10, 0)
    with pytest.raises(BackendError, match=r"no library for FP8 attention .* compute capability 10.0"):
        choose_fp8_provider(CUDA, torch.bfloat16, 128)


def test_fp8_needs_a_build_with_it(monkeypatch, on_capability) -> None:
    on_capability(9, 0)
    libraries.older_flash_attn_3(monkeypatch)
    [reason] = fp8_provider_reasons(CUDA, torch.bfloat16, 128)["flash-attn-3-fp8"]
    assert reason.endswith("does not take q_descale, k_descale, v_descale, return_attn_probs")
    libraries.flash_attn_3(monkeypatch)
    config = SimpleNamespace(CONFIG={"build_flags": {"FLASHATTENTION_DISABLE_FP8": True}})
    monkeypatch.setitem(sys.modules, "flash_attn_config", config)
    [reason] = fp8_provider_reasons(CUDA, torch.bfloat16, 128)["flash-attn-3-fp8"]
    assert reason == "flash_attn_interface was built with FLASHATTENTION_DISABLE_FP8"
