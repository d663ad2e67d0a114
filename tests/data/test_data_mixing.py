"""MixUp and CutMix: pixels and targets in the same proportions, by pairs, and never between rows of unlike tasks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vitscale.config import AugmentConfig
from vitscale.data import mixing
from vitscale.data.augment import MIXING_STREAM, augment_batch, normalise, uniforms

SIZE = (8, 12)
PAIRS = 3000
MIXUP, CUTMIX = AugmentConfig(mixup_alpha=0.3), AugmentConfig(cutmix_alpha=1.0)
BOTH = AugmentConfig(mixup_alpha=0.3, cutmix_alpha=1.0)


@functools.cache
def mixes(config: AugmentConfig) -> mixing.Mixes:
    draws = uniforms(jnp.arange(PAIRS), mixing.DRAWS, seed=0, stream=MIXING_STREAM)
    mixable = jnp.ones(2 * PAIRS, bool)
    return jax.tree.map(np.asarray, mixing.draw_mixes(draws, mixable, SIZE, config))


@pytest.mark.parametrize("config", [MIXUP, CUTMIX, BOTH], ids=["mixup", "cutmix", "both"])
def test_shares_are_those_of_the_pixels(config):
    mixed = mixes(config)
    np.testing.assert_allclose(mixed.shares.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(mixed.pixels.mean(axis=(1, 2, 3)), mixed.shares[:, 0], atol=1e-6)
    np.testing.assert_array_equal(mixed.shares[::2], mixed.shares[1::2])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixup_draws_from_the_beta_distribution(alpha):
    share = mixes(AugmentConfig(mixup_alpha=alpha)).shares[::2, 0]
    assert stats.kstest(share, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cutmix_cuts_one_rectangle():
    pixels = mixes(CUTMIX).pixels[::2, ..., 0]
    assert set(np.unique(pixels)) == {0.0, 1.0}
    for kept in pixels[:300]:
        inside = kept == 0
        rows, columns = inside.any(axis=1), inside.any(axis=0)
        np.testing.assert_array_equal(inside, rows[:, None] & columns[None, :])
    # Every place is cut, and sizes reach from nothing to all.
    assert (pixels == 0).mean(axis=0).min() > 0.1
    areas = (pixels == 0).mean(axis=(1, 2))
    assert areas.min() == 0
    assert areas.max() > 0.9


def test_both_kinds_at_even_odds_and_only_some_of_the_pairs():
    pixels = mixes(BOTH).pixels[::2]
    cut = np.isin(pixels, (0, 1)).all(axis=(1, 2, 3))
    assert 0.45 < cut.mean() < 0.56
    some = AugmentConfig(mixup_alpha=1.0, mix_probability=0.25)
    assert 0.22 < (mixes(some).shares[::2, 0] < 1).mean() < 0.28


def make_batch(size=16, slots=3):
    rng = np.random.default_rng(1)
    labels = {name: rng.integers(-1, 5, (size, slots)).astype(np.int32) for name in ("a", "b")}
    labels["b"][[1, 6, 7, 10]] = -1
    weights = {n: np.where(x >= 0, rng.uniform(0.1, 2, x.shape), 0) for n, x in labels.items()}
    return {
        "image": rng.integers(0, 256, (size, *SIZE, 3), np.uint8),
        "position": np.arange(size, dtype=np.uint32) + 32,
        "labels": labels,
        "weights": {name: x.astype(np.float32) for name, x in weights.items()},
        "task_mask": {name: x.any(axis=1) for name, x in weights.items()},
        "valid": np.arange(size) != 5,
    }


STILL = AugmentConfig(flip=False, mixup_alpha=1.0)


def test_a_batch_is_mixed_where_both_rows_are_valid_and_train_the_same_tasks():
    batch = make_batch()
    out = jax.jit(lambda b: augment_batch(b, STILL, seed=3))(batch)
    plain = np.asarray(normalise(batch["image"]))
    shares, images = np.asarray(out["shares"]), np.asarray(out["image"])
    allowed = 0
    for i in range(16):
        j = i ^ 1
        same = all(mask[i] == mask[j] for mask in batch["task_mask"].values())
        mixable = same and batch["valid"][i] and batch["valid"][j]
        allowed += mixable
        assert (shares[i, 0] < 1) == mixable, i
        expected = shares[i, 0] * plain[i] + shares[i, 1] * plain[j]
        np.testing.assert_allclose(images[i], expected, atol=1e-5)
        if not mixable:
            np.testing.assert_array_equal(images[i], plain[i])
        for kind in ("labels", "weights"):
            for name, slots in batch[kind].items():
                both = np.concatenate([slots[i], slots[j]])
                np.testing.assert_array_equal(out[kind][name][i], both)
    assert 8 <= allowed < 16


def test_mixes_follow_the_draw_numbers_not_the_rows():
    batch = make_batch()
    order = np.arange(16).reshape(8, 2)[np.random.default_rng(0).permutation(8)].ravel()
    function = jax.jit(lambda b: augment_batch(b, BOTH, seed=3))
    straight, shuffled = function(batch), function(jax.tree.map(lambda x: x[order], batch))
    for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(shuffled), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[order], b)


def test_off_is_not_in_the_program():
    batch = make_batch()
    out = augment_batch(batch, AugmentConfig(mix_probability=0.0, mixup_alpha=1.0), seed=0)
    assert out.keys() == batch.keys()
    assert out["labels"]["a"].shape == (16, 3)
