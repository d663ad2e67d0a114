"""Scorers: from the features of a (record, phrase) pair to how likely the phrase describes the record's image.

A fitted scorer is a folder of text files, which nothing executes or unpickles:

    scorer.json             format, version, kind, names of the features it reads, coefficients, how it was fitted
    trees.txt               kind "trees": the model in LightGBM's own text format
    associations.parquet    which phrases go with which labels, by their text (data_prep.association)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from data_prep.features import PairFeatures
from data_prep.scoring import SCORES_SCHEMA, PhraseTable
from vitscale.errors import UserError

FORMAT, VERSION = "vitscale-scorer", 1
SCORER_FILE, TREES_FILE, ASSOCIATIONS_FILE = "scorer.json", "trees.txt", "associations.parquet"


class Scorer(Protocol):
    """Weighs the features of pairs."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the features it reads, in their order."""

    def score(self, values: np.ndarray) -> np.ndarray:
        """Scores `[M] float64` in 0..1 of `values [M, len(wanted)] float32`, row by row."""


@dataclass(frozen=True)
class HandScorer:
    """The default: the formula of data_prep.scoring."""

    wanted: ClassVar[tuple[str, ...]] = ("hand_score",)

    def score(self, values: np.ndarray) -> np.ndarray:
        return values[:, 0].astype(np.float64)


@dataclass(frozen=True)
class LogisticScorer:
    """sigmoid(intercept + sum over the F features of coefficient * (value - mean) / scale)."""

    wanted: tuple[str, ...]
    mean: tuple[float, ...]  # [F]
    scale: tuple[float, ...]  # [F], above 0
    coefficients: tuple[float, ...]  # [F]
    intercept: float

    def score(self, values: np.ndarray) -> np.ndarray:
        # Summed feature by feature: a matrix product may round by the number of rows.
        logit = np.full(len(values), self.intercept)
        for index, (mean, scale, weight) in enumerate(
            zip(self.mean, self.scale, self.coefficients, strict=True)
        ):
            logit += weight * ((values[:, index] - mean) / scale)
        return 1.0 / (1.0 + np.exp(-np.clip(logit, -700.0, 700.0)))


@dataclass(frozen=True)
class TreeScorer:
    """Gradient-boosted trees of a binary objective, predicted by LightGBM (the extra `scorer`)."""

    wanted: tuple[str, ...]
    model: str  # in LightGBM's text format

    @cached_property
    def _booster(self) -> Any:
        try:
            import lightgbm
        except ImportError as error:
            raise UserError(
                "a scorer of trees needs LightGBM; install it with `pip install 'vitscale[scorer]'`."
            ) from error
        try:
            return lightgbm.Booster(model_str=self.model)
        except lightgbm.basic.LightGBMError as error:
            raise ValueError(f"{TREES_FILE}: {error}") from error

    @property
    def num_features(self) -> int:
        """How many features the trees were grown on."""
        return int(self._booster.num_feature())

    def score(self, values: np.ndarray) -> np.ndarray:
        if not len(values):
            return np.zeros(0)
        found = self._booster.predict(values.astype(np.float64), num_threads=1)
        return np.clip(np.asarray(found, np.float64), 0.0, 1.0)


def score_pairs(
    pairs: PairFeatures, scorer: Scorer, table: PhraseTable, least: float = 0.0
) -> pa.RecordBatch:
    """The pairs that may be labels and score above 0 and at least `least` (`SCORES_SCHEMA`), a record's best first."""
    score = scorer.score(pairs.columns(scorer.wanted)).astype(np.float32)
    kept = (score > 0) & (score >= np.float32(least))
    if len(table.is_label):
        kept &= table.is_label[pairs.phrase]
    order = np.lexsort((pairs.phrase, -score, pairs.record))
    order = order[kept[order]]
    return pa.RecordBatch.from_arrays(
        [
            pa.array(pairs.record[order], pa.int32()),
            pa.array(pairs.phrase[order], pa.int32()),
            pa.array(score[order]),
            pa.array(pairs.sources[order], pa.int64()),
            pairs.language.take(pa.array(order)),
            evidence_lists(pairs.evidence[order]),
        ],
        schema=SCORES_SCHEMA,
    )


def evidence_lists(evidence: np.ndarray) -> pa.ListArray:
    """`[n, K] int32` as lists without the -1."""
    told = evidence >= 0
    offsets = np.concatenate([[0], np.cumsum(told.sum(axis=1))])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array(evidence[told], pa.int32())
    )


def save_scorer(folder: Path, scorer: Scorer, extra: Mapping[str, object] | None = None) -> None:
    """Writes a fitted scorer; `extra`, such as how it was fitted, is kept beside it in scorer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[str, object] = {"format": FORMAT, "version": VERSION}
    if isinstance(scorer, LogisticScorer):
        fields = dataclasses.asdict(scorer)
        told |= {"kind": "logistic", "features": fields.pop("wanted"), **fields}
    elif isinstance(scorer, TreeScorer):
        told |= {"kind": "trees", "features": scorer.wanted, "trees": TREES_FILE}
        (folder / TREES_FILE).write_text(scorer.model, encoding="utf-8")
    else:
        raise TypeError(f"{type(scorer).__name__} is no fitted scorer")
    text = json.dumps({**told, **(extra or {})}, indent=1, ensure_ascii=False)
    (folder / SCORER_FILE).write_text(text + "\n", encoding="utf-8")


def load_scorer(folder: str | Path) -> Scorer:
    """The scorer of a folder that `vitscale prep fit-scorer` wrote; of "" the hand-set one."""
    if not str(folder):
        return HandScorer()
    path = Path(folder) / SCORER_FILE
    if not path.is_file():
        raise UserError(
            f"scoring.scorer: {path} does not exist; name a folder that `vitscale prep fit-scorer` wrote."
        )
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if (told["format"], told["version"]) != (FORMAT, VERSION):
            raise ValueError(f"it is {told['format']!r}, version {told['version']!r}")
        return _read(told, path.parent)
    except (KeyError, TypeError, ValueError, OSError) as error:
        name = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"scoring.scorer: {path} is no scorer of this vitscale: {name}; fit it again."
        ) from error


def _read(told: Mapping[str, Any], folder: Path) -> Scorer:
    wanted = tuple(str(name) for name in told["features"])
    if told["kind"] == "trees":
        scorer = TreeScorer(wanted, (folder / TREES_FILE).read_text(encoding="utf-8"))
        if scorer.num_features != len(wanted):
            raise ValueError(f"{TREES_FILE} reads {scorer.num_features} features of {len(wanted)}")
        return scorer
    if told["kind"] != "logistic":
        raise ValueError(f"kind {told['kind']!r} is neither 'logistic' nor 'trees'")
    mean, scale, weights = (
        tuple(float(v) for v in told[n]) for n in ("mean", "scale", "coefficients")
    )
    if not len(wanted) == len(mean) == len(scale) == len(weights) or not all(s > 0 for s in scale):
        raise ValueError("features, mean, scale and coefficients do not fit together")
    return LogisticScorer(wanted, mean, scale, weights, float(told["intercept"]))


def check_features(scorer: Scorer, known: Sequence[str]) -> None:
    """Raises `UserError` where the scorer reads a feature that these sources do not give."""
    missing = [name for name in scorer.wanted if name not in known]
    if missing:
        raise UserError(
            f"scoring.scorer reads {', '.join(missing)}, which this config does not give (it gives "
            f"{', '.join(known)}); name the sources as they were when it was fitted, or fit it again."
        )


def scorer_files(folder: str) -> list[Path]:
    """The files of a scorer, whose digests go into the manifest."""
    names = (SCORER_FILE, TREES_FILE, ASSOCIATIONS_FILE)
    return [Path(folder) / n for n in names if (Path(folder) / n).is_file()] if folder else []
