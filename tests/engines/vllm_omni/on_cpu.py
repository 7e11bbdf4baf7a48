"""What vLLM-Omni needs of a machine, on one CPU. conftest.py imports it before anything of vllm_omni.

It has no platform for CPUs, only one that leaves most open; torchvision on PyPI is built for CUDA, and the models take
a few image functions from it that are not called here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import diffusers  # noqa: F401  # before torchvision's stand-in: they ask whether it is installed
import torch
import transformers  # noqa: F401

SDPA = "vllm_omni.diffusion.attention.backends.sdpa.SDPABackend"


class _StandIn(ModuleType):
    """A module from which anything can be imported, but nothing used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if f"{self.__name__}.{name}" in sys.modules:
            return sys.modules[f"{self.__name__}.{name}"]

        def unusable(*args: object, **kwargs: object) -> None:
            raise NotImplementedError(f"{self.__name__}.{name} is not here on a CPU")

        return unusable


_NAMES = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
sys.modules.update({_name: _StandIn(_name) for _name in _NAMES})

from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config  # noqa: E402
from vllm_omni.diffusion.attention.backends.sdpa import SDPAImpl  # noqa: E402
from vllm_omni.diffusion.distributed import parallel_state  # noqa: E402
from vllm_omni.platforms.interface import UnspecifiedOmniPlatform  # noqa: E402

for _name, _value in {
    "get_diffusion_attn_backend_cls": SDPA,
    "get_free_memory": 1 << 30,
    "is_available": False,
    "synchronize": None,
    "reset_peak_memory_stats": None,
    "max_memory_reserved": 0,
    "max_memory_allocated": 0,
}.items():
    setattr(UnspecifiedOmniPlatform, _name, classmethod(lambda *_, value=_value, **__: value))
SDPAImpl.forward = SDPAImpl.forward_cuda  # PyTorch's scaled_dot_product_attention; for the attention over texts


@contextmanager
def one_rank(folder: Path) -> Iterator[VllmConfig]:
    """vLLM-Omni's process groups with this process alone. `folder`: an empty one, for the rendezvous."""
    config = VllmConfig(device_config=DeviceConfig("cpu"))
    method = f"file://{folder / 'rendezvous'}"
    with set_current_vllm_config(config):
        torch.distributed.init_process_group("gloo", init_method=method, world_size=1, rank=0)
        parallel_state.init_distributed_environment(1, 0, method, 0, "gloo")
        parallel_state.initialize_model_parallel(backend="gloo")
        yield config
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
