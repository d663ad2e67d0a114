"""The CNN baselines' parameters under the names and layouts of timm: the same arrays, exactly, in both directions.

Ours are flat dicts with names below `backbone/` (`stages/0/1/conv2/kernel`), running statistics included
(`stages/0/1/norm2/mean`); timm's are its state dict (`layer1.1.conv2.weight`, `layer1.1.bn2.running_mean`).
The classifier, `fc.weight` and `fc.bias`, is the caller's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import numpy as np
from flax import nnx

from vitscale.config import ModelConfig
from vitscale.errors import UserError
from vitscale.models.resnet import ResNet, check_cnn_config

CLASSIFIER = ("fc.weight", "fc.bias")
COUNTER = "num_batches_tracked"  # torch's count of training steps, beside every running mean; nothing reads it

_MODULES = (
    (r"^stem/conv/", "conv1."),
    (r"^stem/norm/", "bn1."),
    (r"shortcut/conv/", "downsample.0."),
    (r"shortcut/norm/", "downsample.1."),
    (r"norm([123])/", r"bn\1."),
    (r"se/reduce/", "se.fc1."),
    (r"se/expand/", "se.fc2."),
)
_ARRAYS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def timm_to_params(tensors: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """Our parameters and statistics from timm's state dict; raises `UserError` where the two are not the same model."""
    shapes = _our_shapes(config)
    _check_names(tensors, {timm_name(name) for name in shapes}, config)
    params = {}
    for name, shape in shapes.items():
        tensor, expected = tensors[timm_name(name)], _timm_shape(shape)
        if tensor.shape != expected:
            raise UserError(
                f"the timm tensor {timm_name(name)!r} has the shape {tensor.shape}, but {config.variant} needs "
                f"{expected}; set model.variant to the model that was exported."
            )
        params[name] = _from_timm(tensor, len(shape))
    return params


def params_to_timm(params: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """timm's state dict, without classifier, from our parameters and statistics; batch counters are int64 0."""
    tensors = {}
    for name in _our_shapes(config):
        tensors[timm_name(name)] = _to_timm(params[name])
        if name.endswith("/var"):
            counter = timm_name(name).replace("running_var", COUNTER)
            tensors[counter] = np.zeros((), np.int64)
    return tensors


def expected_timm_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that `timm_to_params` reads, from the config alone; batch counters are not among them."""
    return {timm_name(name): _timm_shape(shape) for name, shape in _our_shapes(config).items()}


def timm_name(name: str) -> str:
    """`stages/0/1/conv2/kernel` -> `layer1.1.conv2.weight`."""
    module, array = name.rsplit("/", 1)
    module += "/"
    for pattern, replacement in _MODULES:
        module = re.sub(pattern, replacement, module)
    module = re.sub(
        r"^stages/(\d+)/(\d+)/", lambda m: f"layer{int(m[1]) + 1}.{m[2]}.", module
    ).replace("/", ".")
    return module + _ARRAYS[array]


def _our_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    check_cnn_config(config)
    if config.cnn_norm != "batch":
        raise UserError(
            f"model.cnn_norm={config.cnn_norm!r} has no counterpart in timm's {config.variant}; "
            "timm weights can be read and written with cnn_norm='batch' only."
        )
    return _shapes_of(config.variant)


@functools.cache
def _shapes_of(variant: str) -> dict[str, tuple[int, ...]]:
    config = ModelConfig(variant=variant)
    state = nnx.eval_shape(lambda: nnx.state(ResNet(config, rngs=nnx.Rngs(0))))
    return {
        "/".join(map(str, path)): tuple(variable.get_value().shape)
        for path, variable in nnx.to_flat_state(state)
    }


def _check_names(
    tensors: Mapping[str, np.ndarray], expected: set[str], config: ModelConfig
) -> None:
    missing = sorted(expected - set(tensors))
    unknown = [
        name
        for name in tensors
        if name not in expected and name not in CLASSIFIER and not name.endswith(COUNTER)
    ]
    for names, what in ((missing, "lack"), (unknown, "have")):
        if names:
            no = "no" if what == "have" else "a"
            raise UserError(
                f"the timm weights {what} {names[0]!r} (one of {len(names)}), but {config.variant} has {no} tensor "
                "of that name; set model.variant to the model that was exported."
            )


# 4-D kernels of ours are convolutions (HWIO, timm OIHW); 2-D ones are squeeze-and-excitation's linear layers (IO),
# which timm writes as 1x1 convolutions (OI11).
def _timm_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    return (shape[1], shape[0], 1, 1) if len(shape) == 2 else shape


def _to_timm(array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        return np.ascontiguousarray(np.transpose(array, (3, 2, 0, 1)))
    return np.ascontiguousarray(array.T)[:, :, None, None] if array.ndim == 2 else np.asarray(array)


def _from_timm(tensor: np.ndarray, ndim: int) -> np.ndarray:
    if ndim == 4:
        return np.ascontiguousarray(np.transpose(tensor, (2, 3, 1, 0)))
    return np.ascontiguousarray(tensor[:, :, 0, 0].T) if ndim == 2 else np.asarray(tensor)
