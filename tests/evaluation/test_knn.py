"""kNN of videos on real clips, and MoCo's checkpoints through every evaluator of videos."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from ndavid.data.config import DataConfig
from ndavid.data.transforms import AugmentConfig
from ndavid.engine import checkpoint as engine_checkpoint
from ndavid.engine.optim import OptimConfig
from ndavid.engine.run_config import RunConfig
from ndavid.errors import ConfigError
from ndavid.evaluation import finetune, knn, linear, retrieval
from ndavid.evaluation.knn import KnnConfig
from ndavid.evaluation.pretrained import ClassifierConfig
from ndavid.evaluation.protocol import Result, load_result
from ndavid.evaluation.views import ViewsConfig
from ndavid.methods.moco import MocoMethod
from ndavid.methods.nda_config import MocoNdaConfig
from ndavid.models.moco import MocoConfig
from ndavid.models.weights.release import save_pretrained

ENCODER = "resnet2d3d10_half"
VIEWS = ViewsConfig(
    sampling="dense", num_frames=4, frame_stride=2, size=32, clips=2, crops=1, num_workers=0
)
POOL = ClassifierConfig(encoder=ENCODER, head="pool")


def test_the_evaluator_on_real_clips(coloured: Path, tmp_path: Path) -> None:
    config = KnnConfig(
        data=DataConfig(root=str(coloured)),
        output=str(tmp_path),
        model=POOL,
        views=VIEWS,
        ks=[1, 5, 200],
    )
    result = knn.run(config)
    assert load_result(tmp_path / "result.json") == result
    assert list(result.metrics) == ["top1_k1", "top1_k5"], "a gallery of 12 has no 200"
    assert result.metrics["top1_k1"].value == 1.0 and result.metrics["top1_k1"].n == 6
    assert result.protocol.num_videos == 6
    assert any("Gallery: 12 training videos (0 short" in note for note in result.protocol.notes)
    assert result.details["confusion"] == [[2, 0, 0], [0, 2, 0], [0, 0, 2]]
    assert "top1 k1" in (tmp_path / "report.html").read_text()


def test_folds_are_averaged_and_their_confusions_added(coloured: Path, tmp_path: Path) -> None:
    config = KnnConfig(
        data=DataConfig(root=str(coloured)),
        output=str(tmp_path),
        model=POOL,
        views=VIEWS,
        ks=[1],
        folds=[1, 2],
    )
    result = knn.run(config)
    assert result.metrics["top1_k1"].n == 12 and result.network == ENCODER
    assert sum(map(sum, result.details["confusion"])) == 12


def test_votes_that_cannot_be_counted() -> None:
    with pytest.raises(ConfigError, match="ks"):
        KnnConfig(ks=[])
    with pytest.raises(ConfigError, match="temperature"):
        KnnConfig(temperature=0.0)


@pytest.fixture(scope="module")
def moco_run(coloured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pretraining with MoCo on the training clips of fold 1 leaves behind."""
    folder = tmp_path_factory.mktemp("moco")
    torch.manual_seed(0)
    method = MocoMethod(MocoConfig(encoder=ENCODER, queue_size=16), MocoNdaConfig())
    with torch.no_grad():
        for parameter in method.moco.key_encoder.parameters():
            parameter.add_(1.0)
    engine_checkpoint.save(folder, 5, model=method.state_dict(), state={"step": 5})
    data = {"source": "clips", "root": str(coloured), "fold": 1}
    config = {"data": data, "model": {"encoder": ENCODER}, "nda": {"spec": "frame_shuffle"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    save_pretrained(method.moco.encoder, folder / "saved")
    return folder


def evaluate(kind: str, checkpoint: Path, coloured: Path, output: Path) -> Result:
    where = {
        "checkpoint": str(checkpoint),
        "data": DataConfig(root=str(coloured)),
        "output": str(output),
    }
    if kind == "finetune":
        return finetune.run(
            finetune.FinetuneConfig(
                **where,
                model=POOL,
                views=VIEWS,
                augment=AugmentConfig(preset="none", size=32),
                optim=OptimConfig(name="adamw", lr=1e-3),
                run=RunConfig(epochs=1, batch_size=4, num_workers=0, device="cpu"),
            )
        )
    module = {"knn": knn, "linear": linear, "retrieval": retrieval}[kind]
    config_class = {
        "knn": KnnConfig,
        "linear": linear.LinearConfig,
        "retrieval": retrieval.RetrievalConfig,
    }[kind]
    config = config_class(**where, model=POOL, views=VIEWS)
    if kind == "knn":
        config.ks = [5]
    return module.run(config)


@pytest.mark.parametrize("kind", ["finetune", "linear", "retrieval", "knn"])
def test_moco_goes_where_dpc_goes(
    kind: str, moco_run: Path, coloured: Path, tmp_path: Path
) -> None:
    of_run = evaluate(kind, moco_run, coloured, tmp_path / "run")
    of_saved = evaluate(kind, moco_run / "saved", coloured, tmp_path / "saved")
    # Query encoder, not its momentum copy: the saved one's numbers, and every tensor in place.
    assert of_run.metrics == of_saved.metrics
    for result in (of_run, of_saved):
        assert result.details["key_report"]["fraction"] == 1.0
        assert result.protocol.num_videos == 6
    assert of_run.checkpoint["path"].endswith("step_5/model.safetensors")
    assert of_run.details["pretraining"]["test_videos_seen"] == 0
    assert of_run.details["pretraining"]["nda"] == "frame_shuffle"
    assert not any("LEAK" in note for note in of_run.protocol.notes)
