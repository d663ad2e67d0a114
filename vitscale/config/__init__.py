"""The typed schema of every config, and the checks that need nothing but the config.

A config file returns an `ml_collections.ConfigDict` from `get_config()`; `vitscale.config_loading` turns it into
these frozen dataclasses, so that a typo or a wrong type fails before a device is touched. A field's comment is its
documentation: `docs/config.md` shows these files.
"""

from vitscale.config.data import AugmentConfig, DataConfig, SourceConfig
from vitscale.config.durations import Duration, resolve_durations, steps_of
from vitscale.config.evaluation import EvalConfig
from vitscale.config.model import ModelConfig
from vitscale.config.probe_suites import (
    AttentiveProbeConfig,
    ClassificationConfig,
    ClusteringConfig,
    FewShotConfig,
    KnnConfig,
    LinearProbeConfig,
)
from vitscale.config.retrieval_suites import (
    FrequencyConfig,
    Grade,
    MergedConfig,
    RetrievalConfig,
)
from vitscale.config.selection import select_tasks
from vitscale.config.tasks import EmbeddingConfig, RegressionConfig, TaskConfig
from vitscale.config.train import (
    FREE_KEYS,
    NAME_PATTERN,
    CheckpointConfig,
    ClassifierInit,
    InitConfig,
    LogConfig,
    MeshConfig,
    OptimConfig,
    ParameterRule,
    SurvivalConfig,
    TaskWeightingConfig,
    TeacherConfig,
    TrainConfig,
    ValidationConfig,
)

__all__ = [
    "FREE_KEYS",
    "NAME_PATTERN",
    "AttentiveProbeConfig",
    "AugmentConfig",
    "CheckpointConfig",
    "ClassificationConfig",
    "ClassifierInit",
    "ClusteringConfig",
    "DataConfig",
    "Duration",
    "EmbeddingConfig",
    "EvalConfig",
    "FewShotConfig",
    "FrequencyConfig",
    "Grade",
    "InitConfig",
    "KnnConfig",
    "LinearProbeConfig",
    "LogConfig",
    "MergedConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimConfig",
    "ParameterRule",
    "RegressionConfig",
    "RetrievalConfig",
    "SourceConfig",
    "SurvivalConfig",
    "TaskConfig",
    "TaskWeightingConfig",
    "TeacherConfig",
    "TrainConfig",
    "ValidationConfig",
    "resolve_durations",
    "select_tasks",
    "steps_of",
]
