"""Which labels a person looks at with images: the largest, and the tightest and loosest clusters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

LABELS_SHOWN = 20  # of each
LEAST_PHRASES, LEAST_IMAGES = 3, 6  # of a cluster whose tightness says something


@dataclass(frozen=True)
class ShownLabels:
    """Numbers of labels, and the mean distance of each cluster's phrases from its centre.

    `distance [L] float64`, 0 for empty clusters; None where the labels are not the clusters.
    """

    largest: list[int]
    tightest: list[int]
    loosest: list[int]
    distance: np.ndarray | None

    @property
    def every(self) -> list[int]:
        return sorted({*self.largest, *self.tightest, *self.loosest})


def shown_labels(
    images: np.ndarray, cluster: np.ndarray | None, distance: np.ndarray | None
) -> ShownLabels:
    """Chooses the labels.

    Args:
      images: `[L] int64`, of each label.
      cluster, distance: `[P]`, cluster of each phrase and its cosine distance from the centre; None where phrases are
        the labels.
    """
    ids = np.arange(len(images))
    largest = ids[np.lexsort((ids, -images))][:LABELS_SHOWN]
    largest = largest[images[largest] > 0]
    if cluster is None or distance is None:
        return ShownLabels(largest.tolist(), [], [], None)
    phrases = np.bincount(cluster, minlength=len(images))
    # Rounded, so that the order of a sum's terms does not reorder the clusters.
    mean = np.bincount(cluster, distance, minlength=len(images)) / np.maximum(phrases, 1)
    mean = np.round(mean, 6)
    known = ids[(phrases >= LEAST_PHRASES) & (images >= LEAST_IMAGES)]
    tight = known[np.lexsort((known, mean[known]))]
    half = min(LABELS_SHOWN, len(tight) // 2)  # a cluster is not both
    loose = tight[len(tight) - half :][::-1]
    return ShownLabels(largest.tolist(), tight[:half].tolist(), loose.tolist(), mean)


def read_shown_labels(folder: Path, label_space: str, images: np.ndarray) -> ShownLabels:
    """`shown_labels` of the tables in a prep folder; `images [L]` counts those of each label."""
    if label_space == "phrases":
        return shown_labels(images, None, None)
    table = pq.read_table(folder / "clusters.parquet", columns=["cluster_id", "distance"])
    return shown_labels(images, table["cluster_id"].to_numpy(), table["distance"].to_numpy())
