"""Image sets are read from files in their official layouts; samples are functions of keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import (
    encoded,
    photo,
    random_images,
    write_celeba,
    write_cifar,
    write_dtd,
    write_stl10,
    write_svhn,
    write_tree,
)
from PIL import Image
from torch.utils.data import DataLoader

from ndavid.data.image_archive import PackedSplit, open_archive, read_archive, write_archive
from ndavid.data.image_sources import (
    EncodedImages,
    FileImages,
    ImageSource,
    MemoryImages,
    decode_image,
)
from ndavid.data.images import (
    DataConfig,
    ImageDataset,
    MultiViewImages,
    image_eval_transform,
    open_images,
)
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import collate
from ndavid.errors import ConfigError, DataError

AUGMENT = AugmentConfig(preset="moco_v2", size=24)


def pixels_of(source: ImageSource) -> np.ndarray:
    return torch.stack([source.read(k) for k in range(len(source))]).numpy()


def as_bytes(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())


# --- torchvision's sets ---------------------------------------------------------------------------


@pytest.mark.parametrize("fine", [False, True])
def test_cifar(tmp_path: Path, monkeypatch, fine) -> None:
    written = write_cifar(tmp_path, monkeypatch, fine)
    config = DataConfig(source="cifar100" if fine else "cifar10", root=str(tmp_path))
    for split, (images, labels) in written.items():
        source = open_images(config, split=split)
        assert isinstance(source, MemoryImages) and source.images.is_contiguous()
        assert np.array_equal(pixels_of(source), images)
        assert source.labels.tolist() == labels and source.labels.dtype == torch.long
        assert source.classes == tuple(f"class {k}" for k in range(100 if fine else 10))
    assert len(open_images(config)) == len(written["train"][1])  # the config's own split


def test_stl10_and_its_unlabelled_part(tmp_path: Path, monkeypatch) -> None:
    written = write_stl10(tmp_path, monkeypatch)
    config = DataConfig(source="stl10", root=str(tmp_path))
    for split, (images, labels) in written.items():
        source = open_images(config, split=split)
        assert np.array_equal(pixels_of(source), images)
        assert source.labels.tolist() == labels
        assert source.classes[3] == "animal3"
    both = open_images(config, split="train+unlabeled")
    assert both.labels.tolist() == written["train"][1] + written["unlabeled"][1]
    everything = np.concatenate([written["train"][0], written["unlabeled"][0]])
    assert np.array_equal(pixels_of(both), everything)
    assert ImageDataset(both)[len(both) - 1]["label"] == -1


def test_svhn(tmp_path: Path, monkeypatch) -> None:
    written = write_svhn(tmp_path, monkeypatch)
    config = DataConfig(source="svhn", root=str(tmp_path))
    for split, (images, labels) in written.items():
        source = open_images(config, split=split)
        assert np.array_equal(pixels_of(source), images)
        assert source.labels.tolist() == labels
        assert source.classes == tuple("0123456789")


def test_dtd_is_read_in_its_first_partition(tmp_path: Path) -> None:
    written = write_dtd(tmp_path)
    config = DataConfig(source="dtd", root=str(tmp_path))
    for split, names in written.items():
        source = open_images(config, split=split)
        assert [source.name(k).split("images/")[1] for k in range(len(source))] == names
        assert source.labels.tolist() == [int(name.startswith("woven")) for name in names]
    assert source.classes == ("banded", "woven") and source.read(0).shape[0] == 3


def test_celeba_has_parts_but_no_classes(tmp_path: Path, monkeypatch) -> None:
    written = write_celeba(tmp_path, monkeypatch)
    config = DataConfig(source="celeba", root=str(tmp_path))
    written["all"] = [name for part in written.values() for name in part]
    for split, names in written.items():
        source = open_images(config, split=split)
        assert [Path(source.name(k)).name for k in range(len(source))] == names
        assert source.labels.tolist() == [-1] * len(names) and source.classes == ()
    assert source.read(6).shape == (3, 218, 178)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "svhn", "dtd", "celeba"])
def test_a_missing_set_says_what_to_do(tmp_path: Path, name) -> None:
    config = DataConfig(source=name, root=str(tmp_path))
    with pytest.raises(DataError, match=r"is not there.*download: true") as caught:
        open_images(config)
    assert caught.value.path == str(tmp_path)
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_the_official_ones_are_refused(tmp_path: Path, monkeypatch) -> None:
    write_cifar(tmp_path, monkeypatch)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes() + b"x")
    with pytest.raises(DataError, match="not the official ones"):
        open_images(DataConfig(source="cifar10", root=str(tmp_path)))


def test_a_failed_download_is_a_data_error(tmp_path: Path, monkeypatch) -> None:
    def refuse(*words, **keys):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    config = DataConfig(source="cifar10", root=str(tmp_path), download=True)
    with pytest.raises(DataError, match="could not be fetched or read: no route to host"):
        open_images(config)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"root": ""}, "root is empty"),
        ({"split": "val"}, "cifar10 has no split 'val': choose from train, test"),
        ({"source": "stl10", "split": "extra"}, "train\\+unlabeled"),
        ({"class_list": "some.txt"}, "class_list is for source folder"),
        ({"source": "folder", "class_list": "some.txt", "classes": ["cat"]}, "not both"),
    ],
)
def test_keys_that_do_not_go_together(keys, message) -> None:
    with pytest.raises(ConfigError, match=message):
        open_images(DataConfig(**({"source": "cifar10", "root": "somewhere"} | keys)))


# --- trees ----------------------------------------------------------------------------------------


def folder_config(root: Path, **keys) -> DataConfig:
    return DataConfig(source="folder", root=str(root), **keys)


def test_a_tree_of_class_folders(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"dog": 2, "cat": 3})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    source = open_images(folder_config(tmp_path))
    assert isinstance(source, FileImages)
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.name(3) == str(tmp_path / "train" / "dog" / "0.jpg")
    with Image.open(source.name(3)) as image:
        assert np.array_equal(source.read(3).permute(1, 2, 0).numpy(), np.asarray(image))


def test_a_tree_without_parts(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 1, "b": 1})
    assert open_images(folder_config(tmp_path, split="")).classes == ("a", "b")


def test_a_class_list_chooses_and_orders(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"n01": 1, "n02": 2, "n03": 1})
    names = tmp_path / "list.txt"
    names.write_text("n03 third kind\n\nn01\n")
    source = open_images(folder_config(tmp_path, class_list=str(names)))
    assert source.classes == ("n03", "n01") and source.labels.tolist() == [0, 1]
    assert source.name(0).endswith("n03/0.jpg") and source.name(1).endswith("n01/0.jpg")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01\nn09\n", "no folder for 1 of the classes.*n09"),
        ("n01\nn01\n", "twice"),
        ("", "no class"),
    ],
)
def test_wrong_class_lists(tmp_path: Path, text, message) -> None:
    write_tree(tmp_path / "train", {"n01": 1})
    names = tmp_path / "list.txt"
    names.write_text(text)
    with pytest.raises(DataError, match=message):
        open_images(folder_config(tmp_path, class_list=str(names)))


def test_wrong_trees(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_images(folder_config(tmp_path))
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="holds no class folders"):
        open_images(folder_config(tmp_path))
    (tmp_path / "train" / "a").mkdir()
    with pytest.raises(DataError, match="hold no images"):
        open_images(folder_config(tmp_path))
    with pytest.raises(DataError, match="cannot be read as a list"):
        open_images(folder_config(tmp_path, class_list=str(tmp_path / "gone.txt")))


def test_names_beyond_ascii(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"größe": 1})
    source = open_images(folder_config(tmp_path))
    assert source.classes == ("größe",) and source.read(0).shape == (3, 40, 48)


def test_a_trees_digest_moves_with_it(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for root in (here, there):
        write_tree(root / "train", {"a": 2, "b": 1})
    digest = open_images(folder_config(here)).digest
    assert len(digest) == 64 and open_images(folder_config(there)).digest == digest
    (there / "train" / "b" / "0.jpg").rename(there / "train" / "b" / "1.jpg")
    assert open_images(folder_config(there)).digest != digest


def test_classes_are_chosen_from_any_set(tmp_path: Path, monkeypatch) -> None:
    write_tree(tmp_path / "tree" / "train", {"n01": 1, "n02": 2, "n03": 1})
    tree = open_images(folder_config(tmp_path / "tree", classes=["n03", "n01"]))
    assert tree.classes == ("n03", "n01") and tree.labels.tolist() == [1, 0]
    assert tree.name(1).endswith("n03/0.jpg")
    images, labels = write_cifar(tmp_path, monkeypatch)["train"]
    cifar = open_images(DataConfig(source="cifar10", root=str(tmp_path), classes=["class 7"]))
    assert isinstance(cifar, MemoryImages) and cifar.labels.unique().tolist() == [0]
    assert np.array_equal(pixels_of(cifar), images[np.array(labels) == 7])


# --- images without classes -----------------------------------------------------------------------


def flat_config(root: Path, **keys) -> DataConfig:
    return DataConfig(source="flat", root=str(root), **keys)


def test_a_folder_of_ones_own_images(tmp_path: Path) -> None:
    kinds = {"b.JPG": ("JPEG", 30, 50), "a.png": ("PNG", 64, 20), "c.webp": ("WEBP", 9, 9)}
    for k, (name, (kind, height, width)) in enumerate(kinds.items()):
        (tmp_path / name).write_bytes(encoded(photo(k, height, width), kind))
    for name in ("notes.txt", "._a.png", "film.mp4"):
        (tmp_path / name).write_bytes(b"no image")
    source = open_images(flat_config(tmp_path))
    assert [Path(source.name(k)).name for k in range(len(source))] == ["a.png", "b.JPG", "c.webp"]
    assert source.labels.tolist() == [-1] * 3 and source.classes == ()
    dataset = ImageDataset(source, train_transform(AUGMENT))
    batch = collate([dataset[k, 0] for k in range(3)])
    assert batch["image"].shape == (3, 3, 24, 24) and batch["label"].tolist() == [-1] * 3


def test_parts_and_depths_of_a_flat_folder(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"2019": 1, "2020": 2})
    write_tree(tmp_path, {"test": 1})
    assert len(open_images(flat_config(tmp_path))) == 3
    assert len(open_images(flat_config(tmp_path, split="test"))) == 1
    assert len(open_images(flat_config(tmp_path, split=""))) == 4
    with pytest.raises(DataError, match="no such folder") as caught:
        open_images(flat_config(tmp_path, split="val"))
    assert caught.value.path == str(tmp_path / "val")


def test_wrong_flat_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no images, which end in \.jpg"):
        open_images(flat_config(tmp_path))
    with pytest.raises(DataError, match="no such folder; it should hold images"):
        open_images(flat_config(tmp_path / "gone"))
    (tmp_path / "x.png").write_bytes(encoded(photo(0), "PNG"))
    with pytest.raises(ConfigError, match="has no classes to choose 'cat' from"):
        open_images(flat_config(tmp_path, classes=["cat"]))
    with pytest.raises(DataError, match="source flat takes images without classes"):
        open_images(folder_config(tmp_path, split=""))


# --- single files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("BMP", "RGB"),
        ("WEBP", "RGB"),
        ("TIFF", "CMYK"),
    ],
)
def test_every_kind_of_file_becomes_rgb(kind, mode) -> None:
    picture = photo(3)
    result = decode_image(as_bytes(encoded(picture, kind, mode)), "any")
    assert result.shape == picture.shape and result.dtype == torch.uint8
    wanted = picture.float().mean(dim=0, keepdim=True) if mode == "L" else picture.float()
    assert (result - wanted).abs().mean() < (30 if mode in ("P", "L") else 6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (encoded(photo(0))[:-400], "cannot be read as an image.*truncated"),
        (encoded(photo(0), "PNG")[:-400], "cannot be read as an image"),
        (b"\xff\xd8\xff\xe0 and then nothing", "cannot be read as an image"),
        (b"plain text", "cannot identify image file"),
    ],
)
def test_damaged_files_are_data_errors(content, message) -> None:
    with pytest.raises(DataError, match=message) as caught:
        decode_image(as_bytes(content), "there/x.jpg")
    assert caught.value.path == "there/x.jpg" and "0x" not in caught.value.reason


# --- packed archives ------------------------------------------------------------------------------


def write_packed(path: Path, files: list[bytes], labels: list[int] | None = None) -> Path:
    split = PackedSplit(files, labels or [k % 2 for k in range(len(files))])
    write_archive(path, ["a", "b"], {"train": split})
    return path


def test_small_images_are_decoded_once(tmp_path: Path) -> None:
    files = [encoded(photo(k, 32, 40)) for k in range(5)]
    path = write_packed(tmp_path / "deep" / "set.npz", files)
    source = open_images(DataConfig(source="packed", root=str(path)))
    assert isinstance(source, MemoryImages) and source.images.shape == (5, 3, 32, 40)
    for k, content in enumerate(files):
        assert torch.equal(source.read(k), decode_image(as_bytes(content), "any"))
    assert source.labels.tolist() == [0, 1, 0, 1, 0] and source.classes == ("a", "b")
    assert source.digest == read_archive(path, "train").digest
    assert [p.name for p in path.parent.iterdir()] == ["set.npz"]


@pytest.mark.parametrize("sizes", [[(97, 97), (97, 97)], [(32, 32), (32, 33)]])
def test_large_and_mixed_images_are_decoded_when_read(tmp_path: Path, sizes) -> None:
    files = [encoded(photo(k, *size)) for k, size in enumerate(sizes)]
    source = open_archive(write_packed(tmp_path / "set.npz", files), "train")
    assert isinstance(source, EncodedImages)
    assert [tuple(source.read(k).shape[1:]) for k in range(2)] == sizes


def test_a_bad_image_in_memory_is_known_by_its_index(tmp_path: Path) -> None:
    files = [encoded(photo(k, 32, 32)) for k in range(4)]
    files[0], files[2] = files[0][:-300], b""
    source = open_archive(write_packed(tmp_path / "set.npz", files), "train")
    assert isinstance(source, MemoryImages) and sorted(source.bad) == [0, 2]
    with pytest.raises(DataError, match=r"set\.npz\[2\]: the file is empty"):
        source.read(2)
    assert source.read(1).shape == (3, 32, 32)


def rewrite(path: Path, **changes) -> Path:
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays |= changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": None}, "has no array 'train_labels'.*splits are here: train"),
        ({"classes": None}, "has no array 'classes'"),
        ({"train_offsets": np.array([0, 5])}, "do not divide"),
        ({"train_offsets": np.array([], dtype=np.int64)}, "do not divide"),
        ({"train_labels": np.array([0, 2, 0])}, "labels run from 0 to 2, but there are 2 classes"),
        ({"train_labels": np.array([0, 1])}, "3 images and labels of shape"),
        ({"train_labels": np.array([0.0, 1, 0])}, "must be uint8, int64, int64"),
        ({"classes": np.array(["a", None], dtype=object)}, "no .npz archive, or a damaged one"),
    ],
)
def test_wrong_archives(tmp_path: Path, changes, message) -> None:
    path = write_packed(tmp_path / "set.npz", [encoded(photo(k, 32, 32)) for k in range(3)])
    with pytest.raises(DataError, match=message):
        open_archive(rewrite(path, **changes), "train")


def test_what_is_no_archive(tmp_path: Path) -> None:
    path = write_packed(tmp_path / "set.npz", [encoded(photo(0))])
    with pytest.raises(DataError, match="no array 'test_jpeg'"):
        open_archive(path, "test")
    for content in (b"", b"PK not a zip", path.read_bytes()[:-200]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"is no \.npz archive"):
            open_archive(path, "train")
    with pytest.raises(DataError, match="no such file"):
        open_archive(tmp_path / "gone.npz", "train")
    with pytest.raises(DataError, match="is a folder"):
        open_archive(tmp_path, "train")


def test_more_labels_than_files_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 files, 2 labels"):
        write_packed(tmp_path / "set.npz", [b"x"], [0, 1])
    assert not list(tmp_path.iterdir())


def test_the_real_cifar10(shared_data: Path) -> None:
    path = shared_data / "cifar10" / "cifar10.npz"
    test = open_images(DataConfig(source="packed", root=str(path), split="test"))
    assert isinstance(test, MemoryImages) and test.images.shape == (10_000, 3, 32, 32)
    assert test.labels.bincount().tolist() == [1000] * 10 and not test.bad
    assert test.classes[:3] == ("airplane", "automobile", "bird")
    means = test.images.float().mean(dim=(0, 2, 3)) / 255
    assert (means - torch.tensor([0.494, 0.485, 0.450])).abs().max() < 0.005


# --- sources in memory ----------------------------------------------------------------------------


def memory(count: int = 6, seed: int = 0, **keys) -> MemoryImages:
    images = torch.from_numpy(random_images(count, 32, seed))
    return MemoryImages(images, torch.arange(count) % 3, ["a", "b", "c"], origin="made/up", **keys)


def test_a_digest_of_pixels_and_labels() -> None:
    plain = memory()
    assert memory().digest == plain.digest
    assert memory(seed=1).digest != plain.digest and memory(5).digest != plain.digest
    other = MemoryImages(plain.images, (plain.labels + 1) % 3, plain.classes, origin="made/up")
    assert other.digest != plain.digest
    transposed = plain.images.transpose(2, 3).contiguous().transpose(2, 3)  # as STL-10 lies
    same = MemoryImages(transposed, plain.labels, plain.classes, origin="elsewhere")
    assert same.digest == plain.digest


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 3, dtype=torch.uint8)]
)
def test_memory_of_another_layout_is_refused(images) -> None:
    with pytest.raises(DataError, match="must be uint8"):
        MemoryImages(images, torch.zeros(2), ["a"], origin="made/up")


# --- datasets -------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> FileImages:
    write_tree(tmp_path / "train", {"a": 3, "b": 2})
    source = open_images(folder_config(tmp_path))
    assert isinstance(source, FileImages)
    return source


def test_one_image_a_sample(tree) -> None:
    dataset = ImageDataset(tree, train_transform(AUGMENT))
    sample = dataset[3, 7]
    assert sample["image"].shape == (3, 24, 24) and sample["image"].dtype == torch.uint8
    assert (sample["label"], sample["index"], sample["bad"]) == (1, 3, [])
    assert dataset.digest == tree.digest and len(dataset) == 5
    expected = train_transform(AUGMENT)(tree.read(3)[None], torch.Generator().manual_seed(7))[0]
    assert torch.equal(sample["image"], expected)


def test_seeds_decide_and_nothing_else_does(tree) -> None:
    dataset = MultiViewImages(tree, train_transform(AUGMENT))
    torch.manual_seed(1)
    first = dataset[2, 11]["views"]
    torch.manual_seed(2)
    assert torch.equal(dataset[2, 11]["views"], first)
    assert not torch.equal(dataset[2, 12]["views"], first)


def test_views_differ_and_share_their_image(tree) -> None:
    dataset = MultiViewImages(tree, train_transform(AUGMENT), 3)
    sample = dataset[1, 5]
    assert sample["views"].shape == (3, 3, 24, 24)
    assert not torch.equal(sample["views"][0], sample["views"][1])
    assert not torch.equal(sample["views"][1], sample["views"][2])
    assert collate([sample, dataset[4, 0]])["views"].shape == (2, 3, 3, 24, 24)
    with pytest.raises(ConfigError, match="num_views"):
        MultiViewImages(tree, train_transform(AUGMENT), 0)


def test_an_int_gives_the_image_without_randomness(tree) -> None:
    plain = ImageDataset(tree, train_transform(AUGMENT))[0]["image"]
    whole = image_eval_transform(24)(tree.read(0))
    assert torch.equal(plain, whole)
    views = MultiViewImages(tree, train_transform(AUGMENT))[0]["views"]
    assert torch.equal(views[0], plain) and torch.equal(views[1], plain)


def test_stored_images_without_a_transform() -> None:
    source = memory()
    dataset = ImageDataset(source)
    for key in (4, (4, 9)):
        assert torch.equal(dataset[key]["image"], source.images[4])


@pytest.mark.parametrize("bad", [{}, {3: "torn"}])
@pytest.mark.parametrize("transform", [None, train_transform(AUGMENT)])
def test_many_keys_at_once_are_the_same_as_one_by_one(bad, transform) -> None:
    dataset = ImageDataset(memory(bad=bad), transform, on_error="next")
    keys = [(5, 1), (0, 2), (3, 3), (0, 4), 2]
    together, apart = collate(dataset.__getitems__(keys)), collate([dataset[key] for key in keys])
    assert together.keys() == apart.keys()
    for name in ("image", "label", "index"):
        assert torch.equal(together[name], apart[name])
    assert together["bad"] == apart["bad"] and len(apart["bad"]) == len(bad)


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_gather(workers) -> None:
    source = memory(10)
    batches = DataLoader(ImageDataset(source), 4, collate_fn=collate, num_workers=workers)
    images = torch.cat([batch["image"] for batch in batches])
    assert torch.equal(images, source.images)


def test_raise_names_the_file(tree, tmp_path: Path) -> None:
    path = Path(tree.name(1))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match="cannot be read as an image") as caught:
        ImageDataset(tree, train_transform(AUGMENT))[1, 0]
    assert caught.value.path == str(path)


def test_next_stands_in_and_tells(tree) -> None:
    Path(tree.name(1)).write_bytes(b"")
    Path(tree.name(2)).unlink()
    dataset = MultiViewImages(tree, train_transform(AUGMENT), on_error="next")
    sample = dataset[1, 9]
    assert (sample["index"], sample["label"]) == (3, 1)
    assert sample["bad"] == [
        (tree.name(1), "the file is empty (0 bytes)"),
        (tree.name(2), "no such file"),
    ]
    assert torch.equal(sample["views"], dataset[3, 9]["views"])


def test_all_bad_is_an_error(tree) -> None:
    for index in range(len(tree)):
        Path(tree.name(index)).write_bytes(b"")
    dataset = ImageDataset(tree, train_transform(AUGMENT), on_error="next")
    with pytest.raises(DataError, match="none of the 5 images can be read"):
        dataset[0, 0]


def test_no_images_at_all() -> None:
    with pytest.raises(DataError, match="selection is empty"):
        ImageDataset(memory(0))


def test_errors_leave_workers_as_they_are(tree) -> None:
    Path(tree.name(2)).write_bytes(b"")
    dataset = ImageDataset(tree, image_eval_transform(24))
    with pytest.raises(DataError, match="the file is empty") as caught:
        list(DataLoader(dataset, 5, collate_fn=collate, num_workers=1))
    assert type(caught.value) is DataError and caught.value.path == tree.name(2)


# --- test images ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "side"), [(224, 256), (64, 73), (32, 32), (96, 110)])
def test_evaluation_shows_imagenets_proportion(size, side) -> None:
    transform = image_eval_transform(size)
    assert (transform.size, transform.resize) == (size, side)
    assert transform(photo(0, 80, 120)).shape == (3, size, size)


def test_evaluation_crops_the_centre() -> None:
    picture = photo(0, 40, 60)
    assert torch.equal(image_eval_transform(40)(picture), picture[..., 10:50])
    assert torch.equal(image_eval_transform(30, resize=40)(picture), picture[:, 5:35, 15:45])


def test_impossible_evaluation_sizes() -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        image_eval_transform(40, resize=32)
    with pytest.raises(ConfigError, match="does not fit"):
        image_eval_transform(0)


def test_hidden_folders_and_links_that_lead_back_are_left_out(tmp_path: Path) -> None:
    write_tree(tmp_path, {"kept": 2, ".thumbnails": 3})
    (tmp_path / "kept" / "deeper").mkdir()
    (tmp_path / "kept" / "deeper" / "up").symlink_to(tmp_path, target_is_directory=True)
    elsewhere = write_tree(tmp_path.parent / f"{tmp_path.name}_elsewhere", {"more": 1})
    (tmp_path / "link").symlink_to(elsewhere, target_is_directory=True)
    assert len(open_images(flat_config(tmp_path, split=""))) == 3
