"""Stand-ins for packages that only a GPU needs, so that a trainer's own checks can be imported without one.

Nothing that checks is replaced: a stub is a module whose every name is an object that takes any call.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
import typing
from typing import Any

STUB_VERSION = "2.9.0"  # what a stub of Transformer Engine calls itself: newer than any check asks for


class Anything:
    """Takes every call, attribute and index; as a decorator it returns what it decorates."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.__name__ = self.__qualname__ = "stub"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        decorates = len(args) == 1 and not kwargs and callable(args[0]) and not isinstance(args[0], Anything)
        return args[0] if decorates else Anything()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __getitem__(self, key: Any) -> Any:
        return Anything()

    def __or__(self, other: Any) -> Any:
        return Anything()

    __ror__ = __or__

    def __mro_entries__(self, bases: Any) -> tuple[type, ...]:
        return (type("StubBase", (), {}),)


class Stub(types.ModuleType):
    __version__ = STUB_VERSION

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if any(name == stubbed or name.startswith(stubbed + ".") for stubbed in self.names):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        return Stub(spec.name)

    def exec_module(self, module: Any) -> None:
        pass


def install(*names: str) -> None:
    """Stub these packages. What of torch looks at triton is imported first: it must see the machine as it is."""
    import torch
    import torch._inductor.compile_fx
    import torch.utils.flop_counter

    class Properties:
        major, minor, multi_processor_count, total_memory, name = 9, 0, 132, 80 << 30, "H100"

    torch.cuda.get_device_capability = lambda *a, **k: (9, 0)
    torch.cuda.get_device_properties = lambda *a, **k: Properties()
    torch.cuda.device_count = lambda: 8
    if not hasattr(typing, "override"):  # the wheels ask for Python 3.12
        typing.override = lambda method: method  # type: ignore[attr-defined]
    sys.meta_path.insert(0, Finder(names))
