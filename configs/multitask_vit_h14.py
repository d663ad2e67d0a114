"""The unified embedding: ViT-H/14, seven tasks, 4 million products; 500 million examples, TPU v5e 16x16 (256 chips).

    vitscale plan  --config configs/multitask_vit_h14.py --topology v5e:16x16
    vitscale train --config configs/multitask_vit_h14.py --workdir runs/multitask_h14 --config.data.root=DIR

Starts from the backbone in `runs/h14`, of `pretrain_vit_h14.py`. Each source trains its own tasks (`product_data`);
an example without a label for a task is masked in that task's loss. One vector serves every index: its first 64, 128,
256 or 512 entries are embeddings too. Set `num_classes` to yours. A specialist is the same page with one task:
`--config.only_tasks="('embedding',)"`.

Plan: 903 chip-hours at best (3.5 hours), 8.7 of 16 GiB a chip. Published: a multi-task embedding on a ViT pretrained
on weak labels, where it replaced the model of a shopping system: 36 % better top-1 relevance (Beal et al., 2022,
arXiv 2108.05887); no public figure for a catalogue like yours.
"""

from ml_collections import ConfigDict

from configs.common import finetuning_adamw, product_data, product_tasks, scanned_vit


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "seed": 0,
            "duration": "5e8 examples",
            "model": scanned_vit("H/14", stochastic_depth=0.2),
            "init": {"checkpoint": "runs/h14", "include": "^backbone/"},
            "data": product_data(global_batch_size=8_192),
            "tasks": product_tasks(products=4_000_000, dim=1024, widths=(64, 128, 256, 512)),
            # Losses of seven tasks in seven units: each is weighed by what it has learnt to be uncertain about.
            "task_weighting": {"kind": "uncertainty"},
            "optim": finetuning_adamw(lr=4e-4, layer_decay=0.9),
            # Width 1,280 over 32: shards of 40 rows.
            "mesh": {"layout": "fsdp", "fsdp": 32, "data": 8},
            "checkpoint": {"every_steps": 1000},
        }
    )
