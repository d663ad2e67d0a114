"""big_vision's and AugReg's `.npz`: every spelling of the keys, timm's own reader of them, what is refused."""

import ml_dtypes
import numpy as np
import pytest

from vitscale.errors import UserError
from vitscale.models.convert.describe import ImportOptions, parse_given
from vitscale.models.convert.exporting import export_weights
from vitscale.models.convert.importing import import_weights

MODELS = {
    "augreg": {"pooling": "cls", "prefix_position": True},
    "gap": {"pooling": "gap"},
    "cls": {"pooling": "cls"},
    "map": {"pooling": "map"},
    "sincos": {"pooling": "gap", "position_embedding": "sincos2d"},
    "representation": {"pooling": "cls", "prefix_position": True, "representation_size": 24},
    "scanned": {"pooling": "map", "scan_layers": True, "depth": 3},
}


def load(path, *given, **options):
    return import_weights(
        "big_vision", ImportOptions(path, given=parse_given(list(given))), **options
    )


def same_arrays(a, b):
    assert set(a) == set(b)
    for name, value in a.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(b[name]), err_msg=name)


def exported(model, folder):
    export_weights("big_vision", model, folder / "exported.npz")
    with np.load(folder / "exported.npz", allow_pickle=False) as file:
        return dict(file)


def saved(arrays, folder):
    np.savez(folder / "model.npz", **arrays)
    return folder / "model.npz"


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_export_and_import_give_the_same_arrays_and_file(random_checkpoint, tmp_path, options):
    model = random_checkpoint(**options)
    arrays = exported(model, tmp_path)
    back = load(saved(arrays, tmp_path), f"scan_layers={model.model.scan_layers}", "image_size=16")
    same_arrays(back.params, model.params)
    for field in ("pooling", "prefix_position", "representation_size", "image_size", "mlp"):
        assert getattr(back.model, field) == getattr(model.model, field), field


def flax_tree(depth, width, heads, hidden, augreg):
    """A ViT's arrays as flax names them, written down from the published files."""
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.standard_normal(shape, np.float32)

    size = width // heads
    attention, norm, mlp = (
        ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
        if augreg
        else ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    )
    position = "Transformer/posembed_input/pos_embedding" if augreg else "pos_embedding"
    tree = {
        "embedding/kernel": array(8, 8, 3, width),
        "embedding/bias": array(width),
        position: array(1, 5 if augreg else 4, width),
        "cls": array(1, 1, width),
        "head/kernel": array(width, 7),
        "head/bias": array(7),
    }
    for part in ("scale", "bias"):
        tree[f"Transformer/encoder_norm/{part}"] = array(width)
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        for part in ("scale", "bias"):
            tree[f"{block}/LayerNorm_0/{part}"] = array(width)
            tree[f"{block}/{norm}/{part}"] = array(width)
        for part in ("query", "key", "value"):
            tree[f"{block}/{attention}/{part}/kernel"] = array(width, heads, size)
            tree[f"{block}/{attention}/{part}/bias"] = array(heads, size)
        tree[f"{block}/{attention}/out/kernel"] = array(heads, size, width)
        tree[f"{block}/{attention}/out/bias"] = array(width)
        tree[f"{block}/{mlp}/Dense_0/kernel"] = array(width, hidden)
        tree[f"{block}/{mlp}/Dense_0/bias"] = array(hidden)
        tree[f"{block}/{mlp}/Dense_1/kernel"] = array(hidden, width)
        tree[f"{block}/{mlp}/Dense_1/bias"] = array(width)
    return tree


def scanned(tree, depth):
    block = "Transformer/encoderblock"
    names = [n.removeprefix(f"{block}_0/") for n in tree if n.startswith(f"{block}_0/")]
    rest = {n: a for n, a in tree.items() if not n.startswith(f"{block}_")}
    layers = {n: np.stack([tree[f"{block}_{i}/{n}"] for i in range(depth)]) for n in names}
    return rest | {f"{block}/{n}": a for n, a in layers.items()}


@pytest.mark.parametrize("prefix", ["", "params/", "params/img/", "opt/target/"])
@pytest.mark.parametrize("layout", ["augreg", "big_vision", "scanned"])
def test_every_spelling_of_the_keys_gives_the_same_model(tmp_path, layout, prefix, caplog):
    tree = flax_tree(2, 32, 2, 128, augreg=layout == "augreg")
    if layout == "scanned":
        arrays = {prefix + n: a for n, a in scanned(tree, 2).items()}
    else:
        arrays = {prefix + n: a for n, a in tree.items()}
    if prefix.startswith("params/"):  # what lies beside an explicit prefix is left out, and said
        arrays["opt/0/mu/embedding/bias"] = np.zeros(3, np.float32)
        arrays["params/t" if prefix == "params/img/" else "step"] = np.zeros(1, np.float32)
    with caplog.at_level("INFO"):
        imported = load(saved(arrays, tmp_path))
    assert ("left out 2 tensors" in caplog.text) == prefix.startswith("params/")
    config, params = imported.model, imported.params
    assert (config.variant, config.depth, config.image_size) == ("mu/8", 2, 16)
    assert (config.pooling, config.prefix_position) == ("cls", layout == "augreg")
    position = tree.get("pos_embedding", tree.get("Transformer/posembed_input/pos_embedding"))[0]
    np.testing.assert_array_equal(params["backbone/position_embedding"], position[-4:])
    if layout == "augreg":
        np.testing.assert_array_equal(params["backbone/prefix_position"], position[:1])
    np.testing.assert_array_equal(
        params["backbone/patch_embedding/kernel"], tree["embedding/kernel"].reshape(192, 32)
    )
    attention = f"Transformer/encoderblock_1/MultiHeadDotProductAttention_{int(layout == 'augreg')}"
    np.testing.assert_array_equal(
        params["backbone/blocks/1/attention/query/kernel"],
        tree[f"{attention}/query/kernel"].reshape(32, 32),
    )
    np.testing.assert_array_equal(
        params["backbone/blocks/1/attention/out/kernel"],
        tree[f"{attention}/out/kernel"].reshape(32, 32),
    )
    np.testing.assert_array_equal(params["heads/label/linear/kernel"], tree["head/kernel"])


def test_bfloat16_arrays_that_numpy_has_no_name_for(tmp_path):
    tree = flax_tree(1, 32, 2, 128, augreg=False)
    lower = {n: a.astype(ml_dtypes.bfloat16) for n, a in tree.items()}
    path = saved(lower, tmp_path)
    with np.load(path) as file:
        assert file["head/bias"].dtype == "V2"
    params = load(path).params
    np.testing.assert_array_equal(
        params["heads/label/linear/bias"], lower["head/bias"].astype(np.float32)
    )


TIMM = {
    "augreg": {},
    "gap": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "cls": {"no_embed_class": True},
    "map": {"class_token": False, "global_pool": "map"},
}


@pytest.mark.parametrize("kind", [*TIMM, "scanned"])
def test_timms_own_reader_of_the_export_gives_the_same_logits(
    timm, random_checkpoint, tmp_path, kind
):
    torch = pytest.importorskip("torch")
    model = random_checkpoint(**{**MODELS[kind], "depth": 2})
    exported(model, tmp_path)
    theirs = timm.models.VisionTransformer(
        img_size=16,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=2,
        mlp_ratio=4,
        num_classes=7,
        act_layer="gelu_tanh",
        **TIMM["map" if kind == "scanned" else kind],
    ).eval()
    theirs.load_pretrained(str(tmp_path / "exported.npz"))
    x = np.random.default_rng(0).standard_normal((2, 16, 16, 3), np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
    ours = model.definition.merge(model.params)(x)["label"]
    assert np.abs(expected.numpy()).max() > 0.3
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("head/bias"), "missing head/bias"),
        (lambda t: t.update({"opt/step": np.ones(1, "f4")}), "extra opt/step"),
        (lambda t: t.update({"cls": np.ones((1, 2, 32), "f4")}), r"cls is \(1, 2, 32\)"),
        (lambda t: t.pop("embedding/kernel"), "is no big_vision ViT"),
        (lambda t: t.update({"head/bias": np.ones(7, "i4")}), "head/bias has the dtype int32"),
        (lambda t: t.update({"head/bias": np.array([None] * 7)}), "Python objects inside"),
    ],
)
def test_a_wrong_file_is_said_by_key(tmp_path, change, words):
    tree = flax_tree(1, 32, 2, 128, augreg=False)
    change(tree)
    with pytest.raises(UserError, match=words):
        load(saved(tree, tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"position_embedding": "rope2d"}, "position_embedding='rope2d'"),
        ({"mlp": "gelu_erf"}, "mlp='gelu_erf'"),
        ({"mlp": "swiglu"}, "mlp='swiglu'"),
        ({"norm_eps": 1e-5}, "norm_eps"),
        ({"register_tokens": 2}, "register_tokens"),
        ({"layer_scale": 0.1, "qk_norm": True}, "layer_scale, qk_norm"),
        ({"gap_norm": "after"}, "gap_norm='after'"),
        ({"class_token": True}, "a class token beside pooling='gap'"),
        ({"variant": "resnet50", "depth": None, "image_size": 64}, "the CNN resnet50"),
    ],
)
def test_what_big_vision_cannot_express_is_refused(random_checkpoint, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        export_weights("big_vision", random_checkpoint(**options), tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
