"""What a run ran on: versions, commit, device, command."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ndavid.files import write_whole_text

PACKAGES = (
    "ndavid",
    "torch",
    "torchvision",
    "accelerate",
    "timm",
    "pytorchvideo",
    "av",
    "decord",
    "torchcodec",
    "numpy",
    "einops",
    "safetensors",
)

# Raised where a config's default changes, so that a run to resume tells whether it is older.
DEFAULTS = 1
FILE_NAME = "environment.json"


def describe(*, seed: int, device: torch.device, world_size: int, precision: str) -> dict[str, Any]:
    """Everything beside the config that could change a result, as JSON-ready values."""
    return {
        "argv": sys.argv,
        "seed": seed,
        "device": device_name(device),
        "world_size": world_size,
        "precision": precision,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "packages": versions(),
        "git": git_commit(),
    }


def write(run_dir: Path, description: dict[str, Any]) -> None:
    """Writes ``environment.json``."""
    write_whole_text(run_dir / FILE_NAME, json.dumps(description, indent=2) + "\n")


def defaults_of(run_dir: Path) -> int:
    """The `DEFAULTS` that a run began with; 0 where its environment does not say."""
    try:
        values = json.loads((run_dir / FILE_NAME).read_text(encoding="utf-8-sig"))
        return int(values.get("defaults", 0))
    except (OSError, ValueError, TypeError, AttributeError):
        return 0


def versions() -> dict[str, str]:
    """Installed versions of the packages a result depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    # With the build, such as +cu130, which the package's metadata leaves out.
    return {**found, "torch": torch.__version__}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's as the system gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"cpu: {line.split(':', 1)[1].strip()}"
    return f"cpu: {platform.processor() or platform.machine()}"


def git_commit() -> dict[str, Any] | None:
    """Commit of the source tree that ndavid runs from, and whether it was changed since."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": changed}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
