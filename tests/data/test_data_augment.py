"""The device side: the same result for any order of the batch and any sharding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vitscale.data.augment import augment, normalise, random_flip


def batch(count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)
    return images, np.arange(count, dtype=np.uint32)


def test_normalise() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    out = normalise(images)
    assert out.dtype == jnp.float32
    expected = (images.astype(np.float64) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(out, expected, atol=2e-7)
    assert (out.min(), out.max()) == (-1, 1)
    assert normalise(images, jnp.bfloat16).dtype == jnp.bfloat16


def test_flip_is_a_mirror_of_half_the_images() -> None:
    images, position = batch(400)
    out = np.asarray(random_flip(images, position, seed=3))
    mirrored = (out == images[:, :, ::-1]).all(axis=(1, 2, 3))
    kept = (out == images).all(axis=(1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 0.4 < mirrored.mean() < 0.6
    other = np.asarray(random_flip(images, position, seed=4))
    assert (other != out).any()


def test_flip_follows_the_position_not_the_row() -> None:
    images, position = batch()
    order = np.random.default_rng(1).permutation(len(images))
    straight = random_flip(images, position, seed=0)
    shuffled = random_flip(images[order], position[order], seed=0)
    np.testing.assert_array_equal(np.asarray(straight)[order], shuffled)


def test_sharded_equals_single_device_bit_for_bit() -> None:
    images, position = batch()
    step = jax.jit(functools.partial(augment, seed=5, flip=True))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    sharded = step(jax.device_put(images, sharding), jax.device_put(position, sharding))
    np.testing.assert_array_equal(np.asarray(step(images, position)), np.asarray(sharded))


def test_flip_off() -> None:
    images, position = batch()
    out = augment(images, position, seed=0, flip=False, compute_dtype=jnp.bfloat16)
    np.testing.assert_array_equal(out, normalise(images, jnp.bfloat16))
