"""A small set of parameters, optimisers for it, and a loop: what the tests of optimisers share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitscale.config import OptimConfig
from vitscale.train.optim import make_optimizer

NAMES = ("adamw", "adafactor", "lion", "sgd", "muon")
STEPS = 20
# 40 x 48 is factored by Adafactor, 40 x 3 is not
AXES = {
    "backbone/patch_embedding/kernel": ("patch", "embed"),
    "backbone/blocks/0/mlp/hidden/kernel": ("embed", "mlp"),
    "backbone/blocks/0/mlp/hidden/bias": ("mlp",),
    "backbone/blocks/1/mlp/hidden/kernel": ("embed", "mlp"),
    "backbone/blocks/1/mlp/hidden/bias": ("mlp",),
    "backbone/norm/scale": ("embed",),
    "heads/a/linear/kernel": ("embed", "classes"),
}
SIZES = {"patch": 36, "embed": 40, "mlp": 48, "classes": 3}
HIDDEN = "backbone/blocks/0/mlp/hidden/kernel"


def config(name="adamw", **changes) -> OptimConfig:
    options = {"lr": 0.1, "schedule": "constant", "warmup": 0, "timescale": 10, "b2": 0.99}
    return OptimConfig(name=name, **{**options, **changes})


def shapes_of(axes=AXES, layers=2):
    sizes = {**SIZES, "layers": layers}
    return {
        name: jax.ShapeDtypeStruct(tuple(sizes[a] for a in names), jnp.float32)
        for name, names in axes.items()
    }


def make(options: OptimConfig, axes=AXES):
    return make_optimizer(options, STEPS, axes, shapes_of(axes))


def draw(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        name: (scale * rng.normal(size=struct.shape)).astype(np.float32)
        for name, struct in shapes_of().items()
    }


def to_jax(tree):
    return {name: jnp.asarray(value) for name, value in tree.items()}


def train(optimizer, steps, params=None, grads=draw, jit=False):
    """(parameters, state) after some steps with the gradients of `draw(step + 1)`."""
    params = to_jax(draw(0) if params is None else params)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update) if jit else optimizer.update
    for step in range(steps):
        updates, state = update(to_jax(grads(step + 1)), state, params, step)
        params |= optax.apply_updates({name: params[name] for name in updates}, updates)
    return params, state
