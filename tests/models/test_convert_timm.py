"""timm's names, files and hub folders: what is inferred, what comes back, what is refused."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vitscale.errors import UserError
from vitscale.models.convert.describe import ImportOptions, parse_given
from vitscale.models.convert.exporting import export_weights
from vitscale.models.convert.importing import import_weights
from vitscale.models.convert.timm_names import heads_of, vit_facts


def load(path, name="", *given, **options):
    return import_weights(
        "timm", ImportOptions(path, name, given=parse_given(list(given))), **options
    )


def same_arrays(a, b):
    assert set(a) == set(b)
    for name, value in a.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(b[name]), err_msg=name)


def test_names_say_what_timms_registry_says(timm):
    from timm.layers import GELUTanh
    from timm.models.vision_transformer import Block

    checked = 0
    for name in timm.list_models("vit_*", module="vision_transformer"):
        try:
            facts = vit_facts(name)
            model = timm.create_model(name, depth=1, device="meta")
        except UserError:
            continue  # said to be another computation
        keys = model.state_dict()
        if type(model.blocks[0]) is not Block:
            continue
        if "patch_embed.proj.weight" not in keys or "blocks.0.attn.qkv.bias" not in keys:
            continue  # the missing keys tell
        block, config = model.blocks[0], model.pretrained_cfg
        assert block.attn.num_heads == heads_of(name, model.embed_dim), name
        assert block.norm1.eps == 1e-6, name
        gated = keys["blocks.0.mlp.fc1.weight"].shape[0] != keys["blocks.0.mlp.fc2.weight"].shape[1]
        if not gated:
            assert isinstance(block.mlp.act, GELUTanh) == (facts.mlp == "gelu_tanh"), name
        assert facts.patch == keys["patch_embed.proj.weight"].shape[2], name
        assert model.embed_dim in (facts.widths or [model.embed_dim]), name
        if (tag := config.get("tag")) and "radio" not in name and "intern" not in name:
            tagged = vit_facts(f"{name}.{tag}")
            assert (tagged.mean, tagged.std) == (config["mean"], config["std"]), f"{name}.{tag}"
        checked += 1
    assert checked > 80


MODELS = {
    "cls": {"pooling": "cls"},
    "cls with positions": {"pooling": "cls", "prefix_position": True, "mlp": "gelu_erf"},
    "gap": {"pooling": "gap"},
    "gap after": {
        "pooling": "gap",
        "gap_norm": "after",
        "class_token": True,
        "prefix_position": True,
    },
    "map": {"pooling": "map", "image_size": (24, 16)},
    "registers": {"pooling": "map", "register_tokens": 4, "qk_norm": True, "layer_scale": 0.1},
    "swiglu": {"pooling": "cls", "mlp": "swiglu", "mlp_dim": 86},
    "scanned": {"pooling": "cls", "scan_layers": True},
    "odd": {"pooling": "gap", "width": 24, "num_heads": 3, "mlp_dim": 50},
}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_export_and_import_give_the_same_arrays_and_config(random_checkpoint, tmp_path, options):
    model = random_checkpoint(
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        eval_crop="centre",
        eval_crop_fraction=0.875,
        **options,
    )
    export_weights("timm", model, tmp_path / "timm")
    back = load(tmp_path / "timm", "", f"scan_layers={model.model.scan_layers}")
    same_arrays(back.params, model.params)
    assert back.classes == model.classes
    for field in (
        "image_hw",
        "mlp",
        "pooling",
        "mean",
        "std",
        "qk_norm",
        "register_tokens",
        "gap_norm",
        "eval_crop",
        "eval_crop_fraction",
    ):
        assert getattr(back.model, field) == getattr(model.model, field), field


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_timm_builds_and_loads_the_exported_folder(timm, random_checkpoint, tmp_path, options):
    torch = pytest.importorskip("torch")
    model = random_checkpoint(**options)
    export_weights("timm", model, tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    theirs = timm.create_model(config["architecture"], **config["model_args"]).eval()
    state = {
        n: torch.from_numpy(a) for n, a in load_file(tmp_path / "timm/model.safetensors").items()
    }
    theirs.load_state_dict(state, strict=True)
    x = np.random.default_rng(0).standard_normal((2, *model.model.image_hw, 3), np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))))
    ours = model.definition.merge(model.params)(x)["label"]
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("cfg", "crop", "words"),
    [
        ({"crop_pct": 0.9, "interpolation": "bicubic"}, ("centre", 0.9), "bicubic interpolation"),
        (
            {"crop_pct": 0.9, "crop_mode": "center", "interpolation": "bilinear"},
            ("centre", 0.9),
            "",
        ),
        ({"crop_pct": 1.0, "crop_mode": "squash"}, ("squash", 1.0), "bicubic"),
        ({"crop_pct": 0.9, "crop_mode": "border"}, ("squash", 1.0), "no counterpart"),
        ({}, ("squash", 1.0), ""),
    ],
)
def test_the_evaluation_crop_of_a_hub_folder(random_checkpoint, tmp_path, caplog, cfg, crop, words):
    caplog.set_level("INFO")
    export_weights("timm", random_checkpoint(pooling="cls"), tmp_path / "timm")
    path = tmp_path / "timm" / "config.json"
    tree = json.loads(path.read_text())
    for name in ("crop_pct", "crop_mode", "interpolation"):
        del tree["pretrained_cfg"][name]
    path.write_text(json.dumps(tree | {"pretrained_cfg": tree["pretrained_cfg"] | cfg}))
    model = load(tmp_path / "timm").model
    assert (model.eval_crop, model.eval_crop_fraction) == crop
    assert words in caplog.text
    given = load(tmp_path / "timm", "", "eval_crop=centre", "eval_crop_fraction=0.5").model
    assert (given.eval_crop, given.eval_crop_fraction) == ("centre", 0.5)


def test_a_resnet_comes_back_exactly_with_its_head(random_checkpoint, tmp_path):
    model = random_checkpoint(variant="resnet50", depth=None, image_size=64)
    export_weights("timm", model, tmp_path / "timm")
    back = load(tmp_path / "timm")
    same_arrays(back.params, model.params)
    assert back.model == model.model
    bare = load(tmp_path / "timm" / "model.safetensors", "resnet50")
    assert bare.model.mean == (0.485, 0.456, 0.406)  # what the weights of that name want
    same_arrays(bare.params, model.params)


def test_fused_qkv_is_q_then_k_then_v(random_checkpoint, tmp_path):
    model = random_checkpoint(pooling="cls")
    export_weights("timm", model, tmp_path / "timm")
    qkv = load_file(tmp_path / "timm" / "model.safetensors")["blocks.1.attn.qkv.weight"]
    for i, part in enumerate(("query", "key", "value")):
        kernel = model.params[f"backbone/blocks/1/attention/{part}/kernel"]
        np.testing.assert_array_equal(qkv[32 * i : 32 * (i + 1)], kernel.T)


@pytest.fixture
def tiny(random_checkpoint, tmp_path):
    """The tensors of a bare file of vit_tiny's width."""
    options = {"width": 192, "num_heads": 3, "mlp_dim": 768, "variant": "mu/16", "image_size": 32}
    model = random_checkpoint(pooling="cls", prefix_position=True, mlp="gelu_erf", **options)
    export_weights("timm", model, tmp_path / "hub")
    return load_file(tmp_path / "hub" / "model.safetensors")


def saved(tensors, folder):
    save_file(tensors, folder / "bare.safetensors")
    return folder / "bare.safetensors"


def test_a_bare_file_needs_no_more_than_its_name(tiny, tmp_path):
    imported = load(saved(tiny, tmp_path), "vit_tiny_patch16_224")
    config = imported.model
    assert (config.variant, config.depth, config.num_heads) == ("Ti/16", 2, None)
    assert (config.image_size, config.pooling, config.prefix_position) == (32, "cls", True)
    assert config.mlp == "gelu_erf"
    assert load(saved(tiny, tmp_path), "vit_tiny_patch16_224", "num_heads=6").model.num_heads == 6


def test_half_precision_files_become_float32(tiny, tmp_path):
    import ml_dtypes

    full = load(saved(tiny, tmp_path), "vit_tiny_patch16_224").params
    for dtype in (np.float16, ml_dtypes.bfloat16):
        lower = {n: a.astype(dtype) for n, a in tiny.items()}
        params = load(saved(lower, tmp_path), "vit_tiny_patch16_224").params
        assert {a.dtype for a in params.values()} == {np.dtype("float32")}
        same_arrays(params, {n: a.astype(dtype).astype(np.float32) for n, a in full.items()})


def test_positions_are_resampled_for_another_image_size(tiny, tmp_path):
    imported = load(saved(tiny, tmp_path), "vit_tiny_patch16_224", image_size=(64, 48))
    assert imported.model.image_size == (64, 48)
    assert imported.params["backbone/position_embedding"].shape == (12, 192)
    same = load(saved(tiny, tmp_path), "vit_tiny_patch16_224", image_size=32)
    np.testing.assert_array_equal(
        same.params["backbone/position_embedding"], tiny["pos_embed"][0, 1:]
    )
    with pytest.raises(UserError, match="does not divide by the patch size"):
        load(saved(tiny, tmp_path), "vit_tiny_patch16_224", image_size=40)


def test_heads_and_class_names(tiny, tmp_path):
    path = saved(tiny, tmp_path)
    assert load(path, "vit_tiny_patch16_224").classes == {"label": list("0123456")}
    names = list("tuvwxyz")
    assert load(path, "vit_tiny_patch16_224", class_names=names).classes == {"label": names}
    dropped = load(path, "vit_tiny_patch16_224", num_classes=0)
    assert dropped.tasks == ()
    assert not any(name.startswith("heads/") for name in dropped.params)
    with pytest.raises(UserError, match="head of 7 classes, not 5"):
        load(path, "vit_tiny_patch16_224", num_classes=5)
    with pytest.raises(UserError, match="7 classes, but there are 2 class names"):
        load(path, "vit_tiny_patch16_224", class_names=["a", "b"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("norm.bias"), "missing norm.bias"),
        (lambda t: t.pop("blocks.0.attn.qkv.bias"), "missing blocks.0.attn.qkv.bias"),
        (lambda t: t.update({"norm_pre.weight": np.ones(192, "f4")}), "extra norm_pre.weight"),
        (
            lambda t: t.update({"norm.weight": np.ones(191, "f4")}),
            r"norm.weight is \(191,\), expected \(192,\)",
        ),
        (lambda t: t.pop("patch_embed.proj.weight"), "is no timm ViT: patch_embed.proj.weight"),
        (lambda t: t.update({"norm.bias": np.ones(192, "i4")}), "norm.bias has the dtype I32"),
        (lambda t: t.update({"pos_embed": np.ones((1, 7, 192), "f4")}), "--config.image_size"),
    ],
)
def test_a_wrong_file_is_said_by_key(tiny, tmp_path, change, words):
    change(tiny)
    with pytest.raises(UserError, match=words):
        load(saved(tiny, tmp_path), "vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "add --model NAME"),
        ("vit_base_patch16_224", "give the model's own name"),
        ("vit_tiny_patch8_224", "give the model's own name"),
        ("vit_base_patch16_rpn_224", "normalises after each branch"),
        ("vit_base_patch16_clip_224", "normalises before the first block"),
        ("swin_tiny", "is not supported"),
        ("resnet50", "is no timm ResNet: conv1.weight"),
    ],
)
def test_a_wrong_name_is_refused(tiny, tmp_path, name, words):
    with pytest.raises(UserError, match=words):
        load(saved(tiny, tmp_path), name)


def test_a_given_variant_must_be_the_files(tiny, tmp_path):
    options = ImportOptions(saved(tiny, tmp_path), "vit_tiny_patch16_224", variant="S/16")
    with pytest.raises(
        UserError, match=r"missing blocks.2.*other shapes: patch_embed.proj.weight is"
    ):
        import_weights("timm", options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"position_embedding": "rope2d"}, "timm cannot express position_embedding='rope2d'"),
        ({"representation_size": 8}, "representation_size"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-05"),
        ({"mlp": "swiglu", "pooling": "map"}, "swiglu"),
    ],
)
def test_what_timm_cannot_express_is_refused(random_checkpoint, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        export_weights("timm", random_checkpoint(**options), tmp_path / "timm")
    assert not (tmp_path / "timm").exists()
