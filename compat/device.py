"""The device type of this machine, found without importing torch (that costs seconds).

In: the driver's library through nvidia-ml-py, and CUDA_VISIBLE_DEVICES. Out: "cuda" or "cpu", and what was found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEVICE_TYPES = ("cpu", "cuda")

WEIGHTS_SHARE = 0.8
"""Most of a device's memory that weights may take: a cell beyond it is not loaded. What is left is for activations."""

CPU_WORKERS = 2
"""Most workers that a run on a CPU gets by itself: a probe keeps one core busy, and a worker holds about a gigabyte."""

GPU_WORKERS = 12
"""Most workers that a GPU gets by itself: a probe keeps a core busier than the device. Timed checks have it alone."""

GPU_WORKER_BYTES = 4 << 30
"""Memory of a GPU for each worker on it: its context, libraries and a probe in fp64."""


@dataclass(frozen=True)
class Detected:
    """A device type, the number of devices of it, and one line that says how it was found."""

    type: str
    count: int
    because: str


def detect() -> Detected:
    """The device type to run on when the user names none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return Detected("cpu", 1, "CUDA_VISIBLE_DEVICES hides every GPU")
    count, name = _nvidia_gpus()
    if not count:
        return Detected("cpu", 1, "no NVIDIA GPU found")
    shown = len(_visible()) if visible is not None else count
    return Detected("cuda", min(count, shown), f"{name} found through its driver")


def _visible() -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names, by number or UUID; [] where it names none."""
    return [v.strip() for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v.strip()]


def visible_from(gpu: int) -> str:
    """The value of CUDA_VISIBLE_DEVICES under which GPU number `gpu` of those that this process sees comes first, and
    the others follow it in turn: libraries that say `cuda:0` without asking then mean the right one."""
    order = _visible() or [str(i) for i in range(max(_nvidia_gpus()[0], gpu + 1))]
    return ",".join(order[gpu:] + order[:gpu])


@contextmanager
def _nvml() -> Iterator[Any]:
    """NVIDIA's management library, initialised; None without library, driver or permission: no usable GPU."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # NVMLError may itself be missing
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _nvidia_gpus() -> tuple[int, str]:
    with _nvml() as nvml:
        count = int(nvml.nvmlDeviceGetCount()) if nvml is not None else 0
        return count, _text(nvml.nvmlDeviceGetName(nvml.nvmlDeviceGetHandleByIndex(0))) if count else ""


def memory_bytes(kind: str) -> int | None:
    """Memory of the smallest GPU, or of the host and the container that we run in; None where nothing says it."""
    if kind == "cuda":
        with _nvml() as nvml:
            if nvml is None:
                return None
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            return min((int(nvml.nvmlDeviceGetMemoryInfo(h).total) for h in handles), default=None)
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return None
    return min(physical, container_limit() or physical)


def default_workers(kind: str, devices: int, most: int = CPU_WORKERS) -> int:
    """Worker processes where the user asks for no number: on a CPU one a core up to `most`; on `devices` GPUs three for
    every four cores, as many as their memory has room for."""
    cores = os.cpu_count() or 1
    if kind == "cpu":
        return min(cores, most)
    room = (memory_bytes(kind) or 0) // GPU_WORKER_BYTES
    return devices * max(1, min(GPU_WORKERS, cores * 3 // (4 * devices), room))


def container_limit() -> int | None:
    """Bytes that the control group of this process may hold; None without a limit."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def no_room(needed: int, memory: int | None, where: str) -> str:
    """Why weights of `needed` bytes are too much for a device with `memory` bytes (None: unknown); "" when they are
    not."""
    if not memory or needed <= WEIGHTS_SHARE * memory:
        return ""
    room = f"{WEIGHTS_SHARE:.0%} of the {memory / 2**30:.1f} GiB of {where}"
    return f"its weights take {needed / 2**30:.1f} GiB, more than {room}"


def driver_version() -> str:
    """The NVIDIA driver's version, or "" without one."""
    with _nvml() as nvml:
        return _text(nvml.nvmlSystemGetDriverVersion()) if nvml is not None else ""


THROTTLING = ("HwSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown", "SwThermalSlowdown", "SwPowerCap")
"""Reasons for lower clocks that come from heat or power, as NVML spells them."""


def _handle(nvml: Any, index: int) -> Any:
    """NVML's handle of GPU number `index` of those that this process sees. Raises NVMLError."""
    named = _visible()
    name = named[index] if index < len(named) else str(index)
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)


def volatile(index: int = 0) -> dict[str, object]:
    """Clocks, temperature, power, reasons for lower clocks and processes of a GPU now; {} without one. What the driver
    does not say is left out."""
    found: dict[str, object] = {}
    with _nvml() as nvml:
        if nvml is None:
            return found
        try:
            handle = _handle(nvml, index)
        except nvml.NVMLError:
            return found
        asked: dict[str, Callable[[], object]] = {
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "throttling": lambda: _reasons(nvml, nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            "processes": lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        }
        for name, ask in asked.items():
            with suppress(nvml.NVMLError, AttributeError):
                found[name] = ask()
    return found


def _reasons(nvml: Any, bits: int) -> list[str]:
    masks = {name: int(getattr(nvml, f"nvmlClocksThrottleReason{name}", 0)) for name in THROTTLING}
    return [name for name, mask in masks.items() if bits & mask]


def energy_joules(index: int = 0) -> float | None:
    """What a GPU has drawn since its driver was loaded; None where that is not counted (before Volta)."""
    with _nvml() as nvml:
        if nvml is None:
            return None
        try:
            handle = _handle(nvml, index)
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except nvml.NVMLError:
            return None
