"""Resampled positions and patch kernels, against PIL's filter and the defining property of the pseudo-inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vitscale.models.resize import resize_matrix, resize_patch_kernel, resize_position_embedding


@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (24, 24)), ((14, 14), (7, 10)), ((16, 8), (8, 16))]
)
def test_positions_are_resampled_as_pil_does(old, new):
    table = np.random.default_rng(0).standard_normal((old[0] * old[1], 2)).astype(np.float32)
    ours = np.asarray(resize_position_embedding(table, old, new))
    for channel in range(2):
        image = Image.fromarray(table[:, channel].reshape(old))
        theirs = np.asarray(image.resize(new[::-1], Image.Resampling.BICUBIC))
        np.testing.assert_allclose(ours[:, channel].reshape(new), theirs, atol=1e-4)


def test_resize_matrix_rows_sum_to_one_and_identity_is_exact():
    np.testing.assert_allclose(resize_matrix(14, 9).sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(resize_matrix(6, 6), np.eye(6), atol=1e-6)


@pytest.mark.parametrize("new", [6, 8, 12])
def test_a_grown_kernel_gives_resized_patches_the_same_product(new):
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((4 * 4 * 3, 5)).astype(np.float32)
    patch = rng.standard_normal((4, 4, 3)).astype(np.float32)
    matrix = resize_matrix(4, new)
    grown = np.einsum("yh,hwc,xw->yxc", matrix, patch, matrix).reshape(-1)
    np.testing.assert_allclose(
        grown @ np.asarray(resize_patch_kernel(kernel, 4, new)),
        patch.reshape(-1) @ kernel,
        rtol=2e-3,
        atol=2e-3,
    )


def test_resizing_has_a_gradient_inside_jit():
    loss = lambda k: jnp.sum(resize_patch_kernel(k, 4, 6) ** 2)  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(jnp.ones((48, 2)))
    assert float(jnp.abs(gradient).min()) > 0


def test_matches_timm(timm):
    torch = pytest.importorskip("torch")
    timm_layers = timm.layers
    rng = np.random.default_rng(0)
    table = rng.standard_normal((1, 14 * 14, 6)).astype(np.float32)
    theirs = timm_layers.resample_abs_pos_embed(
        torch.from_numpy(table), (20, 9), (14, 14), num_prefix_tokens=0
    ).numpy()[0]
    np.testing.assert_allclose(
        resize_position_embedding(table[0], (14, 14), (20, 9)), theirs, atol=1e-5
    )
    kernel = rng.standard_normal((4, 3, 16, 16)).astype(np.float32)
    theirs = timm_layers.resample_patch_embed(torch.from_numpy(kernel), [12, 12]).numpy()
    ours = resize_patch_kernel(kernel.transpose(2, 3, 1, 0).reshape(-1, 4), 16, 12)
    np.testing.assert_allclose(
        np.asarray(ours).reshape(12, 12, 3, 4).transpose(3, 2, 0, 1), theirs, atol=1e-4
    )
