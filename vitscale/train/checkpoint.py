"""Checkpoints: parameters, optimiser state, step, config, classes and data position as one unit (Orbax, asynchronous).

Layout: see `vitscale.models.weights`, which reads the parameters back without the trainer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from vitscale.config import CheckpointConfig, TrainConfig
from vitscale.config_loading import to_json
from vitscale.models.weights import CHECKPOINTS, META_ITEM, PARAMS_ITEM, TRAIN_ITEM, describe
from vitscale.train.state import TrainState


class CheckpointStore:
    """Saves and restores the training state below `<workdir>/checkpoints`. Use it as a context manager."""

    def __init__(self, workdir: Path, config: CheckpointConfig) -> None:
        self._manager = ocp.CheckpointManager(
            (workdir / CHECKPOINTS).absolute(),
            item_names=(PARAMS_ITEM, TRAIN_ITEM, META_ITEM),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=config.keep, enable_async_checkpointing=True, create=True
            ),
        )

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Waits for the save under way: a checkpoint that was started is finished, also when the run fails.
        self._manager.close()

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: TrainState,
        config: TrainConfig,
        classes: Mapping[str, Sequence[str]],
        data_state: Mapping[str, Any],
    ) -> None:
        """Starts saving; arrays are copied off the device before this returns, written after."""
        meta = describe(step, config.model, config.tasks, classes)
        meta |= {"config": json.loads(to_json(config)), "data": dict(data_state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    PARAMS_ITEM: ocp.args.StandardSave({**state.params, **state.statistics}),
                    TRAIN_ITEM: ocp.args.StandardSave(
                        {"step": state.step, "opt_state": state.opt_state}
                    ),
                    META_ITEM: ocp.args.JsonSave(meta),
                }
            ),
        )

    def restore(
        self, step: int, abstract: TrainState, shardings: TrainState
    ) -> tuple[TrainState, dict[str, Any]]:
        """The state in the given shardings, and the saved meta data."""
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            shardings,
        )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    PARAMS_ITEM: ocp.args.StandardRestore({**target.params, **target.statistics}),
                    TRAIN_ITEM: ocp.args.StandardRestore(
                        {"step": target.step, "opt_state": target.opt_state}
                    ),
                    META_ITEM: ocp.args.JsonRestore(),
                }
            ),
        )
        train = restored[TRAIN_ITEM]
        variables = restored[PARAMS_ITEM]
        state = TrainState(
            train["step"],
            {name: variables[name] for name in target.params},
            {name: variables[name] for name in target.statistics},
            train["opt_state"],
        )
        return state, restored[META_ITEM]

    def wait(self) -> None:
        self._manager.wait_until_finished()
