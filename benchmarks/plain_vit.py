"""The rival of `hlo_traffic.py` and `train_step.py`: a textbook ViT and training step in plain jnp, as in tutorials.

`[B, N, D]` throughout, one fused QKV projection, attention by einsum with a float32 softmax, LayerNorm in float32, GELU
kept for the backward pass; float32 masters, clipping, AdamW. Same model size, same batch, same compute dtype; with a
cls token or, as ours by default, with the mean of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vitscale.config import TrainConfig
from vitscale.models.vit_shape import resolve_shape

Params = dict[str, Any]


def init(config: TrainConfig, classes: int, cls_token: bool) -> Params:
    """Small random numbers of the right shapes: values matter to neither a compiler nor a clock."""
    rng = np.random.default_rng(0)
    shape = resolve_shape(config.model)
    width, depth, mlp, _ = shape.size
    tokens = (config.model.image_hw[0] // shape.patch) * (config.model.image_hw[1] // shape.patch)

    def dense(a: int, b: int) -> Params:
        return {"w": rng.normal(0, 0.02, (a, b)).astype(np.float32), "b": jnp.zeros(b)}

    def norm() -> Params:
        return {"scale": jnp.ones(width), "bias": jnp.zeros(width)}

    def block() -> Params:
        return {
            "norm1": norm(),
            "qkv": dense(width, 3 * width),
            "proj": dense(width, width),
            "norm2": norm(),
            "fc1": dense(width, mlp),
            "fc2": dense(mlp, width),
        }

    return {
        "patch": dense(3 * shape.patch**2, width),
        "cls": jnp.zeros((1, int(cls_token), width)),
        "position": jnp.zeros((1, tokens + cls_token, width)),
        "blocks": [block() for _ in range(depth)],
        "norm": norm(),
        "head": dense(width, classes),
    }


def apply_dense(p: Params, x: jax.Array) -> jax.Array:
    return x @ p["w"].astype(x.dtype) + p["b"].astype(x.dtype)


def apply_norm(p: Params, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    y = (y - y.mean(-1, keepdims=True)) * jax.lax.rsqrt(y.var(-1, keepdims=True) + 1e-6)
    return (y * p["scale"] + p["bias"]).astype(x.dtype)


def attention(p: Params, x: jax.Array, heads: int) -> jax.Array:
    batch, tokens, width = x.shape
    qkv = apply_dense(p["qkv"], x).reshape(batch, tokens, 3, heads, width // heads)
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width // heads).astype(x.dtype)
    weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).astype(x.dtype)
    return apply_dense(p["proj"], jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))


def logits(p: Params, images: jax.Array, patch: int, heads: int) -> jax.Array:
    batch, height, width, _ = images.shape
    x = images.reshape(batch, height // patch, patch, width // patch, patch, 3)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, 3 * patch * patch)
    x = apply_dense(p["patch"], x)
    cls = jnp.broadcast_to(p["cls"].astype(x.dtype), (batch, p["cls"].shape[1], x.shape[-1]))
    x = jnp.concatenate([cls, x], axis=1) + p["position"].astype(x.dtype)
    for block in p["blocks"]:
        x = x + attention(block, apply_norm(block["norm1"], x), heads)
        hidden = jax.nn.gelu(apply_dense(block["fc1"], apply_norm(block["norm2"], x)))
        x = x + apply_dense(block["fc2"], hidden)
    x = apply_norm(p["norm"], x)
    pooled = x[:, 0] if p["cls"].shape[1] else x.mean(axis=1)
    return apply_dense(p["head"], pooled).astype(jnp.float32)


def make_step(config: TrainConfig) -> tuple[Any, optax.GradientTransformation]:
    """step(params, optimiser state, uint8 images, labels) -> (params, optimiser state, loss), and its optimiser."""
    shape = resolve_shape(config.model)
    dtype = jnp.dtype(config.model.compute_dtype)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.05))

    def loss(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
        out = logits(params, images, shape.patch, shape.size.num_heads)
        return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()

    def step(params: Params, state: Any, images: jax.Array, labels: jax.Array) -> Any:
        images = (images.astype(jnp.float32) / 127.5 - 1).astype(dtype)
        value, grads = jax.value_and_grad(loss)(params, images, labels)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    return step, optimizer


def create_step(config: TrainConfig, classes: int, cls_token: bool) -> tuple[Any, Params, Any]:
    """The jitted step with parameters and optimiser state to run it on."""
    step, optimizer = make_step(config)
    params = jax.device_put(init(config, classes, cls_token))
    return jax.jit(step, donate_argnums=(0, 1)), params, optimizer.init(params)


def lower_plain(
    config: TrainConfig, classes: int, devices: Sequence[jax.Device]
) -> jax.stages.Lowered:
    """The step with a cls token on the shapes of `config`, lowered for one of `devices`."""
    step, optimizer = make_step(config)
    place = NamedSharding(Mesh(np.asarray(devices[:1]), ("data",)), PartitionSpec())
    params = jax.eval_shape(lambda: init(config, classes, cls_token=True))
    batch = config.data.global_batch_size
    images = jax.ShapeDtypeStruct((batch, *config.model.image_hw, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    jitted = jax.jit(step, in_shardings=place, out_shardings=place, donate_argnums=(0, 1))
    return jitted.lower(params, jax.eval_shape(optimizer.init, params), images, labels)
