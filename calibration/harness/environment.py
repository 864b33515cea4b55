"""What a measurement was made on: device, driver, library versions, host, date; and clocks and power.

nvidia-ml-py is used where it is importable, else the fields stay empty: a row without a clock is
still a row.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from calibration.harness.points import torch_module


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Device, software and host of a run. mem_bytes is the device's memory (a CPU's: the host's); capability as "9.0".

    threads: CPU threads that a rank computes with. A CPU at one thread is another device than at two, so
    its name says how many.
    """

    device: str
    device_type: str
    driver: str
    torch: str
    cuda: str
    cudnn: str
    nccl: str
    capability: str
    mem_bytes: int
    host_mem_bytes: int
    multiprocessors: int
    l2_bytes: int
    power_limit_w: float | None
    host_cpu: str
    host_cores: int
    threads: int
    os: str
    python: str
    date: str
    command: str

    @property
    def slug(self) -> str:
        """Folder name: the device name in lower case, with dashes."""
        return re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-") or "device"

    def as_dict(self) -> dict[str, Any]:
        """Fields as plain values for JSON."""
        return asdict(self)


class Monitor:
    """Last seen clocks (Hz), power (W) and temperature (C) of one NVIDIA device; all None where NVML is missing."""

    def __init__(self, device: str) -> None:
        """Open NVML for a CUDA device string; quietly do nothing elsewhere."""
        self.sm_clock_hz: float | None = None
        self.mem_clock_hz: float | None = None
        self.power_w: float | None = None
        self.temperature_c: float | None = None
        self._nvml: Any = None
        self._handle: Any = None
        if not device.startswith("cuda"):
            return
        with contextlib.suppress(Exception):  # optional: any failure means "no reading"
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            self._handle = _nvml_handle(nvml, device)
            self._nvml = nvml

    def clear(self) -> None:
        """Forget the last reading."""
        self.sm_clock_hz = self.mem_clock_hz = self.power_w = self.temperature_c = None

    def sample(self) -> None:
        """Read clocks and power now; call while the device is busy."""
        nvml = self._nvml
        if nvml is None:
            return
        with contextlib.suppress(Exception):
            self.sm_clock_hz = nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM) * 1e6
        with contextlib.suppress(Exception):
            self.mem_clock_hz = nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_MEM) * 1e6
        with contextlib.suppress(Exception):
            self.power_w = nvml.nvmlDeviceGetPowerUsage(self._handle) * 1e-3
        with contextlib.suppress(Exception):
            self.temperature_c = float(nvml.nvmlDeviceGetTemperature(self._handle, nvml.NVML_TEMPERATURE_GPU))

    def reading(self) -> dict[str, float]:
        """The last readings by name; those that are missing are left out."""
        names = ("sm_clock_hz", "mem_clock_hz", "power_w", "temperature_c")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def driver(self) -> str:
        """Driver version, or ""."""
        if self._nvml is None:
            return ""
        with contextlib.suppress(Exception):
            return _text(self._nvml.nvmlSystemGetDriverVersion())
        return ""

    def power_limit_w(self) -> float | None:
        """Enforced power limit in W, or None."""
        if self._nvml is None:
            return None
        with contextlib.suppress(Exception):
            return float(self._nvml.nvmlDeviceGetEnforcedPowerLimit(self._handle)) * 1e-3
        return None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _nvml_handle(nvml: Any, device: str) -> Any:
    """NVML handle of a torch device: by UUID, because CUDA_VISIBLE_DEVICES renumbers torch's side."""
    torch = torch_module()
    index = torch.device(device).index or 0
    with contextlib.suppress(Exception):
        uuid = str(torch.cuda.get_device_properties(index).uuid)
        uuid = uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    return nvml.nvmlDeviceGetHandleByIndex(index)


def _driver_from_smi() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        out = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return out.strip().splitlines()[0].strip() if out.strip() else ""
    return ""


def _host_cpu() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _host_mem_bytes() -> int:
    """Memory of this machine; 0 where the system does not say."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 0


def _try(read: Any) -> str:
    """Text of a version call, or "" where the library is not there."""
    with contextlib.suppress(Exception):
        value = read()
        if value:
            return ".".join(str(part) for part in value) if isinstance(value, tuple) else str(value)
    return ""


def environment(device: str, monitor: Monitor) -> Environment:
    """Describe the device and its host. Raises RuntimeError where torch cannot reach the device."""
    torch = torch_module()
    cuda = device.startswith("cuda")
    props: Any = torch.cuda.get_device_properties(torch.device(device)) if cuda else None
    host_cpu, threads = _host_cpu(), int(torch.get_num_threads())
    return Environment(
        device=str(props.name) if cuda else f"cpu {host_cpu}, {threads} thread{'s' if threads > 1 else ''}",
        device_type="cuda" if cuda else "cpu",
        driver=(monitor.driver() or _driver_from_smi()) if cuda else "",
        torch=str(torch.__version__),
        cuda=str(torch.version.cuda or getattr(torch.version, "hip", None) or ""),
        cudnn=_try(torch.backends.cudnn.version) if cuda else "",
        nccl=_try(lambda: torch.cuda.nccl.version()) if cuda else "",
        capability=f"{props.major}.{props.minor}" if cuda else "",
        mem_bytes=int(props.total_memory) if cuda else _host_mem_bytes(),
        host_mem_bytes=_host_mem_bytes(),
        multiprocessors=int(props.multi_processor_count) if cuda else 0,
        l2_bytes=int(getattr(props, "L2_cache_size", 0) or 0) if cuda else 0,
        power_limit_w=monitor.power_limit_w() if cuda else None,
        host_cpu=host_cpu,
        host_cores=os.cpu_count() or 0,
        threads=threads,
        os=platform.platform(),
        python=platform.python_version(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=" ".join(["python" if not sys.argv[0] else os.path.basename(sys.argv[0]), *sys.argv[1:]]),
    )
