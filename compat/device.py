"""The device type of this machine, found without importing torch (that costs seconds).

In: the driver's library through nvidia-ml-py, and CUDA_VISIBLE_DEVICES. Out: "cuda" or "cpu", and what was found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

DEVICE_TYPES = ("cpu", "cuda")


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
    shown = len([v for v in visible.split(",") if v.strip()]) if visible is not None else count
    return Detected("cuda", min(count, shown), f"{name} found through its driver")


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


def driver_version() -> str:
    """The NVIDIA driver's version, or "" without one."""
    with _nvml() as nvml:
        return _text(nvml.nvmlSystemGetDriverVersion()) if nvml is not None else ""


def volatile(index: int = 0) -> dict[str, object]:
    """Clocks, temperature and foreign processes of a GPU now; {} without one."""
    with _nvml() as nvml:
        if nvml is None:
            return {}
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            return {
                "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
                "temperature_celsius": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
                "processes": len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
            }
        except nvml.NVMLError:
            return {}
