"""The direction of an update, before weight decay and learning rate: what tells one optimiser from another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vitscale.config import OptimConfig
from vitscale.errors import UserError
from vitscale.models.layers import BLOCKS
from vitscale.train.optim_adafactor import scale_by_adafactor
from vitscale.train.optim_muon import scale_by_muon
from vitscale.train.parameter_rules import matrix_axes


def make_direction(
    config: OptimConfig, axes: Mapping[str, tuple[str, ...]]
) -> optax.GradientTransformation:
    """From clipped float32 gradients by name to directions, to be descended; state for the names in `axes` only.

    - adamw: Adam (Kingma & Ba, 2015, arXiv 1412.6980).
    - adafactor: the ViT flavour; `b2` caps its second moment's decay, and `eps` is not its.
    - lion: sign of b1 m + (1 - b1) g, then m = b2 m + (1 - b2) g (Chen et al., 2023, arXiv 2302.06675). Theirs are
      b2=0.99 and a learning rate 3 to 10 times below AdamW's with a weight decay as much above.
    - sgd: heavy-ball momentum m = b1 m + g, as big_vision's `momentum_hp`; no Nesterov step.
    - muon: on hidden matrices (`is_hidden_matrix`), and Adam on everything else, as its author advises.

    `moment_dtype` is that of first moments and momenta between updates; second moments are float32.
    """
    return _in_float32(_make_direction(config, axes))


def _make_direction(
    config: OptimConfig, axes: Mapping[str, tuple[str, ...]]
) -> optax.GradientTransformation:
    dtype = config.moment_dtype
    if config.name == "adafactor":
        return scale_by_adafactor(axes, config.b1, config.b2, dtype)
    if config.name == "lion":
        return optax.scale_by_lion(config.b1, config.b2, mu_dtype=dtype)
    if config.name == "sgd":
        return optax.trace(config.b1, accumulator_dtype=dtype)
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=dtype)
    if config.name == "adamw":
        return adam
    hidden = [name for name in axes if is_hidden_matrix(name, axes[name])]
    if not hidden:
        raise UserError(
            f"optim.name='muon' is for the matrices in {BLOCKS}, and none of them is trained here; choose 'adamw'."
        )
    return _split(frozenset(hidden), scale_by_muon(config.b1, dtype), adam)


def is_hidden_matrix(name: str, axes: tuple[str, ...]) -> bool:
    """Whether Muon takes it: the kernels of attention and MLP in a ViT's blocks, stacked or not.

    The matrix of the patch embedding, positions and tokens, the pooling head and the tasks' heads are none: they touch
    the input or the output, where a bound on the spectral norm is not the right one.
    """
    return name.startswith(BLOCKS) and len(matrix_axes(axes)) == 2


def _split(
    hidden: frozenset[str], muon: optax.GradientTransformation, adam: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Muon for the hidden names, Adam for the others; the state is `{"muon": …, "adam": …}`."""

    def parts(tree: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return (
            {name: value for name, value in tree.items() if name in hidden},
            {name: value for name, value in tree.items() if name not in hidden},
        )

    def init(params: Any) -> Any:
        for_muon, for_adam = parts(params)
        return {"muon": muon.init(for_muon), "adam": adam.init(for_adam)}

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        for_muon, for_adam = parts(grads)
        by_muon, muon_state = muon.update(for_muon, state["muon"])
        by_adam, adam_state = adam.update(for_adam, state["adam"])
        both = {**by_muon, **by_adam}
        return {name: both[name] for name in grads}, {"muon": muon_state, "adam": adam_state}

    return optax.GradientTransformation(init, update)


def _in_float32(transformation: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same with its moments widened before each update. The transformation narrows them again after it.

    optax multiplies a bfloat16 moment by its decay in bfloat16, which rounds twice an update, or once, as XLA likes.
    """

    def widen(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return transformation.update(grads, jax.tree.map(widen, state), params)

    return optax.GradientTransformation(transformation.init, update)
