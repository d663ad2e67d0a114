"""The part of the `vitscale prep` schema that is about text: sources, words, languages, privacy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitscale.errors import UserError


# --8<-- [start:text]
@dataclass(frozen=True)
class TextSourceConfig:
    """One place that text about an image comes from (DESIGN 3.3)."""

    name: str
    field: str = ""  # of the input record; default: the source's name
    kind: Literal["text", "list", "weighted_list"] = "text"
    # prose: as it is; hashtags: "#MidCenturyModern" says "Mid Century Modern";
    # path: the words of a file name or URL, "/p/Sofas/redSofa_02.jpg" says "p Sofas red Sofa"
    form: Literal["prose", "hashtags", "path"] = "prose"
    text_key: str = "text"  # weighted_list: key of an item's text
    weight_key: str = "weight"  # weighted_list: key of an item's weight, such as "clicks"
    weight_field: str = (
        ""  # of the record: the text's weight, or one weight for each item of a list
    )
    # counts (clicks) are damped and shared out among the source's texts; confidences
    # (of a detector, 0 to 1) are evidence as they are
    weights: Literal["counts", "confidences"] = "counts"
    weight_power: float = 0.5  # counts: weight = value ** power (damps popular items)
    language_field: str = ""  # of the record: BCP 47 tag of the source's texts; default: identified
    separator: str = "|"  # between the items of a list that is one CSV cell
    # query: people searched with it; the records whose queries hold a phrase are its query frequency
    role: Literal["text", "query"] = "text"
    prior: float = 0.5  # probability that a phrase seen in this source alone describes the image

    @property
    def input_field(self) -> str:
        return self.field or self.name

    @property
    def input_fields(self) -> list[str]:
        """All fields of the record that the source reads."""
        return [name for name in (self.input_field, self.weight_field, self.language_field) if name]

    def __post_init__(self) -> None:
        if not 0.0 < self.prior < 1.0:
            raise UserError(
                f"sources: prior={self.prior} of {self.name!r} must be between 0 and 1."
            )
        if self.weight_field and self.kind == "weighted_list":
            raise UserError(
                f"sources: {self.name!r} has weight_field={self.weight_field!r} and "
                "kind='weighted_list', whose items hold their weights: use kind='list'."
            )


@dataclass(frozen=True)
class TextConfig:
    """What becomes of a text's characters on the way to words (data_prep.text)."""

    accents: Literal["keep", "fold"] = (
        "keep"  # fold: "canapé" is "canape", of Latin and Greek letters
    )
    emoji: Literal["drop", "names"] = "drop"  # names: a sofa's emoji says "couch and lamp"
    # characters: each ideograph and hiragana is a word, so that phrases of up to max_ngram of them
    # are mined as words are; runs: what stands between spaces is a word
    cjk: Literal["characters", "runs"] = "characters"


@dataclass(frozen=True)
class LanguageConfig:
    """Which language a text is in, where its source has no language_field (py3langid)."""

    identify: bool = True
    languages: tuple[str, ...] = ()  # ISO 639-1 codes that can occur; default: all that it knows
    min_confidence: float = 0.5  # below it the source's language is the record's, then `default`
    default: str = "und"  # BCP 47

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_confidence <= 1.0:
            raise UserError(
                f"language.min_confidence={self.min_confidence} must be between 0 and 1."
            )


@dataclass(frozen=True)
class PrivacyConfig:
    """What is removed from text before anything is stored, and what never becomes a label."""

    emails: bool = True
    handles: bool = True  # "@name"
    phones: bool = True  # and other numbers of seven digits or more
    # phrases (sensitive attributes): no phrase that holds one, or its plural, enters the vocabulary
    blocklist: tuple[str, ...] = ()
    blocklist_file: str = ""  # UTF-8, a phrase a line


# --8<-- [end:text]
