"""What a benchmark ran on: processor, memory, versions, threads, load."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from ndavid.engine import environment

# What decides how fast low precision is on a CPU.
FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "sve", "bf16"),
)


def facts() -> dict[str, Any]:
    """Facts of this machine and this process, JSON-ready."""
    gpu = torch.cuda.is_available()
    return {
        "processor": environment.device_name(torch.device("cpu")).removeprefix("cpu: "),
        "flags": cpu_flags(),
        "cores": os.cpu_count(),
        "cores_allowed": cores_allowed(),
        "memory_gib": memory_gib(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "threads": torch.get_num_threads(),
        "load": load(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), **environment.versions()},
        "git": environment.git_commit(),
    }


def cpu_flags() -> list[str]:
    """Those of `FLAGS` that the processor has; none where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return []
    for line in cpuinfo.read_text().splitlines():
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return [flag for flag in FLAGS if flag in values.split()]
    return []


def cores_allowed() -> int | None:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def memory_gib() -> float | None:
    """Memory of the machine, GiB; None where the system does not tell."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def load() -> list[float] | None:
    """Load averages over 1, 5 and 15 minutes: what other programs did."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None
