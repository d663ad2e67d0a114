"""Attention kernels: padding changes nothing, the choice is explained, impossible ones are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from vitscale.errors import UserError
from vitscale.models import vit
from vitscale.models.attention import (
    attend,
    check_attention,
    choose_attention,
    padded_tokens,
)


def qkv(tokens, batch=2, heads=2, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((batch, tokens, heads, dim)).astype(np.float32) for _ in range(3)]


def reference(q, k, v):
    scores = np.einsum("bqhd,bkhd->bhqk", q, k, dtype=np.float64) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v)


def test_xla_attention_matches_the_formula_and_ignores_padding():
    q, k, v = qkv(13)
    ours = attend(q, k, v, valid=13, implementation="xla")
    np.testing.assert_allclose(ours, reference(q, k, v), atol=1e-5)
    padding = ((0, 0), (0, 3), (0, 0), (0, 0))
    padded = [np.pad(x, padding, constant_values=50.0) for x in (q, k, v)]
    masked = attend(*padded, valid=13, implementation="xla")[:, :13]
    np.testing.assert_allclose(masked, ours, atol=1e-5)


def test_tpu_flash_pads_to_its_blocks_without_changing_the_result():
    q, k, v = qkv(37, batch=1, heads=1, dim=128)
    with pltpu.force_tpu_interpret_mode():
        ours = attend(q, k, v, valid=35, implementation="tpu_flash")
    theirs = reference(q[:, :35], k[:, :35], v[:, :35])
    np.testing.assert_allclose(ours[:, :35], theirs, atol=2e-3)


def test_gradients_of_tpu_flash_are_those_of_xla():
    q, k, v = qkv(37, batch=1, heads=2, dim=128)
    weights = np.random.default_rng(1).standard_normal((1, 35, 2, 128)).astype(np.float32)

    def gradients(implementation):
        def loss(q, k, v):
            attended = attend(q, k, v, valid=35, implementation=implementation)
            return jnp.sum(attended[:, :35] * weights)

        return jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    with pltpu.force_tpu_interpret_mode():
        ours = gradients("tpu_flash")
    for name, mine, theirs in zip("qkv", ours, gradients("xla"), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5, err_msg=name)
        assert not np.any(mine[:, 35:])  # padding


def test_tpu_flash_runs_on_every_devices_own_examples():
    q, k, v = qkv(20, batch=8, heads=2, dim=128)
    devices = np.asarray(jax.devices()).reshape(2, 2, 2)
    mesh = jax.sharding.Mesh(devices, ("data", "fsdp", "tensor"))

    def run(q, k, v):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return attend(q, k, v, valid=20, implementation="tpu_flash")

    spec = jax.sharding.PartitionSpec(("data", "fsdp"))
    sharding = jax.sharding.NamedSharding(mesh, spec)
    with pltpu.force_tpu_interpret_mode():
        lowered = jax.jit(run, in_shardings=sharding).lower(q, k, v)
    text = lowered.as_text()
    assert "manual_computation" in text or "SPMDFullToShardShape" in text
    assert "2x20x1x128" in text  # a device's own two examples and one head


@pytest.mark.parametrize("pooling", ["gap", "cls"])
def test_a_network_that_carries_padding_computes_the_same(monkeypatch, pooling):
    """The padded layout of cuDNN, run with the masked XLA kernel that every machine has."""
    from vitscale.config import ModelConfig, TaskConfig
    from vitscale.models.multitask import define_model

    config = ModelConfig("mu/8", (24, 24), depth=2, pooling=pooling, position_embedding="rope2d")
    definition = define_model(config, [TaskConfig("kind", "single_label")], {"kind": ["a", "b"]})
    params = definition.init(0)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 24, 24, 3)).astype(np.float32)

    def loss(params):
        return jnp.sum(jnp.sin(definition.merge(params)(images)["pooled"]))

    plain = jax.value_and_grad(loss)(params)
    monkeypatch.setattr(vit, "padded_tokens", lambda tokens, implementation: 16)
    padded = jax.value_and_grad(loss)(params)
    np.testing.assert_allclose(plain[0], padded[0], rtol=1e-4)
    for name, value in plain[1].items():
        scale = float(jnp.abs(value).max()) + 1e-3
        np.testing.assert_allclose(value, padded[1][name], atol=2e-5 * scale, err_msg=name)


def test_cudnn_gets_even_counts():
    assert padded_tokens(197, "cudnn") == 200
    assert padded_tokens(196, "cudnn") == 196
    assert padded_tokens(197, "xla") == 197


@pytest.mark.parametrize(
    ("platform", "tokens", "dtype", "head_dim", "expected", "words"),
    [
        ("gpu", 196, "bfloat16", 64, "cudnn", "never writes"),
        ("gpu", 196, "float32", 64, "xla", "bfloat16 would"),
        ("gpu", 196, "bfloat16", 36, "xla", "36 channels"),
        ("tpu", 196, "bfloat16", 64, "xla", "short enough"),
        ("tpu", 4096, "bfloat16", 64, "tpu_flash", "4096 tokens"),
        ("cpu", 196, "float32", 64, "xla", "only one on cpu"),
    ],
)
def test_auto_explains_its_choice(platform, tokens, dtype, head_dim, expected, words):
    chosen, why = choose_attention(
        "auto", tokens=tokens, head_dim=head_dim, dtype=dtype, platform=platform
    )
    assert chosen == expected
    assert words in why


def test_auto_says_once_what_it_took(caplog):
    from vitscale.models.attention import announce

    announce.cache_clear()
    with caplog.at_level("INFO", logger="vitscale"):
        announce("xla", "a reason")
        announce("xla", "a reason")
    assert caplog.messages == ["attention: xla (a reason)"]


@pytest.mark.parametrize(
    ("requested", "platform", "dtype", "head_dim", "words"),
    [
        ("cudnn", "cpu", "bfloat16", 64, "needs an NVIDIA GPU, but jax runs on cpu"),
        ("cudnn", "gpu", "float32", 64, "compute_dtype=bfloat16"),
        ("cudnn", "gpu", "bfloat16", 20, "not 20"),
        ("tpu_flash", "cpu", "bfloat16", 64, "needs a TPU"),
    ],
)
def test_impossible_kernels_are_refused(requested, platform, dtype, head_dim, words):
    with pytest.raises(UserError, match=words):
        check_attention(requested, dtype, head_dim, platform)
