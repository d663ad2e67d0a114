"""What the configs of this folder share: small ViTs that train in minutes on two CPU cores."""

from ml_collections import ConfigDict


def small_vit(image_size: int = 64) -> ConfigDict:
    """1.9 M parameters; 16-pixel patches keep the sequence short, which is what a CPU needs."""
    return ConfigDict(
        {"variant": "S/16", "width": 192, "depth": 4, "num_heads": 3, "image_size": image_size}
    )


def adamw(lr: float, warmup_steps: int) -> ConfigDict:
    return ConfigDict(
        {"lr": lr, "schedule": "cosine", "warmup_steps": warmup_steps, "weight_decay": 0.05}
    )
