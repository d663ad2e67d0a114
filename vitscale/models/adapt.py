"""One model's variables for another config of the same network: layer layout, resolution, patch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vitscale.config import ModelConfig
from vitscale.models.layers import stack_layers, unstack_layers
from vitscale.models.resize import resize_patch_kernel, resize_position_embedding
from vitscale.models.resnet import is_cnn
from vitscale.models.vit_shape import resolve_shape

POSITIONS = "backbone/position_embedding"
PATCH_KERNEL = "backbone/patch_embedding/kernel"


def adapt(params: Mapping[str, Any], old: ModelConfig, new: ModelConfig) -> dict[str, Any]:
    """Variables of `old` in the layout that `new` has.

    Layers are stacked or unstacked; learned positions are resampled to the new grid (antialiased bicubic) and the
    patch kernel to the new patch size (pseudo-inverse). Everything else stays as it is, whether it fits or not.
    """
    if is_cnn(old.variant) or is_cnn(new.variant):
        return dict(params)
    before, after = resolve_shape(old), resolve_shape(new)
    adapted = dict(params)
    if POSITIONS in adapted:
        table = adapted[POSITIONS]
        adapted[POSITIONS] = resize_position_embedding(table, before.grid, after.grid)
    if PATCH_KERNEL in adapted:
        kernel = adapted[PATCH_KERNEL]
        adapted[PATCH_KERNEL] = resize_patch_kernel(kernel, before.patch, after.patch)
    if old.scan_layers != new.scan_layers:
        adapted = stack_layers(adapted) if new.scan_layers else unstack_layers(adapted)
    return adapted


def compare_shapes(
    expected: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    *,
    exact: bool = False,
) -> str:
    """What is missing and what has another shape, in words; empty when all that is expected is there.

    exact: what is found without being expected is named too.
    """
    groups = {
        "missing": [name for name in expected if name not in found],
        "extra": [name for name in found if exact and name not in expected],
        "other shapes:": [
            f"{name} is {tuple(found[name])}, expected {tuple(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
    }
    return "; ".join(f"{what} {_some(names)}" for what, names in groups.items() if names)


def _some(names: list[str], limit: int = 6) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
