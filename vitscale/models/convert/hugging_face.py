"""The vision models of `transformers`: `vit` (cls token, optional tanh pooler) and SigLIP's vision tower (MAP head).

Folders have `config.json`, `preprocessor_config.json` and `model.safetensors`. Published files carry the names of
transformers 4, which version 5 still writes; its new module names are read too.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from vitscale.config import ModelConfig
from vitscale.errors import UserError
from vitscale.models.convert.describe import (
    HALF,
    Described,
    Head,
    ImportOptions,
    first_shape,
    image_size_of,
    vit_config,
)
from vitscale.models.convert.files import TensorFile, read_json
from vitscale.models.convert.hugging_face_tensors import siglip_tensors, vit_tensors
from vitscale.models.convert.tensors import Tensor, TensorMap
from vitscale.models.vit_shape import ViTSize, resolve_shape

ACTIVATIONS = {
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
BILINEAR = 2  # Pillow's number
MODEL_TYPES = ("vit", "siglip", "siglip_vision_model")
_DEFAULTS = {"vit": {"hidden_act": "gelu", "layer_norm_eps": 1e-12}}
_SIGLIP_DEFAULTS = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
# transformers 4's names -> version 5's
_NEW_NAMES = (
    (r"encoder\.layer\.(\d+)\.", r"layers.\1."),
    (r"attention\.attention\.(query|key|value)", lambda m: f"attention.{m[1][0]}_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(?<=\d)\.output\.dense", ".mlp.fc2"),
)


def describe(file: TensorFile, folder: Path, options: ImportOptions) -> Described:
    """folder: where `config.json` lies."""
    tree = read_json(folder / "config.json")
    kind = tree.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(
            f"{folder}/config.json has the model_type {kind!r}; supported are {', '.join(MODEL_TYPES)}."
        )
    vision = tree.get("vision_config", tree) if kind == "siglip" else tree
    vision = {
        **_DEFAULTS.get(kind, _SIGLIP_DEFAULTS),
        "patch_size": 16,
        "image_size": 224,
        **vision,
    }
    return (_describe_vit if kind == "vit" else _describe_siglip)(file, folder, vision, options)


def _describe_vit(
    file: TensorFile, folder: Path, tree: dict[str, Any], options: ImportOptions
) -> Described:
    prefix = "vit." if any(name.startswith("vit.") for name in file.shapes) else ""
    rows = first_shape(file, f"{prefix}embeddings.position_embeddings", 3, "transformers ViT")[1]
    if not tree.get("qkv_bias", True):
        raise UserError(
            f"{folder}/config.json has qkv_bias=false; our attention always has biases."
        )
    representation = None
    if f"{prefix}pooler.dense.weight" in file.shapes:
        representation = first_shape(file, f"{prefix}pooler.dense.weight", 2, "pooler")[0]
        if tree.get("pooler_act", "tanh") != "tanh":
            raise UserError(
                f"{folder}/config.json has pooler_act={tree['pooler_act']!r}; ours is tanh."
            )
    config = _config(
        file,
        folder,
        tree,
        rows - 1,
        options,
        pooling="cls",
        class_token=True,
        prefix_position=True,
        representation_size=representation,
    )
    head = None
    if "classifier.weight" in file.shapes:
        classes = first_shape(file, "classifier.weight", 2, "transformers classifier")[0]
        head = Head(f"heads/{options.task}/linear", classes)
    tensors = vit_tensors(config, head, prefix)
    if f"{prefix}layers.0.layernorm_before.weight" in file.shapes:
        tensors = [dataclasses.replace(t, name=_new_name(t.name)) for t in tensors]
    # The mask token of SimMIM pretraining; nothing at inference reads it.
    ignored = {"mask token": [n for n in file.shapes if n == f"{prefix}embeddings.mask_token"]}
    return Described(file, config, head, _labels(tree, head), TensorMap(tuple(tensors)), ignored)


def _describe_siglip(
    file: TensorFile, folder: Path, tree: dict[str, Any], options: ImportOptions
) -> Described:
    prefix = "vision_model." if any(n.startswith("vision_model.") for n in file.shapes) else ""
    name = f"{prefix}embeddings.position_embedding.weight"
    rows = first_shape(file, name, 2, "SigLIP vision tower")[0]
    pooling = "map" if f"{prefix}head.probe" in file.shapes else "none"
    config = _config(file, folder, tree, rows, options, pooling=pooling)
    ignored = {
        "text tower": [n for n in file.shapes if n.startswith("text_model.")],
        "loss scale and bias": [n for n in file.shapes if n in ("logit_scale", "logit_bias")],
        "position indices": [n for n in file.shapes if n.endswith("position_ids")],
    }
    tensors: list[Tensor] = siglip_tensors(config, prefix)
    return Described(file, config, None, None, TensorMap(tuple(tensors)), ignored)


def _config(
    file: TensorFile,
    folder: Path,
    tree: dict[str, Any],
    rows: int,
    options: ImportOptions,
    **fields: Any,
) -> ModelConfig:
    activation = ACTIVATIONS.get(tree["hidden_act"])
    if activation is None:
        raise UserError(
            f"{folder}/config.json has hidden_act={tree['hidden_act']!r}; supported are {', '.join(ACTIVATIONS)}."
        )
    patch = _square(folder, "patch_size", tree["patch_size"])
    try:
        size = ViTSize(
            width=int(tree["hidden_size"]),
            depth=int(tree["num_hidden_layers"]),
            mlp_dim=int(tree["intermediate_size"]),
            num_heads=int(tree["num_attention_heads"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/config.json lacks a size of the model: {error}.") from error
    seen = tree["image_size"]
    seen = tuple(seen) if isinstance(seen, list) and len(seen) == 2 else seen
    return vit_config(
        size,
        patch,
        image_size_of(rows, patch, [seen], options),
        options,
        mlp=activation,
        norm_eps=float(tree["layer_norm_eps"]),
        **_preprocessing(folder),
        **fields,
    )


def _square(folder: Path, name: str, value: Any) -> int:
    sides = set(value) if isinstance(value, list) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int) or side < 1:
        raise UserError(f"{folder}/config.json has {name}={value!r}; ours must be square.")
    return side


def _preprocessing(folder: Path) -> dict[str, Any]:
    """Normalisation and evaluation crop, as fields of `ModelConfig`."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return dict(HALF)  # what both models were trained with
    tree = read_json(path)
    if not tree.get("do_normalize", True):
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), **_eval_crop(tree)}
    values = {
        ours: tuple(tree.get(theirs, HALF[ours]))
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
    }
    return values | _eval_crop(tree)


def _eval_crop(tree: dict[str, Any]) -> dict[str, Any]:
    """Of a processor that resizes the short side and cuts the middle out; the others squash."""
    short, crop = tree.get("size"), tree.get("crop_size")
    short = short.get("shortest_edge") if isinstance(short, dict) else short
    crop = min(crop.values()) if isinstance(crop, dict) and crop else crop
    if not tree.get("do_center_crop") or not short or not crop:
        return {}
    return {"eval_crop": "centre", "eval_crop_fraction": min(crop / short, 1.0)}


def _labels(tree: dict[str, Any], head: Head | None) -> list[str] | None:
    names = tree.get("id2label")
    if head is None or not isinstance(names, dict):
        return None
    return [str(names.get(str(i), i)) for i in range(head.classes)]


def _new_name(name: str) -> str:
    for old, new in _NEW_NAMES:
        name = re.sub(old, new, name)
    return name


def folder_files(
    config: ModelConfig, head: Head | None, class_names: list[str] | None
) -> dict[str, dict[str, Any]]:
    """`config.json` and `preprocessor_config.json` of the exported folder."""
    shape = resolve_shape(config)
    siglip = config.pooling == "map"
    height, width = config.image_hw
    tree: dict[str, Any] = {
        "architectures": ["ViTForImageClassification" if head else "ViTModel"],
        "model_type": "vit",
        "hidden_size": shape.size.width,
        "num_hidden_layers": shape.size.depth,
        "num_attention_heads": shape.size.num_heads,
        "intermediate_size": shape.size.mlp_dim,
        "hidden_act": "gelu" if config.mlp == "gelu_erf" else "gelu_pytorch_tanh",
        "layer_norm_eps": shape.norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": shape.patch,
        "num_channels": 3,
    }
    if siglip:
        tree |= {"architectures": ["SiglipVisionModel"], "model_type": "siglip_vision_model"}
    else:
        tree |= {"qkv_bias": True, "pooler_act": "tanh"}
        tree["pooler_output_size"] = config.representation_size or shape.size.width
    if head:
        names = class_names or [str(i) for i in range(head.classes)]
        tree["id2label"] = {str(i): name for i, name in enumerate(names)}
        tree["label2id"] = {name: i for i, name in enumerate(names)}
    processor = {
        "image_processor_type": "SiglipImageProcessor" if siglip else "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "resample": BILINEAR,
    }
    if config.eval_crop == "centre":
        # The processors above cannot cut.
        processor |= {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": round(min(height, width) / config.eval_crop_fraction)},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
        }
    return {"config.json": tree, "preprocessor_config.json": processor}
