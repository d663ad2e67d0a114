"""timm's Vision Transformers (`vit_*_patch*`): fused QKV, OIHW patch kernel, cls and registers among the positions."""

from __future__ import annotations

from typing import Any

from vitscale.config import ModelConfig
from vitscale.errors import UserError
from vitscale.models.convert.describe import (
    Described,
    Head,
    ImportOptions,
    count_layers,
    first_shape,
    image_size_of,
    refuse,
    vit_config,
)
from vitscale.models.convert.files import TensorFile
from vitscale.models.convert.tensors import (
    Tensor,
    TensorMap,
    fused,
    linear,
    norm,
    patch_conv,
    reshaped,
    same,
)
from vitscale.models.convert.timm_names import eval_crop, heads_of, pretrained_cfg, vit_facts
from vitscale.models.vit_shape import ViTSize, resolve_shape

# Of `model_args` in a hub folder's config.json: what this module understands, or what changes no inference result.
_KNOWN_ARGUMENTS = {
    *(
        "img_size",
        "patch_size",
        "in_chans",
        "num_classes",
        "global_pool",
        "embed_dim",
        "depth",
        "num_heads",
    ),
    *(
        "mlp_ratio",
        "class_token",
        "no_embed_class",
        "reg_tokens",
        "fc_norm",
        "init_values",
        "qk_norm",
        "act_layer",
    ),
    *("qkv_bias", "dynamic_img_size", "dynamic_img_pad", "weight_init", "fix_init", "pos_embed"),
    *(
        "drop_rate",
        "pos_drop_rate",
        "patch_drop_rate",
        "proj_drop_rate",
        "attn_drop_rate",
        "drop_path_rate",
    ),
}
_ACTIVATIONS = {"gelu": "gelu_erf", "gelu_tanh": "gelu_tanh"}


def describe(file: TensorFile, name: str, hub: dict[str, Any], options: ImportOptions) -> Described:
    """hub: `config.json` of a Hugging Face hub folder, or empty for a bare file."""
    facts, shapes = vit_facts(name), file.shapes
    arguments, pretrained = hub.get("model_args") or {}, hub.get("pretrained_cfg") or {}
    kernel = first_shape(file, "patch_embed.proj.weight", 4, "timm ViT")
    width, patch = kernel[0], kernel[2]
    if not hub and (width not in (facts.widths or (width,)) or patch != (facts.patch or patch)):
        raise UserError(
            f"{file.path} has width {width} and patch size {patch}, which is not timm's {name}: give the model's own "
            "name by --model."
        )
    prefix = ("cls_token" in shapes) + shapes.get("reg_token", (1, 0, width))[1]
    positions = first_shape(file, "pos_embed", 3, "timm ViT with learned positions")[1]
    seen = arguments.get("img_size") or (pretrained.get("input_size") or [None])[1:]
    known: list = [_size(seen), facts.image_size]
    no_embed = arguments.get("no_embed_class")
    if no_embed is None:
        no_embed = not prefix or _is_patches_only(positions, prefix, patch, known)
    image_size = image_size_of(positions if no_embed else positions - prefix, patch, known, options)
    out = first_shape(file, "blocks.0.mlp.fc2.weight", 2, "timm ViT")
    hidden = first_shape(file, "blocks.0.mlp.fc1.weight", 2, "timm ViT")[0]
    swiglu = hidden == 2 * out[1]
    _check_arguments(arguments, name, swiglu)
    heads = (
        options.given.get("num_heads") or arguments.get("num_heads") or _heads(file, name, width)
    )
    config = vit_config(
        ViTSize(width, count_layers(list(shapes), "blocks."), out[1], heads),
        patch,
        image_size,
        options,
        mlp="swiglu" if swiglu else _ACTIVATIONS.get(arguments.get("act_layer", ""), facts.mlp),
        pooling=_pooling(file, hub, arguments, name),
        gap_norm="after" if "fc_norm.weight" in shapes else "before",
        class_token="cls_token" in shapes,
        register_tokens=prefix - ("cls_token" in shapes),
        prefix_position=bool(prefix) and not no_embed,
        layer_scale=(arguments.get("init_values") or 1e-5)
        if "blocks.0.ls1.gamma" in shapes
        else None,
        qk_norm="blocks.0.attn.q_norm.weight" in shapes,
        mean=tuple(pretrained.get("mean", facts.mean)),
        std=tuple(pretrained.get("std", facts.std)),
        **eval_crop(pretrained, file.path),
    )
    head = None
    if "head.weight" in shapes:
        classes = first_shape(file, "head.weight", 2, "timm classifier")[0]
        head = Head(f"heads/{options.task}/linear", classes)
    labels = pretrained.get("label_names") or hub.get("label_names")
    return Described(file, config, head, labels, TensorMap(tuple(vit_tensors(config, head))), {})


def _check_arguments(arguments: dict[str, Any], name: str, swiglu: bool) -> None:
    unknown = [key for key in arguments if key not in _KNOWN_ARGUMENTS]
    activation = arguments.get("act_layer") or ("silu" if swiglu else "gelu")
    if unknown or (activation != "silu" if swiglu else activation not in _ACTIVATIONS):
        what = ", ".join(unknown) or f"act_layer={activation!r}"
        raise UserError(f"timm's {name} was made with {what}, which has no counterpart here.")


def _size(seen: Any) -> int | tuple[int, int] | None:
    if isinstance(seen, int):
        return seen
    return (
        (int(seen[0]), int(seen[1])) if isinstance(seen, (list, tuple)) and len(seen) == 2 else None
    )


def _is_patches_only(rows: int, prefix: int, patch: int, known: list) -> bool:
    """Whether a position table has no rows for cls and registers; where the image size is unknown, by squareness."""
    for size in filter(None, known):
        height, width = size if isinstance(size, tuple) else (size, size)
        patches = (height // patch) * (width // patch)
        if patches in (rows, rows - prefix):
            return patches == rows
    return int(rows**0.5) ** 2 == rows


def _heads(file: TensorFile, name: str, width: int) -> int:
    if (norm := file.shapes.get("blocks.0.attn.q_norm.weight")) and norm[0]:
        return width // norm[0]
    heads = heads_of(name, width)
    if heads is None:
        raise UserError(
            f"{file.path} does not say how many attention heads a width of {width} has; add --config.num_heads=N."
        )
    return heads


def _pooling(file: TensorFile, hub: dict[str, Any], arguments: dict[str, Any], name: str) -> str:
    shapes = file.shapes
    said = arguments.get("global_pool", hub.get("global_pool"))
    if said is None:
        if any(key.startswith("attn_pool.") for key in shapes):
            said = "map"
        elif "fc_norm.weight" in shapes or "cls_token" not in shapes or "_gap_" in name:
            said = "avg"
        else:
            said = "token"
    pooling = {"token": "cls", "avg": "gap", "map": "map", "": "none"}.get(said)
    if pooling is None:
        raise UserError(f"{file.path} pools by {said!r}, which has no counterpart here.")
    return pooling


def vit_tensors(config: ModelConfig, head: Head | None) -> list[Tensor]:
    """Every tensor of timm's state dict for this model."""
    shape = resolve_shape(config)
    width, patches = shape.size.width, shape.grid[0] * shape.grid[1]
    positions = [reshaped("", (1, patches, width), "backbone/position_embedding", (patches, width))]
    if config.prefix_position:
        ours = (shape.prefix, width)
        positions.insert(0, reshaped("", (1, *ours), "backbone/prefix_position", ours))
    tensors = [
        patch_conv(
            "patch_embed.proj.weight", "backbone/patch_embedding/kernel", shape.patch, width
        ),
        same("patch_embed.proj.bias", (width,), "backbone/patch_embedding/bias"),
        fused("pos_embed", positions, axis=1),
    ]
    if shape.class_token:
        tensors.append(reshaped("cls_token", (1, 1, width), "backbone/cls", (1, width)))
    if config.register_tokens:
        ours = (config.register_tokens, width)
        tensors.append(reshaped("reg_token", (1, *ours), "backbone/registers", ours))
    for i in range(shape.size.depth):
        tensors += _block(config, shape.size, f"blocks.{i}", f"backbone/blocks/{i}")
    final = "fc_norm" if config.pooling == "gap" and config.gap_norm == "after" else "norm"
    tensors += norm(final, "backbone/norm", width)
    if config.pooling == "map":
        tensors += _map_head(shape.size)
    if head is not None:
        tensors += linear("head", head.prefix, width, head.classes)
    return tensors


def _fused_linear(theirs: str, ours: list[str], inputs: int, outputs: int) -> list[Tensor]:
    """One matrix for several of our layers, each of `outputs` features."""
    parts = [linear("", name, inputs, outputs) for name in ours]
    return [
        fused(f"{theirs}.weight", [weight for weight, _ in parts]),
        fused(f"{theirs}.bias", [bias for _, bias in parts]),
    ]


def _block(config: ModelConfig, size: ViTSize, theirs: str, ours: str) -> list[Tensor]:
    width, attention = size.width, f"{ours}/attention"
    qkv = [f"{attention}/{part}" for part in ("query", "key", "value")]
    tensors = [
        *norm(f"{theirs}.norm1", f"{ours}/attention_norm", width),
        *_fused_linear(f"{theirs}.attn.qkv", qkv, width, width),
        *linear(f"{theirs}.attn.proj", f"{attention}/out", width, width),
        *norm(f"{theirs}.norm2", f"{ours}/mlp_norm", width),
        *linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/out", size.mlp_dim, width),
    ]
    # timm packs SwiGLU's gate before its hidden layer.
    hidden = ["gate", "hidden"] if config.mlp == "swiglu" else ["hidden"]
    tensors += _fused_linear(
        f"{theirs}.mlp.fc1", [f"{ours}/mlp/{part}" for part in hidden], width, size.mlp_dim
    )
    if config.qk_norm:
        for letter, name in (("q", "query_norm"), ("k", "key_norm")):
            tensors += norm(
                f"{theirs}.attn.{letter}_norm", f"{attention}/{name}", width // size.num_heads
            )
    if config.layer_scale is not None:
        tensors += [
            same(f"{theirs}.ls1.gamma", (width,), f"{ours}/attention_scale"),
            same(f"{theirs}.ls2.gamma", (width,), f"{ours}/mlp_scale"),
        ]
    return tensors


def _map_head(size: ViTSize) -> list[Tensor]:
    width, ours = size.width, "backbone/map"
    return [
        reshaped("attn_pool.latent", (1, 1, width), f"{ours}/probe", (1, width)),
        *linear("attn_pool.q", f"{ours}/query", width, width),
        *_fused_linear("attn_pool.kv", [f"{ours}/key", f"{ours}/value"], width, width),
        *linear("attn_pool.proj", f"{ours}/out", width, width),
        *norm("attn_pool.norm", f"{ours}/norm", width),
        *linear("attn_pool.mlp.fc1", f"{ours}/mlp/hidden", width, size.mlp_dim),
        *linear("attn_pool.mlp.fc2", f"{ours}/mlp/out", size.mlp_dim, width),
    ]


def check_expressible(config: ModelConfig) -> None:
    refuse(
        "timm",
        {
            "position_embedding='rope2d'": config.position_embedding == "rope2d",
            "representation_size": bool(config.representation_size),
            "mlp='swiglu' with pooling='map'": config.mlp == "swiglu" and config.pooling == "map",
            f"norm_eps={config.norm_eps} (its LayerNorm has 1e-6)": resolve_shape(config).norm_eps
            != 1e-6,
        },
    )


def hub_config(
    config: ModelConfig, head: Head | None, class_names: list[str] | None
) -> dict[str, Any]:
    """`config.json` of a hub folder: `timm.create_model(architecture, **model_args)` builds this model."""
    shape = resolve_shape(config)
    size, classes = shape.size, head.classes if head else 0
    pool = {"cls": "token", "gap": "avg", "map": "map", "none": ""}[config.pooling]
    hidden = size.mlp_dim * (2 if config.mlp == "swiglu" else 1)
    # timm computes int(width * mlp_ratio): half a unit more keeps rounding from losing one.
    arguments: dict[str, Any] = {
        "img_size": list(config.image_hw),
        "patch_size": shape.patch,
        "embed_dim": size.width,
        "depth": size.depth,
        "num_heads": size.num_heads,
        "mlp_ratio": (hidden + 0.5) / size.width,
        "class_token": shape.class_token,
        "no_embed_class": not config.prefix_position,
        "reg_tokens": config.register_tokens,
        "init_values": config.layer_scale or 0.0,  # None would leave the architecture's own
        "qk_norm": config.qk_norm,
        "global_pool": pool,
        "fc_norm": config.pooling == "gap" and config.gap_norm == "after",
        "act_layer": {"gelu_tanh": "gelu_tanh", "gelu_erf": "gelu", "swiglu": "silu"}[config.mlp],
        "num_classes": classes,
    }
    # SwiGLU has no JSON value in `model_args`; this architecture has it.
    architecture = "vit_giant_patch14_dinov2" if config.mlp == "swiglu" else "vit_base_patch16_224"
    return {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": size.width,
        "global_pool": pool,
        "model_args": arguments,
        "pretrained_cfg": pretrained_cfg(
            config, head, class_names, first_conv="patch_embed.proj", classifier="head"
        ),
    }
