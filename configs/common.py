"""What the configs of this folder share: small ViTs for two CPU cores, and the parts of the pretraining recipes."""

from ml_collections import ConfigDict

# Pretraining recipes and the hardware that each is for. Tests compile every one of them ahead of time, and
# `vitscale plan --config FILE --topology NAME` says the same about a config of yours.
RECIPES = {
    "configs/pretrain_vit_b16.py": "v5e:4x4",
    "configs/pretrain_vit_l16.py": "v5e:16x16",
    "configs/pretrain_vit_g14.py": "v5p:8x8x8",
    "configs/pretrain_vit_h14.py": "4*v5e:16x16",
    "configs/pretrain_vit_l16_h100.py": "h100:32",
}


def small_vit(image_size: int = 48, width: int = 96, depth: int = 3) -> ConfigDict:
    """8-pixel patches and few, narrow layers: on two cores, more images a second beat a larger model."""
    return ConfigDict(
        {
            "variant": "S/8",
            "width": width,
            "depth": depth,
            "num_heads": width // 32,
            "image_size": image_size,
        }
    )


def adamw(lr: float, warmup: int) -> ConfigDict:
    return ConfigDict({"lr": lr, "schedule": "cosine", "warmup": warmup, "weight_decay": 0.05})


def weak_labels(global_batch_size: int) -> ConfigDict:
    """The examples of `vitscale prep`; `--config.data.root=DIR` says where its output folder is."""
    return ConfigDict(
        {
            "root": "runs/prep",
            "sources": [
                # Rare labels are drawn more often: sampling weight = inverse square root of frequency (SWAG).
                {
                    "kind": "shards",
                    "path": "shards",
                    "split": "train",
                    "sampling": "sampling_weight",
                }
            ],
            "global_batch_size": global_batch_size,
            "crop_min_area": 0.2,
            "num_workers": 16,  # processes a host: 21,000 photos a second (docs/input.md)
        }
    )


def weak_label_task(num_classes: int) -> ConfigDict:
    """Softmax with target 1/k over the k labels of an image (SWAG, arXiv 2201.08371).

    num_classes: of your `vitscale prep`; stated, so that a plan needs no data. From 8,192 classes on the loss is
    computed on the shards of the classes.
    """
    return ConfigDict(
        {
            "name": "concepts",
            "kind": "multi_label",
            "loss": "softmax",
            "num_classes": num_classes,
        }
    )


def scanned_vit(variant: str, stochastic_depth: float = 0.0, **others: object) -> ConfigDict:
    """A ViT as TPUs want it: the layers as one loop, which compiles once, and only matrix products kept for the
    backward pass."""
    return ConfigDict(
        {
            "variant": variant,
            "compute_dtype": "bfloat16",
            "scan_layers": True,
            "remat": "dots",
            "stochastic_depth": stochastic_depth,
            **others,
        }
    )


def pretraining_adamw(lr: float) -> ConfigDict:
    """AugReg's cosine (arXiv 2106.10270), with CatLIP's weight decay for weak labels (arXiv 2404.15653)."""
    return ConfigDict(
        {
            "lr": lr,
            "schedule": "cosine",
            "warmup": 10_000,
            "weight_decay": 0.2,
            "ema_decay": 0.9999,
        }
    )
