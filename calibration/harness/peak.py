"""Peak memory of one call: what the allocator hands out, on a GPU and on a CPU alike.

CUDA counts it by itself. On a CPU every tensor operation is watched: a storage counts from the operation
that made it until its last reference is gone. Bytes of tensors, not of the process; what a kernel
takes for itself while it runs is seen on CUDA only.
"""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Callable
from typing import Any

from calibration.harness.points import torch_module


def peak_bytes(run: Callable[[], object], device: str) -> float:
    """Bytes that live at the peak of `run`, above what stood before it."""
    gc.collect()
    if not device.startswith("cuda"):
        return float(_watched(run))
    cuda = torch_module().cuda
    cuda.synchronize(device)
    before = cuda.memory_allocated(device)
    cuda.reset_peak_memory_stats(device)
    run()
    cuda.synchronize(device)
    return float(cuda.max_memory_allocated(device) - before)


class LiveBytes:
    """Bytes of the storages seen that are still alive, and their largest sum so far."""

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def see(self, storage: Any) -> None:
        """Count a storage that is not counted yet."""
        name, size = id(storage), int(storage.nbytes())
        if name in self._seen or not size:
            return

        def gone(_: object) -> None:
            self._seen.pop(name, None)
            self.live -= size

        self._seen[name] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def _watched(run: Callable[[], object]) -> int:
    """Peak of the CPU storages made during `run`; those that stood before it do not count."""
    mode = importlib.import_module("torch.utils._python_dispatch").TorchDispatchMode
    leaves = importlib.import_module("torch.utils._pytree").tree_leaves
    tensor = torch_module().Tensor
    count = LiveBytes()
    kept: dict[int, Any] = {}  # storages that stood before: held, so that their ids stay theirs

    class Watch(mode):  # type: ignore[misc, valid-type]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            for given in leaves((args, kwargs)):
                if isinstance(given, tensor):
                    storage = given.untyped_storage()
                    if id(storage) not in count._seen:
                        kept.setdefault(id(storage), storage)
            for result in leaves(made):
                if isinstance(result, tensor) and id(result.untyped_storage()) not in kept:
                    count.see(result.untyped_storage())
            return made

    with Watch():
        run()
    return count.peak
