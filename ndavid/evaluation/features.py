"""Pooled features of whole splits, computed once and kept as safetensors.

A cache file is named by a digest of everything its content depends on: the weights themselves, the
items (for videos path, size on disk and frame count) and how they are looked at. Nothing else can
be mistaken for it, so there is no cache to clear.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ndavid.collectives import rank
from ndavid.data.file_digests import file_facts
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.engine.distributed import gather_objects
from ndavid.evaluation.classify import BadItem, OnBad, PerItem, TestDataset, per_item
from ndavid.evaluation.views import ViewsConfig
from ndavid.files import whole_path
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
        values: (M, V, D) float32: V views a video or image.
        labels: (M,) class indices.
        names: M names, as given: of videos their paths relative to the manifest's root, of images
            their positions.
        bad: Path and reason of each unreadable item that was left out.
        damaged: Path of each item that is damaged and used all the same, and what is damaged.
        unchanged: bool (M, V), which views are broken copies that came out as they went in; None
            of items that nothing broke.
    """

    values: Tensor
    labels: Tensor
    names: tuple[str, ...]
    bad: tuple[BadItem, ...] = ()
    damaged: tuple[BadItem, ...] = ()
    unchanged: Tensor | None = None

    def pooled(self) -> Tensor:
        """Returns one vector an item, the mean over its views: (M, D)."""
        return self.values.mean(1)

    def subset(self, keep: Tensor) -> Features:
        """Returns the items where ``keep``, bool (M,), is true."""
        rows: Sequence[int] = keep.nonzero().flatten().tolist()
        names = tuple(self.names[row] for row in rows)
        unchanged = None if self.unchanged is None else self.unchanged[keep]
        return replace(
            self,
            values=self.values[keep],
            labels=self.labels[keep],
            names=names,
            unchanged=unchanged,
        )


@dataclass(frozen=True)
class Extraction:
    """How features are computed, whatever they are of.

    Attributes:
        classifier: Its ``features`` are taken, in eval mode.
        device: Where to compute.
        cache: Folder for cache files; None keeps nothing.
        on_bad: What an unreadable item means.
        views_per_batch: Views a forward pass.
        views_per_item: Views of each video or image.
        num_workers: Loader processes.
    """

    classifier: DpcClassifier | EncoderClassifier
    device: torch.device
    cache: Path | None
    on_bad: OnBad = "raise"
    views_per_batch: int = 32
    views_per_item: int = 1
    num_workers: int = 0

    def __call__(
        self, dataset: TestDataset, digest: str, names: Sequence[str], words: str
    ) -> Features:
        """Returns the features of every item of ``dataset``, from the cache if there.

        Args:
            dataset: Test views.
            digest: Of everything that the features depend on beside the weights.
            names: Of its items.
            words: What the progress bar says.

        Raises:
            DataError: On an unreadable item, unless ``on_bad`` skips them.
        """
        key = hashlib.sha256((state_digest(self.classifier) + digest).encode()).hexdigest()
        path = self.cache / f"{key}.safetensors" if self.cache else None
        found = load_per_item(path) if path else None
        # All ranks or none: one that finds the file while another does not would wait for ever.
        if not all(gather_objects(found is not None)):
            found = self._compute(dataset, words)
            if path is not None and rank() == 0:
                save_per_item(path, found)
        assert found is not None
        chosen = tuple(names[i] for i in found.indices.tolist())
        return Features(
            found.values, found.labels, chosen, found.bad, found.damaged, found.unchanged
        )

    def _compute(self, dataset: TestDataset, words: str) -> PerItem:
        normalize = Normalize().to(self.device)
        was_training = self.classifier.training
        self.classifier.to(self.device).eval()
        try:
            return per_item(
                lambda views: self.classifier.features(normalize(views)),
                dataset,
                device=self.device,
                on_bad=self.on_bad,
                views_per_batch=self.views_per_batch,
                views_per_item=self.views_per_item,
                num_workers=self.num_workers,
                description=words,
            )
        finally:
            self.classifier.train(was_training)


def video_digest(
    records: Sequence[ClipRecord],
    manifest: Manifest,
    views: ViewsConfig,
    changed: Container[str] = (),
) -> str:
    """Returns the digest of videos and of how they are looked at.

    Files are told apart by the manifest's digests; those ``changed`` since by what they are now.
    """
    digest = hashlib.sha256()
    looks = {name: getattr(views, name) for name in _VIEW_FIELDS}
    if views.damaged == "bad":  # the default stays what it was, so that older features stay valid
        looks["damaged"] = views.damaged
    digest.update(json.dumps(looks).encode())
    for record in records:
        path = manifest.root / record.path
        size = path.stat().st_size if path.is_file() else -1
        known = file_facts(path).digest if record.path in changed else record.digest
        line = f"{record.path}\0{record.label}\0{record.num_frames}\0{size}"
        # Without a digest as it always was, so that features of older manifests stay valid.
        digest.update(f"{line}\0{known}\n".encode() if known else f"{line}\n".encode())
    return digest.hexdigest()


def state_digest(module: nn.Module) -> str:
    """Returns the SHA-256 over a module's layout and the names, shapes and bytes of its state."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_per_item(path: Path, found: PerItem) -> None:
    """Writes what was computed, in one step, for ``load_per_item``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "values": found.values.contiguous(),
        "labels": found.labels,
        "indices": found.indices,
    }
    if found.unchanged is not None:
        tensors["unchanged"] = found.unchanged.contiguous()
    told = {"bad": json.dumps(found.bad), "damaged": json.dumps(found.damaged)}
    with whole_path(path, sync=False) as partial:
        save_file(tensors, partial, metadata=told)


def load_per_item(path: Path) -> PerItem | None:
    """Returns what ``save_per_item`` wrote, or None where there is nothing that can be read."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            told = {"damaged": "[]", **stored.metadata()}
            bad, damaged = (
                tuple((where, why) for where, why in json.loads(told[name]))
                for name in ("bad", "damaged")
            )
            values, labels, indices = map(stored.get_tensor, ("values", "labels", "indices"))
            known = set(stored.keys())
            unchanged = stored.get_tensor("unchanged") if "unchanged" in known else None
            return PerItem(values, labels, indices, bad, damaged, unchanged)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        # Half a file from a full disk, say: computing again costs time, never a wrong number.
        return None
