"""The typed schema of `vitscale prep refine`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitscale.errors import UserError


@dataclass(frozen=True)
class RefineConfig:
    """When a trained model's word changes a label. Probabilities are those of `data_prep.posterior`."""

    drop_below: float = 0.4  # a label goes when it is right with less than this probability
    add_above: float = (
        0.8  # a label that the text proposes too weakly comes from this probability on
    )
    # what the labels' weights are from then on: the probability, or the text's score as before
    weights: Literal["probability", "text"] = "probability"
    # images a model whose scores say what a label's score is on images without it; more tell rarer ones apart
    null_images: int = 4000

    def __post_init__(self) -> None:
        if not 0.0 <= self.drop_below <= self.add_above <= 1.0:
            raise UserError(
                f"drop_below={self.drop_below} and add_above={self.add_above} must satisfy "
                "0 <= drop_below <= add_above <= 1."
            )
        if self.null_images < 100:
            raise UserError(f"null_images={self.null_images} must be at least 100.")
