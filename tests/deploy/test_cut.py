"""Images of one's own are cut as the test images of the run were."""

import json

import numpy as np
import pytest
from PIL import Image

from dataset import DATASETS
from dataset.loader import Loading
from dataset.stream import StreamLoader
from deploy.network import read_deployed
from helper.errors import UserError
from tests.conftest import only
from tools import export as exporting
from tools import predict as predicting

CROPS = [("imagenet", {"crop": "resized"}), ("folder", {"crop": "padded", "in_memory": "off"}),
         ("folder", {"crop": "resized", "in_memory": "off"})]  # fmt: skip


@pytest.fixture
def images(tmp_path):
    """Two classes that differ in the middle of their images alone."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 8), ("val", 6)):
        for c, name in enumerate("ab"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (40 + 3 * i, 57 - 4 * i, 3))
                pixels[15:25, 12:22] = 200 * c
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")


@pytest.mark.parametrize(("dataset", "options"), CROPS)
def test_predictions_have_the_accuracy_of_the_run(dataset, options, images, run, tmp_path, capsys):
    pytest.importorskip("safetensors")
    given = " ".join(f"--{name} {value}" for name, value in options.items())
    run(
        f"train_teacher --model resnet8 --dataset {dataset} --data_dir images --image_size 16 "
        f"--batch_size 8 --num_workers 0 --epochs 2 {given}"
    )
    folder = only(tmp_path / "save" / "models")
    accuracy = json.loads((folder / "run.json").read_text())["last"]["test_acc"]
    exporting.export([f"{folder}/resnet8_last.pth", "--format=safetensors", "--out=out"])
    entry = DATASETS[dataset]
    data = entry.load(entry.Options(data_dir="images", image_size=16, **options))
    (batch,) = StreamLoader(data, "test", 12, Loading()).batches()
    for path in (folder / "resnet8_last.pth", tmp_path / "out"):
        network = read_deployed(path)
        paths = list(data.test.paths)
        shown = [predicting.pixels_of(file, network) for file in paths]
        for pixels, wanted in zip(shown, batch.images, strict=True):
            assert (network.normalise(pixels) - wanted).abs().max() < 1e-5
        capsys.readouterr()
        predicting.predict([str(path), *paths, "--top=1", "--json"])
        lines = map(json.loads, capsys.readouterr().out.splitlines())
        answers = [line["classes"][0]["class"] for line in lines]
        right = [data.classes[label] for label in batch.labels.tolist()]
        hits = sum(map(str.__eq__, answers, right))
        assert 100 * hits / len(right) == pytest.approx(accuracy)


@pytest.mark.parametrize("share", [0, 1.5, "all", None])
def test_a_cut_that_cannot_be_is_one_line(share, tmp_path):
    pixels = {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": share}
    config = {"model_name": "resnet8", "label_names": ["a"], "pretrained_cfg": pixels}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="config.json is broken .crop_pct is "):
        read_deployed(tmp_path)
