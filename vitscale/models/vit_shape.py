"""Every size of a ViT from its config: presets by name, overrides, grid and token counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from vitscale.config import ModelConfig
from vitscale.errors import UserError
from vitscale.models.resnet import PRESETS as CNN_PRESETS


class ViTSize(NamedTuple):
    width: int
    depth: int
    mlp_dim: int
    num_heads: int


# Zhai et al., 2022 (arXiv 2106.04560), table 2, and e of PaLI (Chen et al., 2023, arXiv 2209.06794);
# So400m: Alabdulmohsin et al., 2023 (arXiv 2305.13035); mu is big_vision's test size.
PRESETS = {
    "mu": ViTSize(32, 1, 128, 2),
    "Ti": ViTSize(192, 12, 768, 3),
    "S": ViTSize(384, 12, 1536, 6),
    "B": ViTSize(768, 12, 3072, 12),
    "L": ViTSize(1024, 24, 4096, 16),
    "So400m": ViTSize(1152, 27, 4304, 16),
    "H": ViTSize(1280, 32, 5120, 16),
    "g": ViTSize(1408, 40, 6144, 16),
    "G": ViTSize(1664, 48, 8192, 16),
    "e": ViTSize(1792, 56, 15360, 16),
}
DEFAULT_NORM_EPS = 1e-6


@dataclass(frozen=True)
class ViTShape:
    """A model config with its preset resolved."""

    size: ViTSize
    patch: int  # pixels a side, of the stored patch kernel
    grid: tuple[int, int]  # rows and columns of patches
    class_token: bool
    prefix: int  # cls and register tokens, before the patches
    norm_eps: float

    @property
    def tokens(self) -> int:
        return self.prefix + self.grid[0] * self.grid[1]

    def kept_patches(self, patches: int, dropout: float) -> int:
        """Patches that are left by patch dropout: as many as make the number of all tokens even.

        cuDNN's training kernels want even counts.
        """
        kept = max(int(patches * (1 - dropout)), 1)
        return min(kept + (kept + self.prefix) % 2, patches)


def resolve_shape(config: ModelConfig) -> ViTShape:
    """Sizes of `config.variant` ("B/16") with the overrides applied. Raises `UserError` for impossible ones."""
    preset, _, patch_text = config.variant.partition("/")
    if preset not in PRESETS or not patch_text.isdigit() or int(patch_text) < 1:
        raise UserError(
            f"model.variant={config.variant!r} must be a ViT preset and a patch size such as 'S/16' (presets: "
            f"{', '.join(PRESETS)}), or a CNN: {', '.join(CNN_PRESETS)}."
        )
    patch, base = int(patch_text), PRESETS[preset]
    size = ViTSize(
        config.width or base.width,
        config.depth or base.depth,
        config.mlp_dim or (4 * config.width if config.width else base.mlp_dim),
        config.num_heads or base.num_heads,
    )
    if size.width % size.num_heads:
        raise UserError(f"model.width={size.width} does not divide by num_heads={size.num_heads}.")
    if config.position_embedding == "sincos2d" and size.width % 4:
        raise UserError(f"sincos2d needs a model.width that divides by 4, not {size.width}.")
    if config.position_embedding == "rope2d" and size.width // size.num_heads % 4:
        raise UserError(
            f"rope2d needs width / num_heads to divide by 4, not {size.width // size.num_heads}."
        )
    for other in (patch, *config.patch_sizes):
        _check_patch(config.image_hw, other)
    class_token = config.pooling == "cls" if config.class_token is None else config.class_token
    if config.pooling == "cls" and not class_token:
        raise UserError(
            "model.pooling=cls needs the class token that model.class_token=False takes away."
        )
    prefix = class_token + config.register_tokens
    if config.prefix_position and not prefix:
        raise UserError(
            "model.prefix_position is for cls and register tokens, and this model has neither; set class_token."
        )
    if config.cnn_norm != "batch":
        raise UserError(f"model.cnn_norm is for CNNs; {config.variant} is a ViT.")
    if config.representation_size and config.pooling == "none":
        raise UserError(
            "model.representation_size needs pooled features, and model.pooling is none."
        )
    height, width = config.image_hw
    eps = DEFAULT_NORM_EPS if config.norm_eps is None else config.norm_eps
    return ViTShape(size, patch, (height // patch, width // patch), class_token, prefix, eps)


def _check_patch(image_hw: tuple[int, int], patch: int) -> None:
    for pixels in image_hw:
        if pixels < patch or pixels % patch:
            below = max(pixels // patch, 1) * patch
            raise UserError(
                f"model.image_size={pixels} does not divide by the patch size {patch}; "
                f"the nearest sizes that do are {below} and {below + patch}."
            )
