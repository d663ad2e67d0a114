"""The unified embedding on the CNN baseline, ResNeXt-101 32x8d: seven tasks, 2 million products, TPU v5e 8x8 (64).

    vitscale plan  --config configs/multitask_resnext101.py --topology v5e:8x8
    vitscale train --config configs/multitask_resnext101.py --workdir runs/multitask_resnext101 --config.data.root=DIR

300 million examples. For the comparison with `multitask_vit_b16.py`: the same tasks and examples, from the backbone
in `runs/resnext101`, of `pretrain_resnext101.py`. BatchNorm is over the global batch, of all three sources. Layers
have no learning rates of their own, which are for ViTs. Grouped convolutions leave most of a TPU's multiplier empty,
so expect several times the plan's hours.

Plan: 55 chip-hours at best (0.9 hours), 12.2 of 16 GiB a chip. Published: no figure for a catalogue like yours;
Zhai et al. (2019, arXiv 1908.01707) describe a unified embedding of a shopping system on a CNN.
"""

from ml_collections import ConfigDict

from configs.common import finetuning_adamw, product_data, product_tasks

# What 8 chips split into whole tiles of 8 rows; with other numbers `vitscale plan` warns of two padded biases, which
# cost nothing.
WHOLE_TILES = {"category": 5120, "materials": 448}


def get_config() -> ConfigDict:
    tasks = product_tasks(products=2_000_000, dim=512, widths=(64, 128, 256))
    for task in tasks:
        task["num_classes"] = WHOLE_TILES.get(task["name"], task.get("num_classes"))
    return ConfigDict(
        {
            "seed": 0,
            "duration": "3e8 examples",
            "model": {"variant": "resnext101_32x8d", "compute_dtype": "bfloat16"},
            "init": {"checkpoint": "runs/resnext101", "include": "^backbone/"},
            "data": product_data(global_batch_size=4_096),
            "tasks": tasks,
            # Losses of seven tasks in seven units: each is weighed by what it has learnt to be uncertain about.
            "task_weighting": {"kind": "uncertainty"},
            "optim": finetuning_adamw(lr=5e-4, layer_decay=1.0),
            # The narrowest map has 64 channels: shards of 8 rows.
            "mesh": {"layout": "fsdp", "fsdp": 8, "data": 8},
            "checkpoint": {"every_steps": 1000},
        }
    )
