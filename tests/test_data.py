"""Data sets: the same images everywhere, augmented as torchvision does it, fetched once, refused when damaged."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import io
import itertools
import multiprocessing
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.client import IncompleteRead
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tarfile import ReadError
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as vision
import yaml
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from fr_bench.cli import main
from fr_bench.commands import doctor
from fr_bench.components import check_callable
from fr_bench.data import (
    COMMON_KEYS,
    Dataset,
    EvaluationImages,
    EvaluationTensor,
    Outline,
    SeededOrder,
    Split,
    TrainImages,
    TrainTensor,
    build_dataset,
    cifar,
    download,
    fashion_mnist,
    outline_dataset,
    prepare_dataset,
)
from fr_bench.data import digits as digits_file
from fr_bench.data.augmentation import Augmentation
from fr_bench.data.checks import check_dataset
from fr_bench.data.dataset import channel_statistics
from fr_bench.data.download import NotThere, obtain
from fr_bench.errors import ConfigError

CPU = torch.device("cpu")
CONF = sorted((Path(__file__).parents[1] / "conf" / "dataset").glob("*.yaml"))
FORMAT: dict[str, Any] = {"device": CPU, "dtype": torch.float32, "memory_format": torch.channels_last}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SYNTHETIC = {
    "_target_": "fr_bench.data.synthetic.load", "name": "synthetic", "channels": 2, "height": 6, "width": 5,
    "num_classes": 4, "num_train": 90, "num_test": 22,
}  # fmt: skip
NOWHERE = "http://127.0.0.1:9/"  # the port is closed


def random_images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def one_by_one(image: Tensor, padding: int, top: int, left: int, flip: int) -> Tensor:
    """What torchvision makes of one image, uint8 [C, H, W]."""
    image = vision.crop(vision.pad(image, [padding]), top, left, *image.shape[1:])
    return vision.hflip(image) if flip else image


def checksum(split: Split) -> str:
    return hashlib.sha256(split.images.numpy().tobytes() + split.labels.numpy().tobytes()).hexdigest()[:16]


def as_set(split: Split) -> set[bytes]:
    return {image.numpy().tobytes() for image in split.images}


# Augmentation and normalisation


def test_every_crop_and_flip_is_torchvisions() -> None:
    every = list(itertools.product(range(5), range(5), (0, 1)))
    images = random_images(len(every), 3, 6, 7)
    result = Augmentation(crop_padding=2, flip=True).apply(images, torch.tensor(every).T)
    for image, draw, got in zip(images, every, result, strict=True):
        assert torch.equal(got, one_by_one(image, 2, *draw)), draw


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{}, {"crop_padding": 1}, {"flip": True}, {"crop_padding": 4, "flip": True}])
def test_a_training_batch_is_bit_for_bit_torchvisions(settings, dtype, memory_format) -> None:
    images, order = random_images(20, 3, 8, 8), SeededOrder(20, 16, seed=5)
    train = TrainImages(images, order, settings, MEAN, STD, 5, device=CPU, dtype=dtype, memory_format=memory_format)
    draws = Augmentation(**settings).draw(5, 3, 16)
    expected = []
    for index, draw in zip(order.indices(3), draws.T.tolist(), strict=True):
        image = one_by_one(images[index], settings.get("crop_padding", 0), *draw)
        expected.append(vision.normalize(image.to(dtype) / 255, list(MEAN), list(STD)))
    batch = train.batch(3)
    assert torch.equal(batch, torch.stack(expected))
    assert batch.dtype == dtype and batch.is_contiguous(memory_format=memory_format)


def test_draws_reach_every_offset_and_are_keyed_by_seed_and_batch() -> None:
    augmentation = Augmentation(crop_padding=2, flip=True)
    draws = augmentation.draw(0, 7, 5000)
    for row, num_values in zip(draws, (5, 5, 2), strict=True):
        share = torch.bincount(row) / 5000
        assert len(share) == num_values and (share - 1 / num_values).abs().max() < 0.03
    assert torch.equal(draws, augmentation.draw(0, 7, 5000))
    assert not torch.equal(draws, augmentation.draw(0, 8, 5000))
    assert not torch.equal(draws, augmentation.draw(1, 7, 5000))
    assert not Augmentation(crop_padding=2).draw(0, 7, 5000)[2].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_have_the_strides_of_channels_last_even_with_one_channel(channels: int) -> None:
    images, statistics = random_images(10, channels, 6, 5), ((0.5,) * channels, (0.5,) * channels)
    train = TrainImages(images, SeededOrder(10, 4, 0), {"flip": True}, *statistics, 0, **FORMAT)
    evaluation = EvaluationImages(images, *statistics, 4, **FORMAT)
    for batch in (train.batch(0), evaluation.batch(0), evaluation.batch(2)):
        assert batch.stride() == (channels * 30, 1, channels * 5, channels)


def test_batches_leave_the_global_random_state_alone() -> None:
    dataset, before = build_dataset(SYNTHETIC | {"validation": 10}), torch.get_rng_state()
    augmentation = {"crop_padding": 1, "flip": True}
    order = SeededOrder(80, 8, 0)
    TrainImages(dataset.train.images, order, augmentation, dataset.mean, dataset.std, 0, **FORMAT).batch(11)
    build_dataset(SYNTHETIC | {"limit": 5})
    assert torch.equal(torch.get_rng_state(), before)


# Order


def test_both_ends_draw_images_and_labels_that_belong_together() -> None:
    labels = torch.arange(50)
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    bottom = TrainImages(images, SeededOrder(50, 8, 1), {"flip": True}, (0.0,) * 3, (1.0,) * 3, 1, **FORMAT)
    top = TrainTensor(labels, SeededOrder(50, 8, 1), CPU)
    for t in (0, 1, 5, 6, 7, 30, 2):  # epochs have 6 batches; the last request goes back
        shown = bottom.batch(t).mul(255).round().long()
        assert torch.equal(shown, top.batch(t).view(-1, 1, 1, 1).expand_as(shown))


def test_an_epoch_shows_every_image_once_but_for_the_short_batch() -> None:
    order = SeededOrder(50, 8, seed=1)
    epochs = [torch.cat([order.indices(6 * epoch + step) for step in range(6)]).tolist() for epoch in range(3)]
    assert order.steps_per_epoch == 6
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 48 and set(epoch) <= set(range(50))
    assert epochs[0] != epochs[1] != epochs[2]
    assert order.indices(1).tolist() == epochs[0][8:16]  # going back
    assert SeededOrder(50, 8, seed=2).indices(0).tolist() != epochs[0][:8]
    with pytest.raises(ValueError, match="batch_size=51"):
        SeededOrder(50, 51, seed=1)


@pytest.mark.parametrize("batch_size", [1, 7, 11, 22, 100])
def test_evaluation_covers_exactly_the_test_set(batch_size: int) -> None:
    split = build_dataset(SYNTHETIC).test
    images = EvaluationImages(split.images, (0.0, 0.0), (1.0, 1.0), batch_size, **FORMAT)
    labels = EvaluationTensor(split.labels, batch_size, CPU)
    num_batches = -(-22 // batch_size)
    seen = torch.cat([images.batch(index) for index in range(num_batches)]).mul(255).round().to(torch.uint8)
    assert torch.equal(seen, split.images)
    assert torch.equal(torch.cat([labels.batch(index) for index in range(num_batches)]), split.labels)


# Limit and validation


def test_validation_and_training_share_no_image_and_lose_none() -> None:
    everything = build_dataset(SYNTHETIC)
    split = build_dataset(SYNTHETIC | {"validation": 20, "limit": None})
    assert split.validation is not None and everything.validation is None
    train, validation = as_set(split.train), as_set(split.validation)
    assert len(train) == 70 and len(validation) == 20 and train | validation == as_set(everything.train)
    assert checksum(split.test) == checksum(everything.test)
    assert split.mean == everything.mean
    label_of = dict(zip([i.numpy().tobytes() for i in everything.train.images], everything.train.labels, strict=True))
    for part in (split.train, split.validation):
        assert all(
            label_of[image.numpy().tobytes()] == label for image, label in zip(*vars(part).values(), strict=True)
        )


def test_a_limit_keeps_a_fixed_subset_and_leaves_the_validation_images_alone() -> None:
    torch.manual_seed(1)
    one = build_dataset(SYNTHETIC | {"validation": 20, "limit": 30})
    torch.manual_seed(2)
    again = build_dataset(SYNTHETIC | {"validation": 20, "limit": 30})
    larger = build_dataset(SYNTHETIC | {"validation": 20, "limit": 40})
    assert len(one.train.labels) == 30 and checksum(one.train) == checksum(again.train)
    assert (checksum(one.train), checksum(one.validation)) == ("fc1dbaed0c3a130b", "28b7b7f23d592634")
    assert as_set(one.train) < as_set(larger.train)
    assert one.validation is not None and larger.validation is not None
    assert checksum(one.validation) == checksum(larger.validation)
    assert not as_set(larger.train) & as_set(larger.validation)
    for limit, validation in ((90, 0), (70, 20)):  # all that there are
        assert len(build_dataset(SYNTHETIC | {"limit": limit, "validation": validation}).train.labels) == limit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"limit": 0}, ["dataset.limit=0", "at least 1"]),
        ({"limit": 2.5}, ["dataset.limit=2.5", "integer"]),
        ({"limit": 91}, ["dataset.limit=91", "90 training images", "null"]),
        ({"limit": 71, "validation": 20}, ["dataset.limit=71", "70 training images", "dataset.validation=20", "90"]),
        ({"validation": -1}, ["dataset.validation=-1", "at least 0"]),
        ({"validation": 90}, ["dataset.validation=90", "90 training images"]),
        ({"augmentation": {"crop_padding": -1}}, ["dataset.augmentation.crop_padding=-1", "0 for no crop"]),
        ({"augmentation": {"flip": 1}}, ["dataset.augmentation.flip=1", "true or false"]),
        ({"augmentation": {"flop": True}}, ["dataset.augmentation.flop", "Did you mean 'flip'?"]),
        ({"augmentation": True}, ["dataset.augmentation=True", "crop_padding and flip"]),
        ({"num_classes": 0}, ["dataset.num_classes=0", "at least 1"]),
    ],
)
def test_a_wrong_value_is_refused_by_name(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build_dataset(SYNTHETIC | changes)
    assert all(word in str(error.value) for word in words), str(error.value)


# Loaders


@pytest.mark.parametrize("file", CONF, ids=lambda file: file.stem)
def test_every_yaml_fits_its_loader(file: Path) -> None:
    node = yaml.safe_load(file.read_text())
    assert {"_target_", "name", *COMMON_KEYS} <= set(node)
    check_callable("dataset", {key: value for key, value in node.items() if key not in COMMON_KEYS}, ())
    augmentation = Augmentation.from_config(node["augmentation"])
    if file.stem.startswith("cifar"):
        assert augmentation == Augmentation(crop_padding=4, flip=True)  # the paper's
    if file.stem == "digits":
        assert not augmentation.flip


def test_digits_are_there_without_importing_scikit_learn() -> None:
    """Which takes most of a second, in every process with images or labels."""
    code = (
        "import sys; from fr_bench.data import build_dataset\n"
        "build_dataset({'_target_': 'fr_bench.data.digits.load', 'name': 'digits'})\n"
        "assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_statistics_are_those_of_each_channel() -> None:
    images = random_images(50, 3, 4, 5)
    images[:, 1] //= 3
    images[:, 2] = 7
    pixels = images.double().div(255).transpose(0, 1).flatten(1)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx(pixels.mean(1).tolist())
    assert std == pytest.approx([*pixels[:2].std(1, correction=0).tolist(), 1.0])  # without spread: not scaled


@pytest.mark.parametrize("file", [digits_file.FILE, "elsewhere.csv.gz"])
def test_digits_are_scikit_learns_in_a_split_that_never_changes(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    monkeypatch.setattr(digits_file, "FILE", file)
    small = build_dataset({"_target_": "fr_bench.data.digits.load", "name": "digits", "size": 8})
    original = torch.from_numpy(load_digits().images).mul(255 / 16).round().to(torch.uint8)
    together = torch.cat((small.train.images, small.test.images)).squeeze(1)
    assert sorted(map(tuple, together.flatten(1).tolist())) == sorted(map(tuple, original.flatten(1).tolist()))
    digits = build_dataset({"_target_": "fr_bench.data.digits.load", "name": "digits"})
    assert digits.input_shape == (1, 16, 16) and digits.num_classes == 10
    assert (len(digits.train.labels), len(digits.test.labels)) == (1437, 360)
    assert digits.test.labels.bincount().min() > 20
    pixels = digits.train.images.double() / 255
    assert digits.mean + digits.std == pytest.approx([pixels.mean().item(), pixels.std(correction=0).item()])
    assert (checksum(digits.train), checksum(digits.test)) == ("fdebb9b3ce5b774a", "ebd0a8d4f6758c10")
    with pytest.raises(ConfigError, match=r"dataset\.size=7"):
        build_dataset({"_target_": "fr_bench.data.digits.load", "size": 7})


def test_synthetic_images_can_be_learned_and_never_change() -> None:
    dataset = build_dataset(SYNTHETIC)
    means = torch.stack([dataset.train.images[dataset.train.labels == c].float().mean(0) for c in range(4)])
    distances = torch.cdist(dataset.test.images.float().flatten(1), means.flatten(1))
    assert (distances.argmin(1) == dataset.test.labels).float().mean() > 0.9
    assert (checksum(dataset.train), checksum(dataset.test)) == ("ac5665f39e612609", "97507d7ef3fe7f0b")


def idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


@pytest.fixture
def clothes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, np.ndarray]:
    """Twelve and five small images; Debian's folder is one of the test."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    arrays = {}
    for part, count in (("train", 12), ("t10k", 5)):
        images = random_images(count, 28, 28).numpy()
        arrays[f"{part}-images-idx3-ubyte"] = images if part == "train" else 255 - images
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8) % 10
    return arrays


def write_clothes(folder: Path, clothes: dict[str, np.ndarray], compress: bool) -> None:
    folder.mkdir(parents=True)
    for name, values in clothes.items():
        content = idx(values)
        (folder / (f"{name}.gz" if compress else name)).write_bytes(gzip.compress(content) if compress else content)


def clothes_config(root: str, download: bool = False) -> dict[str, Any]:
    return {"_target_": "fr_bench.data.fashion_mnist.load", "name": "f", "root": root, "download": download}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("folder", ["data/FashionMNIST/raw", "debian"])
def test_fashion_mnist_is_read_from_idx_files(folder, compress, clothes, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clothes(tmp_path / folder, clothes, compress)
    prepare_dataset(clothes_config("data"))
    dataset = build_dataset(clothes_config("data"))
    assert dataset.input_shape == (1, 28, 28) and dataset.num_classes == 10
    for split, part in ((dataset.train, "train"), (dataset.test, "t10k")):
        assert np.array_equal(split.images.squeeze(1).numpy(), clothes[f"{part}-images-idx3-ubyte"])
        assert np.array_equal(split.labels.numpy(), clothes[f"{part}-labels-idx1-ubyte"])


def test_files_put_into_the_folder_go_before_those_of_the_system_and_plain_ones_before_compressed(
    clothes, tmp_path
) -> None:
    folder = tmp_path / "data" / "FashionMNIST" / "raw"
    write_clothes(folder, clothes, compress=False)
    for path in list(folder.iterdir()):
        (folder / f"{path.name}.gz").write_bytes(b"")
    write_clothes(tmp_path / "debian", {name: values[:1] for name, values in clothes.items()}, compress=False)
    assert fashion_mnist.find(str(tmp_path / "data")) == [folder / name for name in fashion_mnist.FILES]
    (folder / fashion_mnist.FILES[0]).unlink()
    (folder / f"{fashion_mnist.FILES[0]}.gz").unlink()
    assert fashion_mnist.find(str(tmp_path / "data")) == [tmp_path / "debian" / name for name in fashion_mnist.FILES]


@pytest.mark.parametrize(
    "damage", ["truncated", "truncated before compression", "header alone", "flipped bit", "not idx", "empty"]
)
def test_a_damaged_idx_file_is_named(damage: str, clothes, tmp_path) -> None:
    write_clothes(tmp_path / "debian", clothes, compress=True)
    path = tmp_path / "debian" / "t10k-images-idx3-ubyte.gz"
    content = path.read_bytes()
    flipped = content[:2000] + bytes((content[2000] ^ 1,)) + content[2001:]
    path.write_bytes(
        {
            "truncated": content[:-100],
            "truncated before compression": gzip.compress(gzip.decompress(content)[:-1]),
            "header alone": gzip.compress(gzip.decompress(content)[:6]),
            "flipped bit": flipped,
            "not idx": gzip.compress(b"hello, this is no idx file"),
            "empty": b"",
        }[damage]
    )
    with pytest.raises(ConfigError, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
        build_dataset(clothes_config(str(tmp_path / "data")))


@pytest.mark.parametrize("fault", ["truncated", "a folder"])
def test_the_program_names_a_data_file_that_cannot_be_read_and_starts_nothing(fault, clothes, tmp_path, capsys) -> None:
    write_clothes(tmp_path / "debian", clothes, compress=False)
    path = tmp_path / "debian" / "train-labels-idx1-ubyte"
    content = path.read_bytes()
    path.unlink()
    if fault == "truncated":
        path.write_bytes(content[:-1])
    else:
        path.mkdir()
    words = ["model=mlp", "dataset=fashion_mnist", f"dataset.root={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", *words, "wandb.mode=disabled"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fr-bench: dataset") and str(path) in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


# Files that are fetched


def cifar_archive(folder: Path, source: type[CIFAR10], key: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Writes an archive in CIFAR's format into ``folder`` and makes torchvision expect it; returns its content."""
    generator, content = np.random.default_rng(0), {}
    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": []}
    folder.mkdir()
    with tarfile.open(folder / source.filename, "w:gz") as archive:
        for kind in lists:
            for name, _ in getattr(source, kind):
                images = generator.integers(0, 256, (6, 3072), dtype=np.uint8)
                content[name] = {"data": images, key: list(range(6)), "batch_label": "made by a test"}
                raw = pickle.dumps(content[name], protocol=2)
                info = tarfile.TarInfo(f"{source.base_folder}/{name}")
                info.size = len(raw)
                archive.addfile(info, io.BytesIO(raw))
                lists[kind].append([name, hashlib.md5(raw).hexdigest()])
        for kind, value in lists.items():
            monkeypatch.setattr(source, kind, value)
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5((folder / source.filename).read_bytes()).hexdigest())
    monkeypatch.setattr(source, "url", NOWHERE + source.filename)
    return content


def cifar_config(root: Path | str, num_classes: int = 10, download: bool = True) -> dict[str, Any]:
    target = f"fr_bench.data.cifar.load_cifar{num_classes}"
    return {"_target_": target, "name": f"cifar{num_classes}", "root": str(root), "download": download}


class Server:
    """Serves a folder, slowly, and keeps the paths of what was fetched."""

    def __init__(self, folder: Path) -> None:
        self.fetched = fetched = []  # type: ignore[var-annotated]

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers.get("Method") == "HEAD":  # torchvision looks for redirects, by a GET that it drops
                    return self.do_HEAD()
                fetched.append(self.path)
                time.sleep(0.3)
                super().do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "remote")
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.mark.parametrize(("source", "num_classes", "key"), [(CIFAR10, 10, "labels"), (CIFAR100, 100, "fine_labels")])
def test_cifar_is_downloaded_once_and_read(source, num_classes, key, server, tmp_path, monkeypatch) -> None:
    content = cifar_archive(tmp_path / "remote", source, key, monkeypatch)
    monkeypatch.setattr(source, "url", server.url + source.filename)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        prepare_dataset(cifar_config("data", num_classes))
    assert server.fetched == [f"/{source.filename}"]
    dataset = build_dataset(cifar_config("data", num_classes))
    assert dataset.num_classes == num_classes and dataset.input_shape == (3, 32, 32)
    assert (dataset.mean[0], dataset.std[0]) == ((0.4914, 0.2470) if num_classes == 10 else (0.5071, 0.2673))
    for split, files in ((dataset.train, source.train_list), (dataset.test, source.test_list)):
        expected = np.concatenate([content[name]["data"] for name, _ in files]).reshape(-1, 3, 32, 32)
        assert np.array_equal(split.images.numpy(), expected)
        assert split.labels.tolist() == list(range(6)) * len(files)


def test_processes_that_start_together_download_and_unpack_once(server, tmp_path, monkeypatch) -> None:
    cifar_archive(tmp_path / "remote", CIFAR10, "labels", monkeypatch)
    monkeypatch.setattr(CIFAR10, "url", server.url + CIFAR10.filename)
    unpack, log = cifar.unpack, tmp_path / "unpacked"

    def unpack_and_tell(*arguments: Any) -> None:
        log.open("a").write("once\n")
        unpack(*arguments)

    monkeypatch.setattr(cifar, "unpack", unpack_and_tell)
    context = multiprocessing.get_context("fork")  # the children keep what the test replaced
    children = [context.Process(target=prepare_dataset, args=(cifar_config(tmp_path / "data"),)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert log.read_text() == "once\n"
    assert server.fetched == [f"/{CIFAR10.filename}"]


def test_an_archive_put_there_by_hand_is_unpacked_without_a_network(tmp_path, monkeypatch) -> None:
    cifar_archive(tmp_path / "data", CIFAR10, "labels", monkeypatch)
    prepare_dataset(cifar_config(tmp_path / "data", download=False))
    assert len(build_dataset(cifar_config(tmp_path / "data")).train.labels) == 30
    damaged = tmp_path / "data" / "cifar-10-batches-py" / "data_batch_3"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"data_batch_3 is damaged"):
        build_dataset(cifar_config(tmp_path / "data"))
    prepare_dataset(cifar_config(tmp_path / "data", download=False))  # repairs it from the archive
    assert len(build_dataset(cifar_config(tmp_path / "data")).train.labels) == 30


def test_a_complete_folder_is_not_written_to(tmp_path, monkeypatch) -> None:
    cifar_archive(tmp_path / "data", CIFAR10, "labels", monkeypatch)
    with tarfile.open(tmp_path / "data" / CIFAR10.filename) as archive:
        archive.extractall(tmp_path / "shared")
    prepare_dataset(cifar_config(tmp_path / "shared"))
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["cifar-10-batches-py"]


def test_a_download_with_a_wrong_checksum_is_refused_and_tried_again(server, tmp_path, monkeypatch) -> None:
    cifar_archive(tmp_path / "remote", CIFAR10, "labels", monkeypatch)
    monkeypatch.setattr(CIFAR10, "url", server.url + CIFAR10.filename)
    remote = tmp_path / "remote" / CIFAR10.filename
    good = remote.read_bytes()
    remote.write_bytes(good[:-10])
    with pytest.raises(ConfigError, match="corrupted"):
        prepare_dataset(cifar_config(tmp_path / "data"))
    assert not (tmp_path / "data" / CIFAR10.filename).exists()
    remote.write_bytes(good)
    prepare_dataset(cifar_config(tmp_path / "data"))
    assert len(build_dataset(cifar_config(tmp_path / "data")).test.labels) == 6


def test_fashion_mnist_is_downloaded_file_by_file(server, clothes, tmp_path, monkeypatch) -> None:
    write_clothes(tmp_path / "remote", clothes, compress=True)
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in (tmp_path / "remote").iterdir()]
    monkeypatch.setattr(FashionMNIST, "resources", sums)
    monkeypatch.setattr(FashionMNIST, "mirrors", [server.url])
    for _ in range(2):
        prepare_dataset(clothes_config(str(tmp_path / "data"), download=True))
    assert len(server.fetched) == 4
    assert len(build_dataset(clothes_config(str(tmp_path / "data"))).train.labels) == 12
    (tmp_path / "data" / "FashionMNIST" / "raw" / sums[2][0]).unlink()
    prepare_dataset(clothes_config(str(tmp_path / "data"), download=True))
    assert server.fetched[4:] == [f"/{sums[2][0]}"]  # what is there stays


def test_without_a_network_the_message_says_what_to_put_where(clothes, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(CIFAR10, "url", NOWHERE + CIFAR10.filename)
    monkeypatch.setattr(FashionMNIST, "mirrors", [NOWHERE])
    for config, path in (
        (cifar_config("data"), tmp_path / "data" / "cifar-10-python.tar.gz"),
        (clothes_config("data", download=True), tmp_path / "data" / "FashionMNIST" / "raw"),
    ):
        with pytest.raises(ConfigError) as error:
            prepare_dataset(config)
        for words in (str(path), "Connection refused", "dataset=digits works without a download"):
            assert words in str(error.value)


def test_download_false_touches_neither_network_nor_disk(server, clothes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(CIFAR10, "url", server.url + CIFAR10.filename)
    monkeypatch.setattr(FashionMNIST, "mirrors", [server.url])
    for config in (cifar_config(tmp_path / "data", download=False), clothes_config(str(tmp_path / "data"))):
        with pytest.raises(ConfigError, match=r"dataset\.download=false.*data.*dataset=digits"):
            prepare_dataset(config)
    assert server.fetched == [] and not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["device=cuda"], "device=cuda"),
        (["transport=nccl", "device=cpu"], "transport=nccl"),
        (["resume=nothere"], "resume=nothere"),
        (["k=20"], "k=20"),
        (["partition=[3,90,95]"], "partition="),
        (["dataset.limit=70000"], "there are 50000 training images"),
        (["dataset.validation=100", "dataset.limit=100", "batch_size=128"], "the training set has 100 images"),
    ],
)
def test_what_else_is_wrong_is_said_before_anything_is_fetched(
    words: list[str], message: str, server, tmp_path, monkeypatch, capsys
) -> None:
    if words == ["device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(CIFAR10, "url", server.url + CIFAR10.filename)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "model=resnet20", "k=2", "wandb.mode=disabled", *words]) == 2
    assert message in capsys.readouterr().err
    assert server.fetched == [] and list(tmp_path.iterdir()) == []


def test_a_dry_run_needs_no_images(server, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(CIFAR10, "url", server.url + CIFAR10.filename)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["train", "model=resnet20", "k=2", "dry_run=true", "method=ddp", "wandb.mode=disabled"]) == 0
    assert "resnet20 on cifar10: nothing is trained" in capsys.readouterr().out
    assert server.fetched == [] and not (tmp_path / "data").exists()


def test_what_data_sets_declare_is_what_is_left_of_them(clothes, tmp_path, monkeypatch) -> None:
    write_clothes(tmp_path / "FashionMNIST" / "raw", clothes, compress=False)
    config = clothes_config(str(tmp_path)) | {"validation": 3, "limit": 5}
    there = Outline.of(build_dataset(config))
    monkeypatch.setattr(fashion_mnist.load, "outline", Outline(there.sample, 12, there.num_test))
    assert outline_dataset(config) == there and (there.num_train, there.num_validation) == (5, 3)


# A user's own, and the doctor


def mine(wrong: str = "") -> Dataset:
    split = Split(random_images(8, 1, 4, 4), torch.arange(8) % 2)
    if wrong == "dtype":
        split = Split(split.images.float(), split.labels)
    if wrong == "labels":
        split = Split(split.images, split.labels[:-1])
    if wrong == "type":
        return split  # type: ignore[return-value]
    validation = Split(random_images(3, 1, 4, 4), torch.arange(3) % 2) if wrong == "" else None
    if wrong.startswith("validation"):
        size = 5 if wrong == "validation shape" else 4
        validation = Split(
            random_images(3, 1, size, size), torch.arange(3) % (3 if wrong == "validation labels" else 2)
        )
    return Dataset(split, split, validation, 1 if wrong == "num_classes" else 2, (0.5,), (0.5,))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            "dtype",
            r"mean=\(0.5,\) and std=\(0.5,\) are for images.*; float32 \[8, 1, 4, 4\] reach the model as they are",
        ),
        ("labels", r"train labels must be integers \[8, ...\], one or several a sample, not int64 \[7\]"),
        ("num_classes", "labels must be 0 to 0, not 0 to 1"),
        ("type", "must return a fr_bench.data.Dataset, not Split"),
        ("validation labels", "validation labels must be 0 to 1, not 0 to 2"),
        ("validation shape", "training and validation images are not alike, uint8"),
    ],
)
def test_what_a_users_loader_returns_is_checked(wrong: str, words: str) -> None:
    config = {"_target_": "test_data.mine", "name": "mine", "limit": 4}
    limited = build_dataset(config)
    assert len(limited.train.labels) == 4 and limited.validation is not None and len(limited.validation.labels) == 3
    held_out = build_dataset(config | {"validation": 2}).validation
    assert held_out is not None and len(held_out.labels) == 2
    with pytest.raises(ConfigError, match=words):
        build_dataset(config | {"wrong": wrong})


def test_the_doctor_says_which_data_sets_are_there(clothes, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("FR_BENCH_DATA", str(tmp_path / "data"))
    found = doctor.examine()["datasets"]
    assert {name for name, state in found.items() if state["found"]} == {"digits", "synthetic", "text"}
    assert set(found) == {file.stem for file in CONF}
    write_clothes(tmp_path / "data" / "FashionMNIST" / "raw", clothes, compress=False)
    cifar_archive(tmp_path / "remote", CIFAR100, "fine_labels", monkeypatch)
    (tmp_path / "remote" / CIFAR100.filename).rename(tmp_path / "data" / CIFAR100.filename)
    assert doctor.main([]) == 0
    rows = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert f"found: {tmp_path}/data/FashionMNIST/raw" in rows["data set fashion_mnist"]
    assert "which the first run unpacks" in rows["data set cifar100"]
    assert f"{tmp_path}/data/cifar-10-python.tar.gz" in rows["data set cifar10"]


def test_a_padding_that_is_true_is_refused() -> None:
    with pytest.raises(ConfigError, match="crop_padding=True: must be a number of pixels"):
        Augmentation.from_config({"crop_padding": True})


def test_a_declared_validation_set_stays_unless_others_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Outline.of(mine())
    monkeypatch.setattr(sys.modules["test_data"].mine, "outline", whole, raising=False)
    config = {"_target_": "test_data.mine", "name": "mine"}
    assert outline_dataset(config).num_validation == 3
    assert outline_dataset(config | {"validation": 2}).num_validation == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"std": (0.0,)}, "std must be above 0"),
        ({"num_classes": True}, "num_classes=True must be an integer"),
        ({"mean": (0.5, 0.5)}, "a number for each of 1 channels"),
        (
            {"test": Split(random_images(2, 1, 4, 4), torch.zeros(2, dtype=torch.int32))},
            r"training and test labels are not alike, int64 \[8\] and int32 \[2\]",
        ),
        ({"test": Split(random_images(2, 1, 4, 4), torch.tensor([1, -1]))}, "labels must be 0 to 1, not -1 to 1"),
        ({"train": Split(torch.zeros(4, 0), torch.zeros(4, dtype=torch.int64))}, "the train images are none at all"),
    ],
)
def test_what_a_data_set_says_of_itself_is_checked(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_dataset(dataclasses.replace(mine(), **changes), "mine")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
def test_tokens_and_labels_may_be_integers_of_any_size(dtype: torch.dtype) -> None:
    split = Split(torch.ones(4, 3, dtype=dtype), torch.zeros(4, dtype=dtype))
    check_dataset(Dataset(split, split, None, 2), "mine")


def test_a_std_without_images_is_refused() -> None:
    split = Split(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"mean=\(\) and std=\(0.5,\) are for images"):
        check_dataset(Dataset(split, split, None, 2, std=(0.5,)), "mine")


def test_a_download_leaves_the_timeout_of_sockets_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    during = []

    def download_url(_: str, root: str, name: str, __: str) -> None:
        during.append(socket.getdefaulttimeout())
        (Path(root) / name).write_text("x")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
    before = socket.getdefaulttimeout()
    download.fetch("http://127.0.0.1:1/x", tmp_path / "x", "0")
    assert during == [download.TIMEOUT_S] and socket.getdefaulttimeout() == before


@pytest.mark.parametrize(
    "error",
    [IncompleteRead(b""), EOFError("cut"), ReadError("no"), RuntimeError("md5"), OSError(5, "gone")],
    ids=lambda error: type(error).__name__,
)
def test_whatever_goes_wrong_with_a_download_says_what_to_put_where(error: Exception, tmp_path: Path) -> None:
    def fill() -> None:
        raise error

    with pytest.raises(NotThere, match=r"fetching it failed.*Put it there; dataset=digits works"):
        obtain("X", tmp_path, fill, "Put it there")
