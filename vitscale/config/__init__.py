"""The typed schema of every config, and the checks that need nothing but the config.

A config file returns an `ml_collections.ConfigDict` from `get_config()`; `vitscale.config_loading` turns it into
these frozen dataclasses, so that a typo or a wrong type fails before a device is touched. A field's comment is its
documentation: `docs/config.md` shows these files.
"""

from vitscale.config.data import AugmentConfig, DataConfig, SourceConfig
from vitscale.config.durations import Duration, resolve_durations, steps_of
from vitscale.config.evaluation import (
    ClassificationConfig,
    EvalConfig,
    KnnConfig,
    RetrievalConfig,
)
from vitscale.config.model import ModelConfig, TaskConfig
from vitscale.config.train import (
    NAME_PATTERN,
    CheckpointConfig,
    InitConfig,
    LogConfig,
    MeshConfig,
    OptimConfig,
    ParameterRule,
    SurvivalConfig,
    TrainConfig,
    ValidationConfig,
)

__all__ = [
    "NAME_PATTERN",
    "AugmentConfig",
    "CheckpointConfig",
    "ClassificationConfig",
    "DataConfig",
    "Duration",
    "EvalConfig",
    "InitConfig",
    "KnnConfig",
    "LogConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "ParameterRule",
    "RetrievalConfig",
    "SourceConfig",
    "SurvivalConfig",
    "TaskConfig",
    "TrainConfig",
    "ValidationConfig",
    "resolve_durations",
    "steps_of",
]
