"""Damaged and hostile files end as one sentence, never as another exception."""

import contextlib
import functools
import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from vitscale.errors import UserError
from vitscale.models.convert.describe import ImportOptions
from vitscale.models.convert.files import find_safetensors, open_npz, open_safetensors
from vitscale.models.convert.importing import import_weights

ARRAYS = {
    "embedding/kernel": np.ones((2, 2, 3, 8), np.float32),
    "embedding/bias": np.arange(8, dtype=np.float16),
    "cls": np.ones((1, 1, 8), np.float64),
}
HF = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}


@functools.cache
def npz_bytes():
    stream = io.BytesIO()
    np.savez(stream, **ARRAYS)
    return stream.getvalue()


@functools.cache
def safetensors_bytes():
    return save({name.replace("/", "."): array for name, array in ARRAYS.items()})


def damaged(original):
    """Truncated, with bytes changed, with bytes put in, or something else altogether."""
    size = len(original)
    changes = st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), max_size=6)

    def change(spots):
        data = bytearray(original)
        for position, value in spots:
            data[position] = value
        return bytes(data)

    return st.one_of(
        st.integers(0, size).map(lambda end: original[:end]),
        changes.map(change),
        st.tuples(st.integers(0, size), st.binary(max_size=20)).map(
            lambda x: original[: x[0]] + x[1] + original[x[0] :]
        ),
        st.binary(max_size=200),
    )


def read_everything(path, open_file):
    file = open_file(path)
    for name, shape in file.shapes.items():
        array = file.read(name)
        assert array.shape == shape
        assert array.dtype == np.float32


@settings(max_examples=300, deadline=None)
@given(data=damaged(npz_bytes()))
def test_a_damaged_npz_is_a_user_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        read_everything(path, open_npz)
    with pytest.raises(UserError):
        import_weights("big_vision", ImportOptions(path))


@settings(max_examples=300, deadline=None)
@given(data=damaged(safetensors_bytes()))
def test_damaged_safetensors_are_a_user_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        read_everything(path, open_safetensors)
    with pytest.raises(UserError):
        import_weights("timm", ImportOptions(path, "vit_tiny_patch16_224"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(
    data=st.dictionaries(
        st.sampled_from(
            [*HF, "hidden_act", "image_size", "patch_size", "vision_config", "pretrained_cfg"]
        ),
        json_values,
    )
)
def test_a_strange_config_json_is_a_user_error(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "strange"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(
        save({"embeddings.position_embeddings": np.ones((1, 5, 8), np.float32)})
    )
    (folder / "config.json").write_text(json.dumps({**HF, **data}))
    for kind in ("hf", "timm", "safetensors"):
        with pytest.raises(UserError):
            import_weights(kind, ImportOptions(folder))


def test_intact_files_are_read(tmp_path):
    (tmp_path / "a.npz").write_bytes(npz_bytes())
    read_everything(tmp_path / "a.npz", open_npz)
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes())
    read_everything(tmp_path / "a.safetensors", open_safetensors)


def test_fortran_order_is_kept(tmp_path):
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.savez(tmp_path / "a.npz", x=array)
    np.testing.assert_array_equal(open_npz(tmp_path / "a.npz").read("x"), array)


def test_compressed_archives_are_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)
    read_everything(tmp_path / "a.npz", open_npz)


def test_a_pickled_object_is_refused_without_running_it(tmp_path):
    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "a.npz", x=np.array([Runs()], dtype=object))
    with pytest.raises(UserError, match="Python objects inside"):
        open_npz(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


def test_a_shape_that_the_archive_does_not_hold_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("x.npy", "w") as stream:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**15,)}
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(UserError, match="not as long as its shape"):
        open_npz(tmp_path / "a.npz")


def test_shards_are_one_model(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(save({"x": np.ones(2, np.float32)}))
    (tmp_path / "b.safetensors").write_bytes(save({"y": np.zeros(3, np.float32)}))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    file = find_safetensors(tmp_path)
    assert file.shapes == {"x": (2,), "y": (3,)}
    np.testing.assert_array_equal(file.read("y"), np.zeros(3))
    index.write_text(json.dumps({"weight_map": {"x": "../a.safetensors"}}))
    with pytest.raises(UserError, match="file names in the same folder"):
        find_safetensors(tmp_path)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "has 0 .safetensors files"),
        (("pytorch_model.bin",), "is a pickle"),
        (("a.safetensors", "b.safetensors"), "has 2 .safetensors files"),
    ],
)
def test_a_folder_without_one_weights_file_is_refused(tmp_path, files, words):
    for name in files:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=words):
        find_safetensors(tmp_path)
