"""big_vision's and AugReg's `.npz`: flax's ViT, attention kernels `[D, heads, D / heads]`, HWIO patch kernel.

Two generations of module names. AugReg's (`posembed_input`, `MultiHeadDotProductAttention_1`) adds positions after the
cls token, so its table has a row for it; big_vision's adds them before, so it has none. Layers may be stacked ("scan").
"""

from __future__ import annotations

from dataclasses import dataclass

from vitscale.config import ModelConfig
from vitscale.errors import UserError
from vitscale.models.convert.describe import (
    HALF,
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
from vitscale.models.convert.tensors import Shape, Tensor, TensorMap, fused, reshaped, same, stacked
from vitscale.models.vit_shape import ViTSize, resolve_shape

# Where a tree of parameters may hang. Below any but the empty one, what lies beside it is not the image model.
PREFIXES = ("", "params/img/", "params/", "img/", "opt/target/")


@dataclass(frozen=True)
class Layout:
    """How a file spells the same parameters."""

    prefix: str
    augreg: bool
    scanned: bool

    @property
    def position(self) -> str:
        return "Transformer/posembed_input/pos_embedding" if self.augreg else "pos_embedding"

    @property
    def modules(self) -> tuple[str, str, str]:
        """Attention, second norm and MLP of a block."""
        attention, norm, mlp = (1, 2, 3) if self.augreg else (0, 1, 0)
        return (
            f"MultiHeadDotProductAttention_{attention}",
            f"LayerNorm_{norm}",
            f"MlpBlock_{mlp}",
        )


def layout_for_export(config: ModelConfig) -> Layout:
    """AugReg's names where the cls token has a position, big_vision's otherwise: the ones whose readers agree."""
    augreg = config.prefix_position
    return Layout("" if augreg else "params/", augreg, config.scan_layers and not augreg)


def describe(file: TensorFile, options: ImportOptions) -> Described:
    layout = _find_layout(file)
    prefix, shapes = layout.prefix, file.shapes
    kernel = first_shape(file, f"{prefix}embedding/kernel", 4, "big_vision ViT")
    patch, width = kernel[0], kernel[3]
    size = _size(file, layout, width)
    class_token = f"{prefix}cls" in shapes
    position = shapes.get(prefix + layout.position)
    if position is not None:
        rows = first_shape(file, prefix + layout.position, 3, "big_vision ViT")[1]
        image_size = image_size_of(rows - layout.augreg * class_token, patch, [], options)
    else:
        given = options.given.get("image_size", 224)  # sincos2d fits any size
        image_size = given if isinstance(given, tuple) else (given, given)
    has_map = f"{prefix}MAPHead_0/probe" in shapes
    representation = shapes.get(f"{prefix}pre_logits/bias", (None,))[0]
    config = vit_config(
        size,
        patch,
        image_size,
        options,
        pooling="cls" if class_token else "map" if has_map else "gap",
        class_token=class_token,
        position_embedding="sincos2d" if position is None else "learned",
        prefix_position=position is not None and layout.augreg and class_token,
        representation_size=representation,
        mlp="gelu_tanh",
        **HALF,
    )
    head = None
    if f"{prefix}head/kernel" in shapes:
        classes = first_shape(file, f"{prefix}head/kernel", 2, "big_vision head")[1]
        head = Head(f"heads/{options.task}/linear", classes)
    others = [name for name in shapes if prefix and not name.startswith(prefix)]
    ignored = {f"not below {prefix}": others}
    return Described(
        file, config, head, None, TensorMap(tuple(tensors(config, head, layout))), ignored
    )


def _find_layout(file: TensorFile) -> Layout:
    for prefix in PREFIXES:
        if f"{prefix}embedding/kernel" in file.shapes:
            block = f"{prefix}Transformer/encoderblock"
            scanned = f"{block}/LayerNorm_0/scale" in file.shapes
            first = block if scanned else f"{block}_0"
            augreg = f"{first}/MultiHeadDotProductAttention_1/query/kernel" in file.shapes
            return Layout(prefix, augreg, scanned)
    have = ", ".join(sorted(file.shapes)[:4]) or "none"
    raise UserError(
        f"{file.path} is no big_vision ViT: it has no embedding/kernel, neither at the top nor below "
        f"{', '.join(PREFIXES[1:])}; its arrays begin with {have}."
    )


def _size(file: TensorFile, layout: Layout, width: int) -> ViTSize:
    blocks, axis = f"{layout.prefix}Transformer/encoderblock", int(layout.scanned)
    first = blocks if layout.scanned else f"{blocks}_0"
    attention, _, mlp = layout.modules
    query = first_shape(file, f"{first}/{attention}/query/kernel", 3 + axis, "big_vision ViT")
    hidden = first_shape(file, f"{first}/{mlp}/Dense_0/kernel", 2 + axis, "big_vision ViT")
    depth = query[0] if layout.scanned else count_layers(list(file.shapes), f"{blocks}_")
    return ViTSize(width, depth, hidden[1 + axis], query[1 + axis])


def tensors(config: ModelConfig, head: Head | None, layout: Layout) -> list[Tensor]:
    """Every array of the file for this model."""
    shape = resolve_shape(config)
    size, patch, prefix = shape.size, shape.patch, layout.prefix
    width, patches = size.width, shape.grid[0] * shape.grid[1]
    found = [
        reshaped(
            f"{prefix}embedding/kernel",
            (patch, patch, 3, width),
            "backbone/patch_embedding/kernel",
            (patch * patch * 3, width),
        ),
        same(f"{prefix}embedding/bias", (width,), "backbone/patch_embedding/bias"),
        *_norm(f"{prefix}Transformer/encoder_norm", "backbone/norm", width),
    ]
    if config.position_embedding == "learned":
        table = [reshaped("", (1, patches, width), "backbone/position_embedding", (patches, width))]
        if config.prefix_position:
            table.insert(0, reshaped("", (1, 1, width), "backbone/prefix_position", (1, width)))
        found.append(fused(prefix + layout.position, table, axis=1))
    if shape.class_token:
        found.append(reshaped(f"{prefix}cls", (1, 1, width), "backbone/cls", (1, width)))
    found += _blocks(size, layout)
    if config.pooling == "map":
        found += _map_head(size, f"{prefix}MAPHead_0", "backbone/map")
    features = config.representation_size or width
    if config.representation_size:
        found += _dense(f"{prefix}pre_logits", "backbone/representation", width, features)
    if head:
        found += _dense(f"{prefix}head", head.prefix, features, head.classes)
    return found


def _blocks(size: ViTSize, layout: Layout) -> list[Tensor]:
    base = f"{layout.prefix}Transformer/encoderblock"
    if not layout.scanned:
        layers = (_block(size, layout, f"{base}_{i}", i) for i in range(size.depth))
        return [tensor for layer in layers for tensor in layer]
    by_layer = [_block(size, layout, base, i) for i in range(size.depth)]
    return [stacked(layers[0].name, layers) for layers in zip(*by_layer, strict=True)]


def _block(size: ViTSize, layout: Layout, theirs: str, index: int) -> list[Tensor]:
    attention, norm, mlp = layout.modules
    ours = f"backbone/blocks/{index}"
    return [
        *_norm(f"{theirs}/LayerNorm_0", f"{ours}/attention_norm", size.width),
        *_attention(size, f"{theirs}/{attention}", f"{ours}/attention"),
        *_norm(f"{theirs}/{norm}", f"{ours}/mlp_norm", size.width),
        *_mlp(size, f"{theirs}/{mlp}", f"{ours}/mlp"),
    ]


def _attention(size: ViTSize, theirs: str, ours: str) -> list[Tensor]:
    width, heads = size.width, (size.num_heads, size.width // size.num_heads)
    found: list[Tensor] = []
    for part in ("query", "key", "value", "out"):
        kernel: Shape = (*heads, width) if part == "out" else (width, *heads)
        bias: Shape = (width,) if part == "out" else heads
        found += [
            reshaped(f"{theirs}/{part}/kernel", kernel, f"{ours}/{part}/kernel", (width, width)),
            reshaped(f"{theirs}/{part}/bias", bias, f"{ours}/{part}/bias", (width,)),
        ]
    return found


def _mlp(size: ViTSize, theirs: str, ours: str) -> list[Tensor]:
    return [
        *_dense(f"{theirs}/Dense_0", f"{ours}/hidden", size.width, size.mlp_dim),
        *_dense(f"{theirs}/Dense_1", f"{ours}/out", size.mlp_dim, size.width),
    ]


def _map_head(size: ViTSize, theirs: str, ours: str) -> list[Tensor]:
    width = size.width
    return [
        reshaped(f"{theirs}/probe", (1, 1, width), f"{ours}/probe", (1, width)),
        *_attention(size, f"{theirs}/MultiHeadDotProductAttention_0", ours),
        *_norm(f"{theirs}/LayerNorm_0", f"{ours}/norm", width),
        *_mlp(size, f"{theirs}/MlpBlock_0", f"{ours}/mlp"),
    ]


def _norm(theirs: str, ours: str, width: int) -> list[Tensor]:
    return [same(f"{theirs}/{part}", (width,), f"{ours}/{part}") for part in ("scale", "bias")]


def _dense(theirs: str, ours: str, inputs: int, outputs: int) -> list[Tensor]:
    return [
        same(f"{theirs}/kernel", (inputs, outputs), f"{ours}/kernel"),
        same(f"{theirs}/bias", (outputs,), f"{ours}/bias"),
    ]


def check_expressible(config: ModelConfig) -> None:
    shape = resolve_shape(config)
    refuse(
        "big_vision's .npz",
        {
            f"mlp={config.mlp!r} (its GELU is tanh)": config.mlp != "gelu_tanh",
            f"norm_eps={config.norm_eps} (its LayerNorm has 1e-6)": shape.norm_eps != 1e-6,
            "position_embedding='rope2d'": config.position_embedding == "rope2d",
            "register_tokens": config.register_tokens > 0,
            "layer_scale": config.layer_scale is not None,
            "qk_norm": config.qk_norm,
            "gap_norm='after'": config.pooling == "gap" and config.gap_norm == "after",
            f"a class token beside pooling={config.pooling!r}": shape.class_token
            and config.pooling != "cls",
        },
    )
