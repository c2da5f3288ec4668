"""A CUDA device that is not there: its tensors have shapes, types and a place, but no values.

For machines with torch for CPUs and a C++ compiler. Import it before torch, which looks for devices once. Inside a
`FakeGPU` tensors on the CPU are real, tensors on `cuda` are torch's fake ones, and whatever is done with them is
written down: kernels, copies, and where the host has to wait for the device.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[1]
PACKAGES = ("otherside", "lightning_modules", "datamodules")
DEVICE = Path(__file__).with_name("fake_cuda.cpp")


def compiler() -> str | None:
    """A C++ compiler, if there is one."""
    return shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


def load_device() -> None:
    """Give torch, which must not be imported yet, a device that autograd accepts."""
    if "torch" in sys.modules:
        raise RuntimeError("fake_gpu must be imported before torch, which looks for devices once")
    spec = importlib.util.find_spec("torch")
    assert spec and spec.submodule_search_locations
    home, command = Path(spec.submodule_search_locations[0]), compiler()
    if command is None:
        raise RuntimeError("a fake GPU needs a C++ compiler; found none of c++, g++, clang++. Install one.")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fake_cuda.so"
        options = ["-shared", "-fPIC", "-std=c++20", f"-I{home / 'include'}", str(DEVICE), "-o", str(library)]
        options += [f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}", "-lc10", "-ltorch_cpu"]
        subprocess.run([command, *options], check=True)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


load_device()

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map_only  # noqa: E402

aten = torch.ops.aten
WRITTEN_OUT = F.scaled_dot_product_attention
CUDA = torch.device("cuda", 0)
# Allocate, or say something about a tensor, but start no kernel
FREE = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "is_same_size"}
FILLS = {"fill", "zero", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones"}
FILLS |= {"new_full", "arange"}
GATHERS = {"embedding", "index_select", "index", "gather"}  # read as much as they write, not all of their input
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
ATTENTION = ("varlen_attn", "flash_attention", "efficient_attention")
SKINNY = 64  # a product with a side as short as an adapter's rank is bound by memory
UNKNOWN = 5  # a result whose size the host must ask for is taken to be a fifth of its input


@dataclass(frozen=True)
class Peaks:
    """What the device is taken to reach; the defaults are an H100 SXM's, as its users report them.

    Args:
        matmul: operations a second of a large product in half precision.
        float32: of one in float32.
        attention: operations a second of fused attention's forward.
        attention_backward: of its backward.
        bandwidth: bytes a second to and from memory.
        least: seconds that a kernel takes at least.
    """

    matmul: float = 616e12
    float32: float = 50e12
    attention: float = 380e12
    attention_backward: float = 320e12
    bandwidth: float = 2.85e12
    least: float = 2.5e-6


@dataclass(frozen=True)
class Kernel:
    """One kernel: what kind, and what it is modelled to cost."""

    kind: str
    bytes: int
    seconds: float


class FakeGPU(TorchDispatchMode):
    """Inside the block there is one CUDA device, whose tensors are fake.

    Attributes:
        kernels: in the order in which they were started.
        waits: how often the host waits for the device, by reason and source line.
        sent: bytes copied to the device.
    """

    def __init__(self, peaks: Peaks = Peaks()) -> None:
        super().__init__()
        self.peaks = peaks
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._patches = ExitStack()
        self._pinned: dict[int, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Forget what was written down."""
        self.kernels: list[Kernel] = []
        self.waits: Counter[str] = Counter()
        self.sent = 0

    def take(self, module: torch.nn.Module) -> None:
        """Put a module's weights and buffers on the device, wherever they are."""
        for part in module.modules():
            for name, weight in part.named_parameters(recurse=False):
                moved = self._new(weight.shape, weight.dtype)
                part._parameters[name] = torch.nn.Parameter(moved, weight.requires_grad)
            for name, buffer in part.named_buffers(recurse=False):
                part._buffers[name] = self._new(buffer.shape, buffer.dtype)

    def __enter__(self) -> FakeGPU:
        for owner, name, value in (
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True),
            (torch.cuda, "get_device_capability", lambda *args: (9, 0)),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (F, "scaled_dot_product_attention", fused_attention),
        ):
            self._patches.enter_context(mock.patch.object(owner, name, value))
        before = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(…, device=…)` makes, then copies, where we see it
        self._patches.callback(torch._C._set_only_lift_cpu_tensors, before)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        inputs = [x for x in tensors if isinstance(x, FakeTensor)]
        device, name = kwargs.get("device"), func.overloadpacket.__name__
        to_gpu = device is not None and torch.device(device).type == "cuda"
        if not inputs and not (to_gpu and name not in ("is_pinned", "_pin_memory")):
            return self._on_cpu(name, func, args, kwargs)
        if name == "_local_scalar_dense":
            self._wait("item")
            return 1.0 if inputs[0].is_floating_point() else 0
        if name == "nonzero":
            self._wait("nonzero")
            return self._new((inputs[0].numel() // UNKNOWN, inputs[0].dim()), torch.int64)
        if name in ("_to_copy", "copy_") and (moved := self._copied(name, args, kwargs, device)) is not None:
            return moved
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            chosen = [i for i in args[1] if i is not None]
            if any(i.dtype == torch.bool for i in chosen):
                self._wait("boolean index")
                if name == "index":
                    return self._new((args[0].shape[0] // UNKNOWN, *args[0].shape[1:]), args[0].dtype)
            elif any(not isinstance(i, FakeTensor) for i in chosen):
                self._wait("index on the CPU")
        check_types(name, inputs)
        if len(inputs) < len(tensors):
            args, kwargs = (tree_map_only(Tensor, self._faked, part) for part in (args, kwargs))
        with self.fake:
            out = func(*args, **kwargs)
        self._count(name, func, args, inputs, [x for x in tree_leaves(out) if isinstance(x, Tensor)])
        return out

    def _on_cpu(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if name == "is_pinned":
            return self._is_pinned(args[0])
        if name == "_pin_memory":
            copy = args[0].clone()
            self._pinned[copy.untyped_storage().data_ptr()] = copy
            return copy
        return func(*args, **kwargs)

    def _copied(self, name: str, args: Any, kwargs: Any, device: Any) -> Tensor | None:
        """Of a copy between host and device, what it returns; None for other copies, which are kernels."""
        source = args[1] if name == "copy_" else args[0]
        target = torch.device(device) if device is not None else args[0].device
        calm = kwargs.get("non_blocking", args[2] if name == "copy_" and len(args) > 2 else False)
        if isinstance(source, FakeTensor) == (target.type == "cuda"):
            return None
        if isinstance(source, FakeTensor):
            if not (calm and name == "copy_" and self._is_pinned(args[0])):
                self._wait("copy to the host")
            return args[0] if name == "copy_" else torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if not (calm and self._is_pinned(source)):
            self._wait("copy to the device")
        self.sent += source.numel() * source.element_size()
        return args[0] if name == "copy_" else self._new(source.shape, kwargs.get("dtype") or source.dtype)

    def _is_pinned(self, x: Tensor) -> bool:
        return x.numel() == 0 or x.untyped_storage().data_ptr() in self._pinned

    def _wait(self, why: str) -> None:
        self.waits[f"{why}: {line()}"] += 1

    def _new(self, shape: Any, dtype: torch.dtype) -> Tensor:
        with self.fake:
            return torch.empty(shape, dtype=dtype, device=CUDA)

    def _faked(self, x: Tensor) -> Tensor:
        return x if isinstance(x, FakeTensor) else self.fake.from_tensor(x)

    def _count(self, name: str, func: Any, args: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        base = name.rstrip("_")
        if func.namespace == "prim" or func.is_view or name in FREE or not outputs:
            return
        written = sum(map(size, outputs))
        moved = 2 * written if base in GATHERS else written + sum(map(size, inputs))
        kind, peak, operations = base, self.peaks.matmul, 0.0
        if base in PRODUCTS:
            a, b = [x for x in inputs if x.dim() >= 2][-2:]
            operations = 2.0 * a.numel() * b.shape[-1]
            half = a.dtype in (torch.float16, torch.bfloat16)
            peak = self.peaks.matmul if half else self.peaks.float32
            kind = "matmul" if half else "matmul in float32"
            kind = "matmul of adapters" if min(*a.shape[-2:], b.shape[-1]) <= SKINNY else kind
        elif any(part in name for part in ATTENTION):
            backward = "backward" in name
            query = inputs[1] if backward else inputs[0]
            longest = query.shape[2] if query.dim() == 4 else next(n for n in args if type(n) is int)
            operations = 4.0 * (2.5 if backward else 1) * query.numel() * longest
            peak = self.peaks.attention_backward if backward else self.peaks.attention
            kind = "attention"
        elif base in FILLS:
            kind = "fill"
        seconds = max(operations / peak, moved / self.peaks.bandwidth, self.peaks.least)
        self.kernels.append(Kernel(kind, moved, seconds))


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """SDPA by the kernel that torch is expected to choose, which a build for CPUs does not know of: flash without a
    mask, memory-efficient with one; else written out.
    """
    if query.is_cuda and attn_mask is None and query.dtype in (torch.float16, torch.bfloat16):
        flash = aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    if query.is_cuda and not enable_gqa:
        if attn_mask is not None:
            bias = torch.where(attn_mask, 0.0, float("-inf")).to(query.dtype)
            attn_mask = bias.expand(*query.shape[:3], key.shape[2])
        efficient = aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
    options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    return WRITTEN_OUT(query, key, value, attn_mask, dropout_p, is_causal, **options)


def check_types(name: str, inputs: list[Tensor]) -> None:
    """Raise a RuntimeError for a product of two types, which fake tensors let pass."""
    types = sorted({str(x.dtype) for x in inputs})
    if name.rstrip("_") in PRODUCTS and len(types) > 1:
        raise RuntimeError(f"{name} must have operands of one type; got {', '.join(types)}")


def size(x: Tensor) -> int:
    """Bytes in memory; what is broadcast counts once."""
    return math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride) * x.element_size()


def line() -> str:
    """The line of this project that is being run, or of Lightning where it is none of ours."""
    frame, other = sys._getframe(1), "?"
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno} {frame.f_code.co_name}"
        if other == "?" and "lightning" in path.parts:
            other = f"{'/'.join(path.parts[-3:])}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return other
