"""Every optimiser's direction against formulas written here with numpy, and what is special to some."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optim_cases import AXES, HIDDEN, NAMES, STEPS, config, draw, make, shapes_of, to_jax, train

from vitscale.config import ParameterRule
from vitscale.errors import UserError
from vitscale.train.optim import make_optimizer
from vitscale.train.optim_muon import orthogonalise, scale_by_muon

# --- the formulas, in float64 -----------------------------------------------------------------------------------------


def adam_reference(b1, b2, t, state, g):
    state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0) + (1 - b2) * g**2
    return state["m"] / (1 - b1**t) / (np.sqrt(state["v"] / (1 - b2**t)) + 1e-8)


def adafactor_reference(b1, b2, t, state, g):
    decay = min(b2, 1 - t**-0.8)
    state["v"] = decay * state.get("v", 0) + (1 - decay) * (g**2 + 1e-30)
    v = state["v"]
    if g.ndim == 2 and min(g.shape) >= 32:
        # Means over rows and columns are linear, so they may be taken from the full second moment.
        v = np.outer(v.mean(1), v.mean(0)) / v.mean()
    state["m"] = b1 * state.get("m", 0) + (1 - b1) * g / np.sqrt(v)
    return state["m"]


def lion_reference(b1, b2, t, state, g):
    direction = np.sign(b1 * state.get("m", 0) + (1 - b1) * g)
    state["m"] = b2 * state.get("m", 0) + (1 - b2) * g
    return direction


def sgd_reference(b1, b2, t, state, g):
    state["m"] = b1 * state.get("m", 0) + g
    return state["m"]


def newton_schulz(x):
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def muon_reference(b1, b2, t, state, g):
    state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
    x = b1 * state["m"] + (1 - b1) * g
    return 0.2 * np.sqrt(max(g.shape)) * newton_schulz(x)


REFERENCES = {
    "adamw": adam_reference,
    "adafactor": adafactor_reference,
    "lion": lion_reference,
    "sgd": sgd_reference,
    "muon": muon_reference,
}


def reference_run(options, steps, decay_factors, lr_factors):
    """Parameters after some steps; `decay_factors` and `lr_factors` by name, written down by the test."""
    params = {name: value.astype(np.float64) for name, value in draw(0).items()}
    states = {name: {} for name in params}
    for t in range(1, steps + 1):
        grads = {name: value.astype(np.float64) for name, value in draw(t).items()}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        for name, g in grads.items():
            direction_of = REFERENCES[options.name]
            hidden = "blocks" in name and g.ndim == 2
            if options.name == "muon" and not hidden:
                direction_of = adam_reference
            g = g * min(1, options.grad_clip_norm / norm)
            direction = direction_of(options.b1, options.b2, t, states[name], g)
            direction = direction + options.weight_decay * decay_factors[name] * params[name]
            lr = options.lr / np.sqrt(1 + (t - 1) / 10)
            params[name] = params[name] - lr * lr_factors[name] * direction
    return params


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("jit", [False, True])
def test_optimisers_follow_their_formulas(name, jit):
    rules = (
        ParameterRule("^backbone/patch", lr=0.5, weight_decay=2.0),
        ParameterRule("scale$", weight_decay=1.0),
        ParameterRule("^heads/", lr=3.0, weight_decay=0.0),
        ParameterRule(".*"),
    )
    # Adafactor's second moment reaches its cap, b2, at the third update.
    options = config(name, rules=rules, b1=0.8, b2=0.5, schedule="rsqrt", grad_clip_norm=5.0)
    decay = {n: float(len(axes) > 1) for n, axes in AXES.items()}
    decay |= {"backbone/patch_embedding/kernel": 2.0, "backbone/norm/scale": 1.0}
    decay |= {"heads/a/linear/kernel": 0.0}
    lr = dict.fromkeys(AXES, 1.0)
    lr |= {"backbone/patch_embedding/kernel": 0.5, "heads/a/linear/kernel": 3.0}
    expected = reference_run(options, 6, decay, lr)
    ours, _ = train(make(options), 6, jit=jit)
    for n in AXES:
        np.testing.assert_allclose(ours[n], expected[n], rtol=2e-4, atol=2e-5, err_msg=n)


def test_adafactor_is_big_visions():
    """The chain of google-research/big_vision's optax.py, which optax's own factored moments make."""

    def decay_rate(step, exponent):
        return jnp.minimum(0.5, 1 - (jnp.asarray(step, jnp.float32) + 1.0) ** -exponent)

    theirs = optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=32, decay_rate_fn=decay_rate),
        optax.ema(0.9, debias=False),
    )
    ours = make(config("adafactor", b2=0.5)).direction
    params = to_jax(draw(0))
    state, their_state = ours.init(params), theirs.init(params)
    for step in range(5):
        grads = to_jax(draw(step + 1))
        updates, state = ours.update(grads, state)
        expected, their_state = theirs.update(grads, their_state, params)
        for name in AXES:
            np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5, atol=1e-6)


def test_adafactor_keeps_rows_and_columns_of_large_matrices_only():
    state = make(config("adafactor")).init(to_jax(draw(0)))
    assert state.row[HIDDEN].shape == (40,)
    assert state.column[HIDDEN].shape == (48,)
    assert set(state.row) == {
        name for name in AXES if "kernel" in name and not name.startswith("heads")
    }
    assert set(state.full) == set(AXES) - set(state.row)


def test_adafactor_never_factors_along_the_layers():
    axes = {
        "backbone/blocks/norm/scale": ("layers", "embed"),
        "backbone/blocks/a/kernel": ("layers", "embed", "mlp"),
    }
    shapes = shapes_of(axes, layers=48)
    optimizer = make_optimizer(config("adafactor"), STEPS, axes, shapes)
    state = jax.eval_shape(optimizer.init, shapes)
    assert list(state.full) == ["backbone/blocks/norm/scale"]
    assert state.row["backbone/blocks/a/kernel"].shape == (48, 40)
    assert state.column["backbone/blocks/a/kernel"].shape == (48, 48)


# --- Muon -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 64), (64, 24), (24, 64)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_orthogonalise_keeps_singular_vectors_and_evens_out_singular_values(shape, scale):
    x = scale * np.random.default_rng(0).normal(size=shape).astype(np.float32)
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    core = u.T @ np.asarray(orthogonalise(jnp.asarray(x))) @ vt.T
    values = np.diag(core)
    np.testing.assert_allclose(core, np.diag(values), atol=2e-3)
    assert values.min() > 0.4  # the smallest of a square Gaussian matrix are near 0
    assert values.max() < 1.3
    assert np.quantile(values, 0.1) > 0.65


def test_muon_has_adams_update_size_and_survives_zero_gradients():
    options = config("muon", lr=1.0, weight_decay=0.0, grad_clip_norm=0.0)
    optimizer = make(options)
    params = to_jax(draw(0))
    updates, _ = optimizer.update(to_jax(draw(1)), optimizer.init(params), params, 0)
    rms = float(jnp.sqrt(jnp.square(updates[HIDDEN]).mean()))
    assert 0.14 < rms < 0.24  # 0.2 on average, whatever the shape and the gradient's size
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params, 0)
    assert all(not np.asarray(u).any() for u in updates.values())


def test_muons_update_size_does_not_depend_on_the_number_of_layers():
    muon = scale_by_muon(0.9, "float32")
    grads = {"a": jnp.asarray(np.random.default_rng(0).normal(size=(64, 8, 4)), jnp.float32)}
    updates, _ = muon.update(grads, muon.init(grads))
    assert 0.14 < float(jnp.sqrt(jnp.square(updates["a"]).mean())) < 0.24


def test_muon_takes_hidden_matrices_only():
    state = make(config("muon")).init(to_jax(draw(0)))
    hidden = {"backbone/blocks/0/mlp/hidden/kernel", "backbone/blocks/1/mlp/hidden/kernel"}
    assert set(state["muon"].momentum) == hidden
    assert set(state["adam"].mu) == set(state["adam"].nu) == set(AXES) - hidden


def test_muon_without_hidden_matrices_is_an_error():
    rules = (ParameterRule("^backbone/", freeze=True), ParameterRule(".*"))
    with pytest.raises(UserError, match=r"none of them is trained here; choose 'adamw'"):
        make(config("muon", rules=rules))
