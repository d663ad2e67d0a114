"""Every tensor of `transformers`' ViT and SigLIP vision tower: separate Q, K, V; OIHW patch kernel."""

from __future__ import annotations

from vitscale.config import ModelConfig
from vitscale.models.convert.describe import Head, refuse
from vitscale.models.convert.tensors import (
    Tensor,
    fused,
    linear,
    norm,
    patch_conv,
    reshaped,
    same,
)
from vitscale.models.vit_shape import resolve_shape


def vit_tensors(config: ModelConfig, head: Head | None, prefix: str) -> list[Tensor]:
    """prefix: "vit." in `ViTForImageClassification`, empty in `ViTModel`."""
    shape = resolve_shape(config)
    size, patches = shape.size, shape.grid[0] * shape.grid[1]
    width, embeddings = size.width, f"{prefix}embeddings"
    positions = [
        reshaped("", (1, 1, width), "backbone/prefix_position", (1, width)),
        reshaped("", (1, patches, width), "backbone/position_embedding", (patches, width)),
    ]
    projection, ours = f"{embeddings}.patch_embeddings.projection", "backbone/patch_embedding"
    tensors = [
        reshaped(f"{embeddings}.cls_token", (1, 1, width), "backbone/cls", (1, width)),
        fused(f"{embeddings}.position_embeddings", positions, axis=1),
        patch_conv(f"{projection}.weight", f"{ours}/kernel", shape.patch, width),
        same(f"{projection}.bias", (width,), f"{ours}/bias"),
        *norm(f"{prefix}layernorm", "backbone/norm", width),
    ]
    for i in range(size.depth):
        layer, ours = f"{prefix}encoder.layer.{i}", f"backbone/blocks/{i}"
        tensors += norm(f"{layer}.layernorm_before", f"{ours}/attention_norm", width)
        for part in ("query", "key", "value"):
            theirs = f"{layer}.attention.attention.{part}"
            tensors += linear(theirs, f"{ours}/attention/{part}", width, width)
        tensors += [
            *linear(f"{layer}.attention.output.dense", f"{ours}/attention/out", width, width),
            *norm(f"{layer}.layernorm_after", f"{ours}/mlp_norm", width),
            *linear(f"{layer}.intermediate.dense", f"{ours}/mlp/hidden", width, size.mlp_dim),
            *linear(f"{layer}.output.dense", f"{ours}/mlp/out", size.mlp_dim, width),
        ]
    if config.representation_size:
        pooler = f"{prefix}pooler.dense"
        tensors += linear(pooler, "backbone/representation", width, config.representation_size)
    if head:
        features = config.representation_size or width
        tensors += linear("classifier", head.prefix, features, head.classes)
    return tensors


def siglip_tensors(config: ModelConfig, prefix: str) -> list[Tensor]:
    """prefix: "vision_model." in published files; transformers 5 writes a bare tower without."""
    shape = resolve_shape(config)
    size, patches = shape.size, shape.grid[0] * shape.grid[1]
    width, embeddings = size.width, f"{prefix}embeddings"
    positions = (f"{embeddings}.position_embedding.weight", (patches, width))
    projection, ours = f"{embeddings}.patch_embedding", "backbone/patch_embedding"
    tensors = [
        patch_conv(f"{projection}.weight", f"{ours}/kernel", shape.patch, width),
        same(f"{projection}.bias", (width,), f"{ours}/bias"),
        same(*positions, "backbone/position_embedding"),
        *norm(f"{prefix}post_layernorm", "backbone/norm", width),
    ]
    for i in range(size.depth):
        layer, ours = f"{prefix}encoder.layers.{i}", f"backbone/blocks/{i}"
        for theirs, part in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "out")):
            name = f"{layer}.self_attn.{theirs}_proj"
            tensors += linear(name, f"{ours}/attention/{part}", width, width)
        tensors += [
            *norm(f"{layer}.layer_norm1", f"{ours}/attention_norm", width),
            *norm(f"{layer}.layer_norm2", f"{ours}/mlp_norm", width),
            *linear(f"{layer}.mlp.fc1", f"{ours}/mlp/hidden", width, size.mlp_dim),
            *linear(f"{layer}.mlp.fc2", f"{ours}/mlp/out", size.mlp_dim, width),
        ]
    if config.pooling == "map":
        tensors += _siglip_head(f"{prefix}head", width, size.mlp_dim)
    return tensors


def _siglip_head(theirs: str, width: int, mlp_dim: int) -> list[Tensor]:
    ours = "backbone/map"
    # torch's MultiheadAttention: Q, K and V in one matrix.
    qkv = [linear("", f"{ours}/{part}", width, width) for part in ("query", "key", "value")]
    return [
        reshaped(f"{theirs}.probe", (1, 1, width), f"{ours}/probe", (1, width)),
        fused(f"{theirs}.attention.in_proj_weight", [weight for weight, _ in qkv]),
        fused(f"{theirs}.attention.in_proj_bias", [bias for _, bias in qkv]),
        *linear(f"{theirs}.attention.out_proj", f"{ours}/out", width, width),
        *norm(f"{theirs}.layernorm", f"{ours}/norm", width),
        *linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/hidden", width, mlp_dim),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/out", mlp_dim, width),
    ]


def check_expressible(config: ModelConfig, head: Head | None) -> None:
    siglip = config.pooling == "map"
    refuse(
        "transformers' SigLIP" if siglip else "transformers' ViT",
        {
            f"pooling={config.pooling!r}": config.pooling not in ("cls", "map"),
            "position_embedding='rope2d'": config.position_embedding == "rope2d",
            "register_tokens": config.register_tokens > 0,
            "layer_scale": config.layer_scale is not None,
            "qk_norm": config.qk_norm,
            "mlp='swiglu'": config.mlp == "swiglu",
            "a class token beside pooling='map'": siglip and resolve_shape(config).class_token,
            "representation_size": siglip and bool(config.representation_size),
            "a head on representation_size": bool(head and config.representation_size),
            "a classification head (drop it by --task none)": siglip and head is not None,
        },
    )
