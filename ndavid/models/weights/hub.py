"""Encoders and DPC models on the Hugging Face Hub: the folders of `save_pretrained`, as they are.

push_to_hub(encoder, "owner/name")
encoder = load_encoder(from_hub("owner/name"))      # weights.release
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from torch import nn

from ndavid.checkpoint_files import MODEL_FILE
from ndavid.models.weights.checkpoint import CONFIG_FILE
from ndavid.models.weights.release import save_pretrained

_CARD = """---
library_name: ndavid
tags:
- ndavid
---
A model pretrained with ndavid. `config.json` names the network and, of an encoder, the size of its
features and the mean and deviation per channel by which its input, RGB in [0, 1], was normalised.

```python
from ndavid.models.weights.hub import from_hub
from ndavid.models.weights.release import load_encoder

encoder = load_encoder(from_hub("owner/name"))   # in eval mode
maps = encoder(clips)                   # (B, C, T, H, W), for image networks also (B, C, H, W)
vectors = encoder.pooled(clips)         # (B, D)
```
"""


def push_to_hub(model: nn.Module, repo_id: str, *, private: bool = False) -> str:
    """Uploads what `save_pretrained` writes, and a card; returns the repository's address.

    Args:
        model: an encoder, a `DPC` or a module with an encoder in it.
        repo_id: ``owner/name``; made where it does not exist.
        private: for a repository that is made.
    """
    api = HfApi()
    address = api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        (Path(folder) / "README.md").write_text(_CARD.replace("owner/name", repo_id))
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    return str(address)


def from_hub(repo_id: str, *, revision: str | None = None) -> Path:
    """Downloads a model's folder from the Hub (once; it is cached) and returns its path.

    Args:
        repo_id: ``owner/name``.
        revision: branch, tag or commit; the default branch where None.
    """
    files = [CONFIG_FILE, MODEL_FILE]
    return Path(snapshot_download(repo_id, revision=revision, allow_patterns=files))
