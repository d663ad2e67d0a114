"""The typed schema of `vitscale prep`: every choice that the paper leaves open has a name here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vitscale.errors import UserError


# --8<-- [start:schema]
@dataclass(frozen=True)
class TextSourceConfig:
    """One place that text about an image comes from (DESIGN 3.3)."""

    name: str
    field: str = ""  # of the input record; default: the source's name
    kind: Literal["text", "list", "weighted_list"] = "text"
    text_key: str = "text"  # weighted_list: key of an item's text
    weight_key: str = "weight"  # weighted_list: key of an item's weight, such as "clicks"
    weight_power: float = 0.5  # weighted_list: item weight = value ** power (damps popular items)
    separator: str = "|"  # between the items of a list that is one CSV cell
    prior: float = 0.5  # probability that a phrase seen in this source alone describes the image

    @property
    def input_field(self) -> str:
        return self.field or self.name

    def __post_init__(self) -> None:
        if not 0.0 < self.prior < 1.0:
            raise UserError(
                f"sources: prior={self.prior} of {self.name!r} must be between 0 and 1."
            )


@dataclass(frozen=True)
class VocabularyConfig:
    """Which word sequences of the corpus become phrases, and which forms are one phrase."""

    min_document_frequency: int = 5  # records that hold the phrase
    max_document_fraction: float = 0.5  # a phrase in more of the records says nothing
    max_ngram: int = 6  # words a phrase
    max_phrases: int = 100_000  # the most frequent are kept
    # collocation score of longer phrases, -1..1: "dining table", not "table in"
    min_npmi: float = 0.3
    # drop a phrase when this share of it lies inside one longer phrase
    fragment_fraction: float = 0.9
    stop_words: tuple[str, ...] = ()  # besides the built-in English ones: no part of phrases
    inner_stop_words: tuple[str, ...] = ("of",)  # those that a phrase may have between its words
    stop_phrases: tuple[str, ...] = ()  # never a phrase
    fold_plurals: bool = True  # "sofas" -> "sofa" where both are frequent
    spelling_ratio: float = 10.0  # fold a word into one this many times as frequent; 0: never
    spelling_min_length: int = 4  # letters; two edits are allowed from twice this length
    spelling_min_similarity: float = 0.5  # of use, that a *frequent* near-spelling must reach
    overlap: Literal["longest", "all"] = "longest"  # "coffee table" hides the "table" within it
    language: str = "und"  # BCP 47 tag written to vocabulary.parquet; nothing identifies it yet


@dataclass(frozen=True)
class EmbeddingConfig:
    """Phrase vectors from co-occurrence: positive PMI and a truncated SVD (Levy et al., 2015)."""

    dimension: int = 128
    # auto: cross_source if there are two
    context: Literal["auto", "cross_source", "record"] = "auto"
    context_smoothing: float = 0.75  # exponent of the context distribution
    shift: float = 1.0  # log(shift) is taken off the PMI
    singular_power: float = 0.5  # of the singular values in the vectors


@dataclass(frozen=True)
class ClusterConfig:
    """Spherical k-means over the phrase vectors."""

    count: int | None = None  # None: as many as it takes to bring every phrase within `radius`
    radius: float = 0.5  # cosine distance, for count=None
    max_count: int = 20_000  # bound of the automatic count
    iterations: int = 25
    block_rows: int = 8192  # of the blocked distance product


@dataclass(frozen=True)
class ScoringConfig:
    """score = noisy-or of the sources * specificity * idf (see data_prep.scoring)."""

    support_power: float = 0.5  # of the share of a list's weight whose items hold the phrase
    idf_scale: float = 1.0  # idf at which the factor saturates at 1
    specificity_scale: float = 0.1  # nats of context divergence at which the factor is 1/2
    min_score: float = 0.5  # a label needs this
    relative_min_score: float = 0.5  # ... and this share of the image's best score


@dataclass(frozen=True)
class SplitConfig:
    """Which records validate: by a hash, so that a record stays put when the corpus grows."""

    validation_fraction: float = 0.05
    group_field: str = ""  # records that share its value share the split; default: each by its id


@dataclass(frozen=True)
class PrepConfig:
    """One run of `vitscale prep`."""

    sources: tuple[TextSourceConfig, ...]
    id_field: str = "id"
    image_field: str | None = "image"  # a path or bytes; None: text only, labels without shards
    image_root: str | None = None  # folder that image paths start from; default: the input's folder
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    clusters: ClusterConfig = field(default_factory=ClusterConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    label_space: Literal["clusters", "phrases"] = "clusters"
    label_field: str = "concepts"  # of the examples in the shards
    labels_per_image: int = 5  # at most; the best ones
    sampling_power: float = 0.5  # an image's weight = max over its labels of frequency ** -power
    batch_rows: int = 2048  # records in an Arrow batch; the result does not depend on it
    examples_per_shard: int = 2048
    max_image_pixels: int = 50_000_000  # a larger image is rejected from its header, undecoded
    max_reject_fraction: float = 0.01  # of broken records and images; more is an error
    # of records without text or without labels; more is an error
    max_unlabelled_fraction: float = 0.5
    report_examples: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError(
                "sources is empty: name at least one field of the records that holds text."
            )
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise UserError(
                    f"sources: {name!r} is named twice; every source needs its own name."
                )
        if not 1 <= self.vocabulary.max_ngram <= 6:
            raise UserError(
                f"vocabulary.max_ngram={self.vocabulary.max_ngram} must be between 1 and 6 words."
            )
        if self.clusters.count is not None and self.clusters.count < 1:
            raise UserError(f"clusters.count={self.clusters.count} must be at least 1, or None.")
        for name in ("labels_per_image", "batch_rows", "examples_per_shard"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")


# --8<-- [end:schema]
