"""The ViT against timm and transformers: same logits and gradients from the same weights, through `convert`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.models.convert.describe import ImportOptions, parse_given
from vitscale.models.convert.importing import describe, import_weights
from vitscale.models.multitask import define_model

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
SMALL = {"img_size": 64, "depth": 2, "num_classes": 7}


def randomise(model):
    """Every parameter random, at scales that keep activations of order 1; nothing is left at 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.ndim == 1 and name.endswith("weight")  # of a LayerNorm
            fan_in = parameter[0].numel() if parameter.ndim in (2, 4) else 25
            parameter.copy_(noise / fan_in**0.5 + is_scale)
    return model.eval()


def save_timm(model, folder):
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, path)
    return path


def images(imported, batch=2, seed=0):
    """Normalised pixels, NHWC for us and NCHW for torch."""
    height, width = imported.model.image_hw
    x = np.random.default_rng(seed).standard_normal((batch, height, width, 3), np.float32)
    return x, torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def ours(imported, x):
    definition = define_model(imported.model, imported.tasks, imported.classes)
    expected = {n: tuple(s.shape) for n, s in definition.variable_shapes().items()}
    assert {n: np.shape(a) for n, a in imported.params.items()} == expected
    return jax.jit(lambda p, x: definition.merge(p)(x))(imported.params, x)


def load(path, name, *given, kind="timm"):
    return import_weights(kind, ImportOptions(path, name, given=parse_given(list(given))))


def agree(a, b, atol=1e-4):
    a, b = np.asarray(a), b.detach().numpy()
    assert a.shape == b.shape
    assert np.abs(b).max() > 0.3  # a comparison of zeros would show nothing
    np.testing.assert_allclose(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("name", "arguments", "given"),
    [
        ("vit_tiny_patch16_224", {}, ()),
        ("vit_small_patch32_224", {"img_size": (96, 64)}, ("image_size=(96,64)",)),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, ()),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}, ()),
        ("vit_base_patch16_siglip_gap_224", {}, ()),
        ("vit_base_patch16_siglip_224", {"img_size": 224}, ()),
        ("vit_so400m_patch16_siglip_256", {"depth": 1}, ()),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 56}, ()),
        ("vit_medium_patch16_reg4_gap_256", {}, ()),
        ("vit_tiny_patch16_224", {"qk_norm": True, "init_values": 0.1, "reg_tokens": 3}, ()),
        ("vit_giant_patch14_dinov2", {"img_size": 28, "depth": 1}, ()),
    ],
)
def test_logits_equal_timms(timm, tmp_path, name, arguments, given):
    model = randomise(timm.create_model(name, **{**SMALL, **arguments}))
    imported = load(save_timm(model, tmp_path), name, *given)
    x, theirs = images(imported)
    with torch.no_grad():
        agree(ours(imported, x)["label"], model(theirs))
        agree(ours(imported, x)["pooled"], model.forward_head(model.forward_features(theirs), True))


def test_logits_equal_timms_at_full_size(timm, tmp_path):
    name = "vit_base_patch16_224"
    model = randomise(timm.create_model(name, num_classes=10))
    imported = load(save_timm(model, tmp_path), name)
    assert imported.model.variant == "B/16"
    x, theirs = images(imported, batch=1)
    with torch.no_grad():
        agree(ours(imported, x)["label"], model(theirs))


@pytest.mark.parametrize("scan", [False, True])
def test_every_parameters_gradient_equals_timms(timm, tmp_path, scan):
    name = "vit_tiny_patch16_224"
    model = randomise(timm.create_model(name, **SMALL, init_values=0.5, qk_norm=True, reg_tokens=2))
    path = save_timm(model, tmp_path)
    imported = load(path, name, f"scan_layers={scan}")
    x, theirs = images(imported, batch=4)
    labels = np.arange(4)
    torch.nn.functional.cross_entropy(model(theirs), torch.from_numpy(labels)).backward()
    definition = define_model(imported.model, imported.tasks, imported.classes)

    @jax.jit
    @jax.grad
    def gradients(params):
        logits = jax.nn.log_softmax(definition.merge(params)(x)["label"])
        return -jnp.mean(logits[np.arange(4), labels])

    found = gradients({n: jnp.asarray(a) for n, a in imported.params.items()})
    described = describe("timm", ImportOptions(path, name))
    grads = {n: p.grad.numpy() for n, p in model.named_parameters()}
    expected = described.weights.to_params(grads.__getitem__)
    if scan:
        from vitscale.models.layers import stack_layers

        expected = stack_layers(expected)
    assert set(found) == set(expected)
    for key, value in expected.items():
        scale = max(np.abs(value).max(), 1e-3)
        np.testing.assert_allclose(found[key] / scale, value / scale, atol=1e-4, err_msg=key)


def save_transformers(model, folder):
    model.save_pretrained(folder)
    return folder


SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "image_size": 64,
    "patch_size": 16,
}


@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh"])
def test_pooler_output_equals_transformers_vit(transformers, tmp_path, act):
    config = transformers.ViTConfig(**SIZES, hidden_act=act)
    model = randomise(transformers.ViTModel(config))
    imported = load(save_transformers(model, tmp_path), "", kind="hf")
    assert imported.model.norm_eps == 1e-12
    x, theirs = images(imported)
    with torch.no_grad():
        agree(ours(imported, x)["pooled"], model(theirs).pooler_output)


def test_logits_equal_transformers_vit_for_image_classification(transformers, tmp_path):
    names = {0: "cat", 1: "dog", 2: "eel"}
    config = transformers.ViTConfig(
        **SIZES, id2label=names, label2id={v: k for k, v in names.items()}
    )
    model = randomise(transformers.ViTForImageClassification(config))
    folder = save_transformers(model, tmp_path)
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    imported = load(folder, "", kind="hf")
    assert imported.classes == {"label": ["cat", "dog", "eel"]}
    assert imported.model.mean == (0.4, 0.5, 0.6)
    assert imported.model.std == (0.2, 0.3, 0.4)
    x, theirs = images(imported)
    with torch.no_grad():
        agree(ours(imported, x)["label"], model(theirs).logits)


def test_pooler_output_equals_transformers_siglip(transformers, tmp_path):
    model = randomise(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES)))
    imported = load(save_transformers(model, tmp_path), "", kind="hf")
    assert imported.model.mlp == "gelu_tanh"
    x, theirs = images(imported)
    with torch.no_grad():
        agree(ours(imported, x)["pooled"], model(theirs).pooler_output)


def test_the_vision_tower_of_a_siglip_pair_is_found(transformers, tmp_path, caplog):
    text = {**SIZES, "vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.SiglipConfig(vision_config=SIZES, text_config=text)
    model = randomise(transformers.SiglipModel(config))
    with caplog.at_level("INFO"):
        imported = load(save_transformers(model, tmp_path), "", kind="hf")
    assert "text tower" in caplog.text
    x, theirs = images(imported)
    with torch.no_grad():
        agree(ours(imported, x)["pooled"], model.get_image_features(theirs).pooler_output)
