"""The device type of this machine, found without importing torch (that costs seconds).

In: the driver's library through nvidia-ml-py, and CUDA_VISIBLE_DEVICES. Out: "cuda" or "cpu", and what was found.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

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


def _nvidia_gpus() -> tuple[int, str]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no library, no driver, no permission: each means that there is no usable GPU
        return 0, ""
    try:
        count = int(pynvml.nvmlDeviceGetCount())
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0)) if count else ""
        return count, name.decode() if isinstance(name, bytes) else str(name)
    finally:
        pynvml.nvmlShutdown()


def driver_version() -> str:
    """The NVIDIA driver's version, or "" without one."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # as above
        return ""
    try:
        version = pynvml.nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)
    finally:
        pynvml.nvmlShutdown()


def volatile(index: int = 0) -> dict[str, object]:
    """Clocks, temperature and foreign processes of a GPU now; {} without one."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # as above
        return {}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return {
            "sm_clock_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "temperature_celsius": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            "processes": len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        }
    except pynvml.NVMLError:
        return {}
    finally:
        pynvml.nvmlShutdown()
