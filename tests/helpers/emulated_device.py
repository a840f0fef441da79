"""A GPU that the CPU computes: what the host asks of it is counted, by phase and line of the package.

A tensor on ``cuda:0`` is an :class:`OnGpu`, a wrapper around a tensor of the CPU with the dispatch keys of CUDA, so
that autograd, autocast and ``tensor.device`` behave as there. :class:`EmulatedGpu` sees every operation before the CPU
computes it, and notes what CUDA would do:

    wait            the host waits for the device
    pageable copy   an asynchronous copy from or to memory that is not pinned, which CUDA makes synchronous
    mixed devices   operands on two devices, where CUDA raises
    kernel          an operation that launches at least one kernel: all but views, allocations and copies over the bus
    bytes to device, bytes to host
    convolution     how its operands lie in memory, channels first or last

Needs a CUDA build of torch and the runtime of cuda_stub.c; tests/emulated_gpu.py starts a process with it.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
import torchvision  # noqa: F401  # registers its operations
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

import lvis_rcnn

GPU = torch.device("cuda", 0)
PACKAGE = f"{Path(lvis_rcnn.__file__).parent}/"
aten = torch.ops.aten

# Operations whose kernels' host code waits for the device: CUDA's own, by torch 2.15; nms ends in a masked_select.
WAITS = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.unique_consecutive.default: "unique_consecutive",
    aten.unique_dim.default: "unique",
    aten.unique_dim_consecutive.default: "unique_consecutive",
    aten._unique.default: "unique",
    aten._unique2.default: "unique",
    aten.equal.default: "equal",
    aten.bincount.default: "bincount",
    aten.histc.default: "histc",
    torch.ops.torchvision.nms.default: "nms",
}
NO_KERNEL = {
    aten._local_scalar_dense.default,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
    aten.set_.source_Storage_storage_offset,
}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
FILLED = {aten.masked_fill.Tensor, aten.masked_fill_.Tensor}
CONVOLUTIONS = {aten.convolution.default, aten.convolution_backward.default}


class OnGpu(torch.Tensor):
    """A tensor that says it is on ``GPU``; ``held`` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnGpu":
        assert not isinstance(held, OnGpu)
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        with torch.inference_mode(held.is_inference()):
            wrapper = torch.Tensor._make_wrapper_subclass(cls, held.shape, **layout, dtype=held.dtype, device=GPU)
        wrapper.held = held
        return wrapper

    def __repr__(self) -> str:
        return f"OnGpu({self.held!r})"

    def tolist(self) -> Any:
        """Torch's own reads the memory."""
        EmulatedGpu.active.note("wait", "tolist")
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Where the mode is off, as inside of an operation that is computed in parts."""
        return EmulatedGpu.active.run(func, args, kwargs or {})


def held(value: Any) -> Any:
    """A value as the CPU computes with it."""
    if isinstance(value, OnGpu):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value


def on_gpu(value: Any) -> Any:
    """A value that the CPU computed, as on the GPU."""
    return OnGpu(value) if isinstance(value, torch.Tensor) else value


def is_gpu(device: Any) -> bool:
    """Whether an operation's ``device`` is the GPU."""
    return device is not None and torch.device(device).type == "cuda"


@dataclass
class Phase:
    """What happened in a part of the program: how often what, and where."""

    name: str
    seen: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By kind (see above), what, and where."""

    def count(self, kind: str) -> int:
        """How often a kind was seen."""
        return sum(times for (of, _, _), times in self.seen.items() if of == kind)


class EmulatedGpu(TorchDispatchMode):
    """The device, while it is active as a mode; :func:`emulated_gpu` makes one."""

    active: ClassVar["EmulatedGpu"]

    def __init__(self) -> None:
        super().__init__()
        self.phases = [Phase("start")]
        self.current = self.phases[0]
        self.pinned: dict[int, StorageWeakRef] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what the block does as a phase of its own; one inside of it does not count for both."""
        before, self.current = self.current, Phase(name)
        self.phases.append(self.current)
        try:
            yield
        finally:
            self.current = before

    def note(self, kind: str, what: str, times: int = 1) -> None:
        """Count something where the program is now."""
        self.current.seen[kind, what, where()] += times

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation of this thread, also those on the CPU."""
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Note what an operation would ask of the device, and compute it."""
        with self:
            # In inference mode operations arrive whole that CUDA, too, computes in parts.
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:
            return parts
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        reads_gpu = any(isinstance(value, OnGpu) for value in tensors)
        to_gpu = is_gpu(kwargs["device"]) if kwargs.get("device") is not None else reads_gpu
        if func is aten._pin_memory.default:
            return self.pin(args[0].clone())
        if func is aten.is_pinned.default:
            return self.is_pinned(args[0])
        if kwargs.pop("pin_memory", None):
            return self.pin(func(*args, **kwargs))
        if func is aten._to_copy.default:
            return self.copied(args[0], kwargs, to_gpu)
        if func is aten.copy_.default:
            blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            self.note_copy(args[1], args[0], blocking)
            held(args[0]).copy_(held(args[1]))
            return args[0]
        if not (to_gpu or reads_gpu):
            return func(*args, **kwargs)
        if reads_gpu:
            self.look(func, args, kwargs, tensors)
        if not func.is_view and func not in NO_KERNEL:
            self.note("kernel", name_of(func))
        out = func(*tree_map(held, args), **tree_map(held, kwargs))
        if not to_gpu or not any(isinstance(value, torch.Tensor) for value in tree_leaves(out)):
            return out
        return return_and_correct_aliasing(func, args, kwargs, tree_map(on_gpu, out))

    def copied(self, source: torch.Tensor, kwargs: dict[str, Any], to_gpu: bool) -> torch.Tensor:
        """``source.to(...)``."""
        blocking = not kwargs.pop("non_blocking", False)
        copy = aten._to_copy.default(held(source), **{name: held(value) for name, value in kwargs.items()})
        result = OnGpu(copy) if to_gpu else copy
        if not to_gpu and isinstance(source, OnGpu) and not blocking:
            self.pin(copy)  # as torch does of its own accord
        self.note_copy(source, result, blocking)
        return result

    def note_copy(self, source: torch.Tensor, target: torch.Tensor, blocking: bool) -> None:
        """A copy within the device, over the bus, or on the host."""
        from_gpu, to_gpu = isinstance(source, OnGpu), isinstance(target, OnGpu)
        if from_gpu and to_gpu:
            self.note("kernel", "copy")
        if from_gpu == to_gpu:
            return
        direction, host = ("to device", source) if to_gpu else ("to host", target)
        self.note(f"bytes {direction}", "copy", source.numel() * source.element_size())
        # A copy that also converts goes through a pageable one.
        alike = source.dtype == target.dtype and (source.is_contiguous() == target.is_contiguous())
        pinned = self.is_pinned(host) and alike
        if blocking:
            self.note("wait", f"blocking copy {direction}{'' if pinned else ', pageable'}")
        elif not pinned and source.numel():
            self.note("pageable copy", direction)

    def look(self, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> None:
        """Whether CUDA would wait for an operation on the device, or raise."""
        if func in WAITS:
            self.note("wait", WAITS[func])
        elif func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
            self.note("wait", "repeat_interleave without output_size")
        elif func is aten.isin.Tensor_Tensor and args[1].numel() >= 10 * args[0].numel() ** 0.145:
            self.note("wait", "isin of many (its unique)")
        elif func in FILLED and isinstance(args[2], OnGpu):
            self.note("wait", "masked_fill with a value on the device")
        elif func in INDEXED:
            self.look_at_indices(func, args)
        elif func in CONVOLUTIONS:
            layouts = ", ".join(layout_of(value) for value in args[:3] if isinstance(value, torch.Tensor))
            self.note("convolution", f"{name_of(func)} {args[0].dtype} {layouts}")
        moved = args[1] if func in INDEXED else ()  # indices are copied where they are needed
        on_host = [x for x in tensors if not isinstance(x, OnGpu) and not any(x is one for one in moved)]
        # Numbers without a dimension are passed to kernels as arguments.
        if any(value.dim() for value in on_host):
            self.note("mixed devices", f"{func} with {[tuple(value.shape) for value in on_host]} on the host")

    def look_at_indices(self, func: Any, args: Any) -> None:
        """Masks and indices of the host among the indices of an ``index`` or ``index_put``."""
        indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
        masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
        fills = func is not aten.index.Tensor and args[2].numel() == 1 and len(indices) == 1
        if masks and not fills:
            self.note("wait", "boolean index")
        elif masks and isinstance(args[2], OnGpu):
            self.note("wait", "boolean assignment of a value on the device")
        for index in indices:
            if not isinstance(index, OnGpu) and index.dim():
                self.note("wait", "index on the host")

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count the tensor's memory as pinned."""
        reference = StorageWeakRef(tensor.untyped_storage())  # kept, so that no other storage gets its address
        self.pinned[reference.cdata] = reference
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether it lies in pinned memory."""
        return not isinstance(tensor, OnGpu) and tensor.untyped_storage()._cdata in self.pinned


def name_of(func: Any) -> str:
    """An operation's name, without its overload."""
    return str(func._schema.name).split("::")[-1]


def layout_of(tensor: torch.Tensor) -> str:
    """How channels lie in memory, first or last; of one channel or one cell there is no telling."""
    if tensor.dim() < 4 or min(tensor.shape[1], tensor.shape[2] * tensor.shape[3]) == 1:
        return "any"
    return "last" if tensor.is_contiguous(memory_format=torch.channels_last) else "first"


def where() -> str:
    """The innermost line of the package and the one that called it; of a gradient, whose."""
    lines: list[str] = []
    frame = sys._getframe(2)
    while frame is not None and len(lines) < 2:
        if (file := frame.f_code.co_filename).startswith(PACKAGE):
            lines.append(f"{file[len(PACKAGE) :]}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    node = torch._C._current_autograd_node()
    return " < ".join(lines) + (f" (gradient: {node.name()})" if node is not None else "")


class Event:
    """An event that has always happened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, *args: Any) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        EmulatedGpu.active.note("wait", "event.synchronize")


def answers(gpu: EmulatedGpu) -> dict[str, Callable[..., Any] | type]:
    """What ``torch.cuda`` says of the device."""
    properties = SimpleNamespace(total_memory=139 << 30, major=9, minor=0, multi_processor_count=132, name="emulated")
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "_lazy_init": lambda: None,
        "get_device_properties": lambda device=None: properties,
        "get_device_name": lambda device=None: properties.name,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "synchronize": lambda device=None: gpu.note("wait", "torch.cuda.synchronize"),
        "Event": Event,
    }


@contextmanager
def emulated_gpu() -> Iterator[EmulatedGpu]:
    """Run the block on an emulated GPU where it asks for ``cuda``; in a process of its own, for it changes torch."""
    gpu = EmulatedGpu.active = EmulatedGpu()
    # torch.tensor(..., device="cuda") shall be seen as a copy; a wrapper cannot take the place of a parameter's data.
    torch._C._set_only_lift_cpu_tensors(True)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.backends.cudnn.enabled = False  # the CPU has no kernels of that name
    _foreach_utils._foreach_supported_types.append(OnGpu)
    with (
        mock.patch.multiple(torch.cuda, **answers(gpu)),
        torch.autograd.set_multithreading_enabled(False),  # there is no thread for the device
        gpu,
    ):
        yield gpu
