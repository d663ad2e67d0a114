"""Folders of `transformers`: exact round trips, folders that transformers itself loads, what is refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vitscale.errors import UserError
from vitscale.models.convert.describe import ImportOptions, parse_given
from vitscale.models.convert.exporting import export_weights
from vitscale.models.convert.importing import import_weights

VIT = {"pooling": "cls", "prefix_position": True, "norm_eps": 1e-12, "mlp": "gelu_erf"}
MODELS = {
    "classifier": (True, VIT),
    "pooler": (False, {**VIT, "representation_size": 32}),
    "bare": (False, {**VIT, "image_size": (24, 16), "scan_layers": True}),
    "siglip": (False, {"pooling": "map"}),
}


def load(folder, *given, **options):
    return import_weights("hf", ImportOptions(folder, given=parse_given(list(given))), **options)


def same_arrays(a, b):
    assert set(a) == set(b)
    for name, value in a.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(b[name]), err_msg=name)


@pytest.mark.parametrize(("head", "options"), MODELS.values(), ids=MODELS)
def test_export_and_import_give_the_same_arrays_config_and_file(
    random_checkpoint, tmp_path, head, options
):
    model = random_checkpoint(head=head, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), **options)
    export_weights("hf", model, tmp_path / "a")
    back = load(tmp_path / "a", f"scan_layers={model.model.scan_layers}")
    same_arrays(back.params, model.params)
    assert back.classes == model.classes
    for field in ("image_hw", "mlp", "pooling", "mean", "std", "representation_size"):
        assert getattr(back.model, field) == getattr(model.model, field), field
    assert (back.model.norm_eps or 1e-6) == (model.model.norm_eps or 1e-6)


def test_a_centre_crop_is_the_processors_too(transformers, random_checkpoint, tmp_path):
    """Their processor, loaded from our folder, shows the part of an image that we evaluate on."""
    from PIL import Image

    from vitscale.data.crops import eval_box

    model = random_checkpoint(**{**VIT, "eval_crop": "centre", "eval_crop_fraction": 0.8})
    export_weights("hf", model, tmp_path / "a")
    back = load(tmp_path / "a").model
    assert (back.eval_crop, back.eval_crop_fraction) == ("centre", 0.8)
    height, width = back.image_hw
    y, x = np.mgrid[:60, :90]
    image = Image.fromarray(np.stack([2 * x, 4 * y, x + y], axis=-1).astype(np.uint8))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "a")
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    theirs = theirs.transpose(1, 2, 0) * back.std[0] + back.mean[0]
    box = eval_box("centre", 0.8, width / height)(90, 60)
    ours = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box)) / 255
    assert np.abs(theirs - ours).max() < 0.03
    export_weights("hf", random_checkpoint(**VIT), tmp_path / "b")
    assert load(tmp_path / "b").model.eval_crop == "squash"


@pytest.mark.parametrize(("head", "options"), MODELS.values(), ids=MODELS)
def test_transformers_loads_the_exported_folder(
    transformers, random_checkpoint, tmp_path, head, options
):
    torch = pytest.importorskip("torch")
    model = random_checkpoint(head=head, **options)
    export_weights("hf", model, tmp_path / "a")
    kind = json.loads((tmp_path / "a" / "config.json").read_text())["architectures"][0]
    more = {"add_pooling_layer": False} if "scan_layers" in options else {}  # "bare"
    theirs, report = getattr(transformers, kind).from_pretrained(
        tmp_path / "a", output_loading_info=True, **more
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    x = np.random.default_rng(0).standard_normal((2, *model.model.image_hw, 3), np.float32)
    with torch.no_grad():
        out = theirs.eval()(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
    ours = model.definition.merge(model.params)(x)
    if head:
        np.testing.assert_allclose(ours["label"], out.logits, atol=1e-4)
    else:
        pooled = out.last_hidden_state[:, 0] if more else out.pooler_output
        np.testing.assert_allclose(ours["pooled"], pooled, atol=1e-4)


def test_the_module_names_of_transformers_5_are_read(transformers, random_checkpoint, tmp_path):
    model = random_checkpoint(**VIT)
    export_weights("hf", model, tmp_path / "a")
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path / "a")
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    assert "vit.layers.0.attention.q_proj.weight" in state
    save_file(state, tmp_path / "a" / "model.safetensors")
    same_arrays(load(tmp_path / "a").params, model.params)


def test_a_plain_cls_token_gets_a_position_of_zero(random_checkpoint, tmp_path):
    model = random_checkpoint(pooling="cls", position_embedding="sincos2d")
    export_weights("hf", model, tmp_path / "a")
    back = load(tmp_path / "a")
    assert back.model.prefix_position
    x = np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32)
    from vitscale.models.multitask import define_model

    again = define_model(back.model, back.tasks, back.classes).merge(back.params)(x)["label"]
    np.testing.assert_allclose(again, model.definition.merge(model.params)(x)["label"], atol=1e-5)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"model_type": "bert"}, "model_type 'bert'; supported are vit, siglip"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"qkv_bias": False}, "qkv_bias=false"),
        ({"hidden_size": 64}, "other shapes: vit.embeddings.cls_token is"),
        ({"num_hidden_layers": 1}, "extra vit.encoder.layer.1"),
        ({"patch_size": [8, 4]}, "must be square"),
    ],
)
def test_a_wrong_config_is_said_in_words(random_checkpoint, tmp_path, tree, words):
    export_weights("hf", random_checkpoint(**VIT), tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **tree}))
    with pytest.raises(UserError, match=words):
        load(tmp_path / "a")


def test_an_extra_tensor_is_an_error(random_checkpoint, tmp_path):
    export_weights("hf", random_checkpoint(**VIT), tmp_path / "a")
    path = tmp_path / "a" / "model.safetensors"
    save_file({**load_file(path), "vit.more": np.ones(1, np.float32)}, path)
    with pytest.raises(UserError, match=r"extra vit\.more"):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    ("head", "options", "words"),
    [
        (True, {"pooling": "gap"}, "pooling='gap'"),
        (True, {"pooling": "map"}, "a classification head .drop it by --task none."),
        (True, {**VIT, "representation_size": 8}, "a head on representation_size"),
        (True, {**VIT, "register_tokens": 2}, "register_tokens"),
        (True, {**VIT, "mlp": "swiglu", "layer_scale": 0.1}, "layer_scale, mlp='swiglu'"),
        (False, {"pooling": "map", "position_embedding": "rope2d"}, "rope2d"),
    ],
)
def test_what_transformers_cannot_express_is_refused(
    random_checkpoint, tmp_path, head, options, words
):
    with pytest.raises(UserError, match=words):
        export_weights("hf", random_checkpoint(head=head, **options), tmp_path / "a")
