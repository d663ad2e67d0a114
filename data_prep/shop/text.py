"""The text around an image of the generated catalogue: heterogeneous, and dirty by as much as its config says."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.shop import words
from data_prep.shop.products import Product, zipf


@dataclass(frozen=True)
class TextConfig:
    """How dirty the text is. Every knob is a probability: 0 never, 1 always."""

    # of a word for a type, colour or material: another word than the usual one
    synonym: float = 0.45
    plural: float = 0.25  # of a word for a type: its plural
    misspelling: float = 0.03  # of a word of four letters or more: one random edit
    brand_noise: float = 0.5  # of a title: brand, series, article number, marketing words
    missing_field: float = 0.15  # of each text field: null
    wrong_product_text: float = 0.04  # of an image: all its text is that of another product
    irrelevant_board: float = 0.3  # of a board: a name that says nothing about the product
    irrelevant_query: float = 0.12  # of a query: one that was meant for another product
    junk_alt_text: float = 0.2  # of an alt text: a file name or the like
    html: float = 0.1  # of a description: left-over markup
    boilerplate: float = 0.4  # of a description: a sentence that fits any product
    shouting: float = 0.05  # of a title: capitals
    omit_colour: float = 0.25  # of a mention of the product: its colour is left out
    omit_material: float = 0.5
    omit_shade: float = 0.75
    omit_pattern: float = 0.4
    omit_style: float = 0.5  # of each style attribute


@dataclass(frozen=True)
class _Writer:
    """One product's words under one config and one source of random numbers."""

    product: Product
    config: TextConfig
    rng: np.random.Generator

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def form(self, forms: Sequence[str]) -> str:
        """The usual form, or with probability `synonym` one of the others."""
        if len(forms) > 1 and self.chance(self.config.synonym):
            return self.pick(forms[1:])
        return forms[0]

    def type_word(self) -> str:
        form = self.form(self.product.type.forms)
        return words.plural(form) if self.chance(self.config.plural) else form

    def colour_words(self) -> str:
        p = self.product
        fitting = [f for f, low, high in words.COLOUR_FORMS[p.colour] if low <= p.shade <= high]
        colour = self.form(fitting)
        # "dark navy" is rare in shops: only the plain name takes a shade word.
        if colour == p.colour and not self.chance(self.config.omit_shade):
            colour = f"{self.pick(words.SHADE_FORMS[p.shade])} {colour}"
        return colour

    def noun_phrase(self) -> list[str]:
        """Pattern, colour, material and type, some left out; the order that a shop assistant would say."""
        p, c = self.product, self.config
        parts: list[str] = []
        if p.pattern != "plain" and not self.chance(c.omit_pattern):
            parts.append(self.form(words.PATTERN_FORMS[p.pattern]))
        if not self.chance(c.omit_colour):
            parts.append(self.colour_words())
        if not self.chance(c.omit_material):
            parts.append(self.form(words.MATERIAL_FORMS[p.material]))
        return [*parts, self.type_word()]

    def styles(self) -> list[str]:
        return [v for v in self.product.style.values() if not self.chance(self.config.omit_style)]

    def finish(self, text: str) -> str:
        """Adds the spelling mistakes."""
        rate = self.config.misspelling
        if not rate:
            return text
        return " ".join(
            misspell(w, self.rng) if len(w) >= 4 and w.isalpha() and self.chance(rate) else w
            for w in text.split(" ")
        )

    def title(self) -> str:
        parts = [*self.noun_phrase(), *self.styles()]
        if self.chance(self.config.brand_noise):
            parts = [self.pick(words.BRANDS), self.pick(words.SERIES), *parts]
            if self.chance(0.4):
                parts.append(f"- {self.pick(words.MARKETING)}")
            if self.chance(0.3):
                parts.append(f"#{self.pick(string.ascii_uppercase)}{self.rng.integers(100, 9999)}")
        text = self.finish(" ".join(parts))
        return text.upper() if self.chance(self.config.shouting) else text[0].upper() + text[1:]

    def description(self) -> str:
        kind = self.product.type
        sentences = [f"{self.pick(('This', 'Our', 'A'))} {' '.join(self.noun_phrase())} "
                     f"{self.pick(('is made to last', 'brings style to every day', 'fits any taste'))}."]  # fmt: skip
        styles = self.styles()
        if styles:
            sentences.append(f"Comes with {' and '.join(styles)}.")
        if self.chance(0.5):
            topic = f"the {kind.place}" if kind.family == "home" else kind.place
            sentences.append(
                f"{self.pick(('Perfect for', 'Made for', 'Looks great with'))} {topic}."
            )
        if self.chance(self.config.boilerplate):
            sentences.append(self.pick(words.BOILERPLATE))
        sentences = [self.finish(s) for s in sentences]
        if self.chance(self.config.html):
            return f"<p>{'</p><br/><p>'.join(sentences)}</p>&nbsp;"
        return " ".join(sentences)

    def alt_text(self) -> str:
        if self.chance(self.config.junk_alt_text):
            return self.pick(words.JUNK_ALT).format(n=self.rng.integers(1000, 9999))
        lead = self.pick(("", "photo of ", "a ", "picture of a "))
        text = lead + " ".join(self.noun_phrase())
        return self.finish(f"{text} {self.pick(words.SETTINGS)}" if self.chance(0.5) else text)

    def board(self) -> str:
        if self.chance(self.config.irrelevant_board):
            return self.pick(words.IRRELEVANT_BOARDS)
        kind = self.product.type
        return self.finish(
            self.pick(
                (
                    f"{kind.place} ideas" if kind.family == "home" else kind.place,
                    f"{self.type_word()} inspo",
                    f"{self.colour_words()} {kind.place}",
                    f"{self.type_word()} i want",
                    self.type_word(),
                )
            )
        )

    def query(self) -> str:
        kind = self.type_word()
        style = self.pick(list(self.product.style.values()))
        lead = (self.colour_words(), self.form(words.MATERIAL_FORMS[self.product.material]), style, "",
                self.pick(("cheap", "best", "modern", "buy")))  # fmt: skip
        text = f"{lead[int(self.rng.choice(5, p=(0.34, 0.2, 0.16, 0.2, 0.1)))]} {kind}".strip()
        return self.finish(text.lower())


def misspell(word: str, rng: np.random.Generator) -> str:
    """One random edit that changes the word: a swap, a letter lost, doubled or replaced."""
    i = int(rng.integers(1, len(word) - 1))
    kind = int(rng.integers(4))
    if kind == 0 and word[i] != word[i + 1]:
        return word[:i] + word[i + 1] + word[i] + word[i + 2 :]
    if kind == 1:
        return word[:i] + word[i + 1 :]
    if kind == 2:
        return word[:i] + word[i] + word[i:]
    letters = [c for c in string.ascii_lowercase if c != word[i].lower()]
    return word[:i] + letters[int(rng.integers(25))] + word[i + 1 :]


def write_text(
    product: Product,
    other: Product,
    popularity: float,
    config: TextConfig,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """All text fields of one image: title, description, alt_text, boards, queries with click counts.

    `other` is the product whose words get in by mistake; `popularity` (0..1) scales the clicks.
    """
    wrong = rng.random() < config.wrong_product_text
    subject, stranger = (other, product) if wrong else (product, other)
    writer, drifting = _Writer(subject, config, rng), _Writer(stranger, config, rng)

    def present() -> bool:
        return not writer.chance(config.missing_field)

    record: dict[str, Any] = {
        "title": writer.title() if present() else None,
        "description": writer.description() if present() else None,
        "alt_text": writer.alt_text() if present() else None,
        "boards": [writer.board() for _ in range(rng.integers(1, 5))] if present() else None,
        "queries": None,
    }
    if present():
        n = int(rng.integers(1, 7))
        texts = [
            (drifting if writer.chance(config.irrelevant_query) else writer).query()
            for _ in range(n)
        ]
        total = 3.0 + 400.0 * popularity * rng.lognormal(0.0, 0.5)
        clicks = np.maximum(1, np.round(total * zipf(n, 1.2))).astype(int)
        merged: dict[str, int] = {}
        for text, count in zip(texts, clicks.tolist(), strict=True):
            merged[text] = merged.get(text, 0) + count
        record["queries"] = [{"text": t, "clicks": k} for t, k in merged.items()]
    return record
