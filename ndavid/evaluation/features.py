"""Pooled features of whole splits, computed once and kept as safetensors.

A cache file is named by a digest of everything its content depends on: the weights themselves, the
videos (path, size on disk, frame count) and how they are looked at. Nothing else can be mistaken
for it, so there is no cache to clear.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ndavid.collectives import rank
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.data.sampling import ShortClipReport
from ndavid.engine.distributed import gather_objects
from ndavid.evaluation.classify import BadItem, per_item
from ndavid.evaluation.views import ViewsConfig, views_dataset
from ndavid.models.classifier import DpcClassifier, EncoderClassifier
from ndavid.models.normalize import Normalize

_VIEW_FIELDS = (
    "backend",
    "sampling",
    "num_blocks",
    "block_len",
    "num_frames",
    "frame_stride",
    "short",
    "size",
    "clips",
    "crops",
)


@dataclass(frozen=True)
class Features:
    """Features of a split.

    Attributes:
        values: (M, V, D) float32: V views a video.
        labels: (M,) class indices.
        paths: M paths, relative to the manifest's root.
        bad: Path and reason of each undecodable video that was left out.
        report: What the short-clip policy did.
    """

    values: Tensor
    labels: Tensor
    paths: tuple[str, ...]
    bad: tuple[BadItem, ...]
    report: ShortClipReport

    def pooled(self) -> Tensor:
        """Returns one vector a video, the mean over its views: (M, D)."""
        return self.values.mean(1)


def extract(
    classifier: DpcClassifier | EncoderClassifier,
    records: Sequence[ClipRecord],
    manifest: Manifest,
    views: ViewsConfig,
    *,
    cache: Path | None,
    device: torch.device,
    description: str = "features",
) -> Features:
    """Returns the features that ``classifier.features`` gives for ``records``, from cache if there.

    Args:
        classifier: Its ``features`` are taken, in eval mode.
        records: Videos.
        manifest: Where they are.
        views: How to look at them.
        cache: Folder for cache files; None keeps nothing.
        device: Where to compute.
        description: What the progress bar says.

    Raises:
        DecodeError: On an undecodable video, unless ``views.on_bad`` skips them.
    """
    dataset, report = views_dataset(records, manifest, views)
    kept = dataset.records
    path = cache / f"{cache_key(classifier, kept, manifest, views)}.safetensors" if cache else None
    loaded = _load(path) if path else None
    # All ranks or none: one that finds the file while another does not would wait for it forever.
    found_everywhere = all(gather_objects(loaded is not None))
    if loaded is not None and found_everywhere:
        values, labels, indices, bad = loaded
    else:
        normalize = Normalize().to(device)
        was_training = classifier.training
        classifier.to(device).eval()
        found = per_item(
            lambda clips: classifier.features(normalize(clips)),
            dataset,
            device=device,
            on_bad=views.on_bad,
            views_per_batch=views.views_per_batch,
            num_workers=views.num_workers,
            description=description,
        )
        classifier.train(was_training)
        values, labels, indices, bad = found.values, found.labels, found.indices, found.bad
        if path is not None and rank() == 0:
            _save(path, values, labels, indices, bad)
    paths = tuple(kept[i].path for i in indices.tolist())
    return Features(values, labels, paths, bad, report)


def cache_key(
    classifier: nn.Module, records: Sequence[ClipRecord], manifest: Manifest, views: ViewsConfig
) -> str:
    """Returns the digest of weights, videos and views that names a cache file."""
    digest = hashlib.sha256(state_digest(classifier).encode())
    digest.update(json.dumps({name: getattr(views, name) for name in _VIEW_FIELDS}).encode())
    for record in records:
        path = manifest.root / record.path
        size = path.stat().st_size if path.is_file() else -1
        digest.update(f"{record.path}\0{record.label}\0{record.num_frames}\0{size}\n".encode())
    return digest.hexdigest()


def state_digest(module: nn.Module) -> str:
    """Returns the SHA-256 over a module's layout and the names, shapes and bytes of its state."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _save(
    path: Path, values: Tensor, labels: Tensor, indices: Tensor, bad: tuple[BadItem, ...]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    tensors = {"values": values.contiguous(), "labels": labels, "indices": indices}
    save_file(tensors, partial, metadata={"bad": json.dumps(bad)})
    partial.replace(path)


def _load(path: Path) -> tuple[Tensor, Tensor, Tensor, tuple[BadItem, ...]] | None:
    """The cached tensors, or None where there are none that can be read."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            bad = tuple((where, why) for where, why in json.loads(stored.metadata()["bad"]))
            return (
                stored.get_tensor("values"),
                stored.get_tensor("labels"),
                stored.get_tensor("indices"),
                bad,
            )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        # Half a file from a full disk, say: computing again costs time, never a wrong number.
        return None
