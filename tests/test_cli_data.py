"""`vitscale data inspect` as a user meets it."""

import json

import numpy as np
import pytest
from PIL import Image

from vitscale.cli import main
from vitscale.config import TrainConfig
from vitscale.config_loading import load_config
from vitscale.data.contact_sheet import GAP, View, as_seen, to_pixels
from vitscale.data.inspect import open_sources
from vitscale.data.loader import TrainLoader


@pytest.fixture
def inspect(tmp_path):
    """Runs the command; returns its inspect.json and the contact sheet's pixels."""

    def run(*words):
        output = tmp_path / "look"
        arguments = ["data", "inspect", *map(str, words), "--output", str(output)]
        assert main([*arguments, "--seconds", "0.1", "--pictures", "6"]) == 0
        sheet = np.asarray(Image.open(output / "contact_sheet.png"))
        return json.loads((output / "inspect.json").read_text()), sheet

    return run


def fails(capsys, *words):
    assert main(["data", "inspect", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_a_folder_of_photos(inspect, photos, capsys):
    found, sheet = inspect(photos, "--fields", "colour", "shade", "--image-size", 32, "--all")
    (source,) = found["sources"]
    assert (source["examples"], source["looked_at"], source["bad"]) == (48, 48, {})
    assert source["formats"] == {"JPEG": 48}
    assert source["sizes"] == [["24x24", 48]]
    assert source["width"]["median"] == source["height"]["max"] == 24
    assert source["enlarged"] == 48  # all are smaller than 32 pixels
    colour, shade = source["fields"]["colour"], source["fields"]["shade"]
    assert colour["top"] == [["blue", 16], ["green", 16], ["red", 16]]
    assert colour["effective_classes"] == pytest.approx(3)
    assert (shade["labelled"], shade["labels_per_example"]) == (36, {"0": 12, "1": 36})
    assert found["loader_per_second"] > 0
    assert sheet.ndim == 3
    text = capsys.readouterr().out
    assert "48 examples, all looked at" in text
    assert "shade: 3 of 3 classes seen" in text


def test_numbers_are_shown_as_numbers(inspect, photos, capsys):
    found, _ = inspect(photos, "--fields", "colour", "--numbers", "shade", "--image-size", 8)
    (source,) = found["sources"]
    assert list(source["fields"]) == ["colour"]
    shade = source["numbers"]["shade"]
    assert shade["labelled"] == 36
    assert shade["values"]["min"] < shade["values"]["mean"] < shade["values"]["max"]
    text = capsys.readouterr().out
    assert "numbers, of 48 examples" in text
    assert "labels of shade" not in text


def test_a_sample_is_the_same_every_time(inspect, photos):
    first, _ = inspect(photos, "--fields", "colour", "--examples", 10)
    second, _ = inspect(photos, "--fields", "colour", "--examples", 10)
    assert first["sources"][0]["looked_at"] == 10
    assert first["sources"][0]["fields"] == second["sources"][0]["fields"]


def test_pictures_are_what_the_step_sees(inspect, config_file):
    """With everything that the device does to a batch: tiles of the sheet are the step's pixels, to the bit."""
    spec = config_file(
        model__image_size=24,
        model__mean=(0.4, 0.5, 0.6),
        model__std=(0.2, 0.25, 0.3),
        data__augment={"rand_augment_layers": 1, "random_erasing": 0.5, "mixup_alpha": 1.0},
    )
    _, sheet = inspect("--config", spec, "--config.seed=7")
    view = View.of(load_config(TrainConfig, spec, ["seed=7"]))
    with TrainLoader(
        open_sources(view), view.data, image_size=24, tasks=view.tasks, seed=7
    ) as loader:
        batch = next(loader)
    whole = as_seen(batch.arrays(), view, len(batch.ids))  # the sheet's were made from 6 rows
    pixels = to_pixels(whole["image"], view)
    assert (whole["shares"][:6] < 1).any()
    np.testing.assert_array_equal(sheet[GAP : GAP + 24, GAP : GAP + 24], pixels[0])
    columns = [
        x
        for x in range(sheet.shape[1] - 24)
        if (sheet[GAP : GAP + 24, x : x + 24] == pixels[1]).all()
    ]
    assert len(columns) == 1


def test_every_source_of_a_config(inspect, config_file, photos):
    test = {
        "kind": "csv",
        "path": str(photos / "images.csv"),
        "split": "test",
        "fields": ["colour"],
    }
    train = {**test, "split": "train", "name": "the first"}
    found, _ = inspect("--config", config_file(data__sources=[train, test]))
    assert [(s["name"], s["examples"]) for s in found["sources"]] == [
        ("the first", 40),
        (f"{photos}/images.csv[test]", 8),
    ]


def test_another_source_through_the_eyes_of_a_config(inspect, config_file, photos):
    found, _ = inspect(photos / "images.csv", "--config", config_file())
    (source,) = found["sources"]
    assert source["examples"] == 48  # not the config's split
    assert sorted(source["fields"]) == ["colour", "shade"]


def test_bad_examples_are_counted_by_reason(inspect, photos, tmp_path, capsys):
    good = (photos / "0.jpg").read_bytes()
    folder = tmp_path / "some bad"
    folder.mkdir()
    contents = {"empty": b"", "text": b"hello", "cut": good[:-40], **dict.fromkeys("abcd", good)}
    for name, content in contents.items():
        (folder / f"{name}.jpg").write_bytes(content)
    rows = "".join(f"{name}.jpg,x\n" for name in contents)
    (folder / "images.csv").write_text("path,label\n" + rows)
    found, _ = inspect(folder, "--fields", "label")
    (source,) = found["sources"]
    assert source["bad"] == {"empty": 1, "not an image": 1, "truncated": 1}
    assert ["cut.jpg", "truncated"] in source["bad_examples"]
    assert source["fields"]["label"]["top"] == [["x", 4]]
    assert "truncated: cut.jpg" in capsys.readouterr().out


def test_the_counts_are_kept_when_nothing_can_be_loaded(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "images.csv").write_text("path,label\na.jpg,x\n")
    output = tmp_path / "look"
    assert "empty" in fails(capsys, tmp_path, "--output", output)
    found = json.loads((output / "inspect.json").read_text())
    assert found["sources"][0]["bad"] == {"empty": 1}


def test_what_cannot_be_inspected_is_said_in_words(capsys, photos, tmp_path):
    assert "name SRC" in fails(capsys)
    assert "--config" in fails(capsys, photos, "--config.seed=1")
    assert "does not exist" in fails(capsys, tmp_path / "nowhere")
    assert "colour" in fails(capsys, photos, "--fields", "color")
    assert "--pictures 0" in fails(capsys, photos, "--pictures", 0)
