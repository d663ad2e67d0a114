"""Synthetic rows with the statistics of a catalogue's text, as many as wanted: Parquet files for benchmarks/prep.py.

    python benchmarks/prep_rows.py --rows 1000000 --output rows/ [--concepts 50000] [--seed 0]

Words follow Zipf's law and come in three languages. A record is about three concepts; a concept has `SYNONYMS` phrases
of one to three words in each language, and each source names a concept by any of them, between words that mean nothing.
Some texts hold markup, entities, URLs and addresses; some words are misspelled. Block i of rows depends on the seed and
i alone, so a smaller corpus is the beginning of a larger one. Everything is done a block at a time by NumPy and Arrow.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.schema_text import TextSourceConfig

BLOCK_ROWS = 65_536  # rows of a Parquet row group
SYNONYMS = 3
MENTION = 3  # words of a concept's phrase, at most
CONCEPTS_PER_RECORD = 3
ABSENT = -1  # no word stands here
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("alt_text", pa.string()),
        ("boards", pa.list_(pa.string())),
        ("queries", pa.list_(pa.struct([("text", pa.string()), ("clicks", pa.int64())]))),
    ]
)
SOURCES = (
    TextSourceConfig("title", prior=0.7),
    TextSourceConfig("description"),
    TextSourceConfig("alt_text", prior=0.6),
    TextSourceConfig("boards", kind="list", prior=0.4),
    TextSourceConfig("queries", kind="weighted_list", weight_key="clicks", prior=0.6),
)
STOP_WORDS = (
    "the and for with of in a to is this your from by on our it that at as all",
    "der die und mit für in ein eine zu ist das von auf aus im den dem bei auch als",
    "le la les et pour avec de des un une du en sur dans par est au aux ce plus",
)
STOPS = 20  # of each language
# Consonants and vowels alternate, so that different syllables never spell the same word.
CONSONANTS = (
    "b c d f g h j k l m n p r s t v w th sh ch st tr pl br gr ck nd",
    "b d f g h k l m n p r s t v w z sch ch st pf tr br gr kr nd tz ß",
    "b c d f g j l m n p qu r s t v ch tr pl br gr cl ll nn ss mm rr ç",
)
VOWELS = ("a e i o u ea ou", "a e i o u ä ö ü ei", "a e i o u é è ou eau")
LANGUAGE_SHARE = (0.6, 0.25, 0.15)
DIRT = (
    "<b>",
    "</p>",
    "&amp;",
    "https://shop.example/p/42?ref=7",
    "anna@mail.example",
    "☎ 555 010 99 88",
)


@dataclass(frozen=True)
class Corpus:
    """What the rows are drawn from."""

    words: int = 50_000  # of each language, besides the stop words
    concepts: int = 50_000
    typos: float = 0.002  # share of the words that lose a letter
    dirt: float = 0.01  # share of the words that markup, a URL or an address follows
    seed: int = 0

    @cached_property
    def spellings(self) -> pa.Array:
        """Stop words, then words by falling frequency, language after language; then dirt."""
        found: list[str] = []
        for language in range(len(VOWELS)):
            found += [*STOP_WORDS[language].split(), *_spell_words(self.words, language, self.seed)]
        return pa.array([*found, *DIRT], pa.string())

    @cached_property
    def phrases(self) -> np.ndarray:
        """`[concepts, SYNONYMS, MENTION] int32`: words of each concept's phrases, ABSENT past their end.

        The first words of a concept say what a corpus of its kind is about: no phrase holds one of the commonest words.
        """
        generator = np.random.default_rng([self.seed, 1])
        shape = (self.concepts, SYNONYMS, MENTION)
        words = generator.integers(self.words // 100, self.words, shape, dtype=np.int32)
        length = generator.choice([1, 2, 3], (self.concepts, SYNONYMS, 1), p=[0.35, 0.45, 0.2])
        return np.where(np.arange(MENTION) < length, words, ABSENT)

    def blocks(self, rows: int) -> Iterator[pa.RecordBatch]:
        """The first `rows` rows (`SCHEMA`), `BLOCK_ROWS` at a time."""
        for index, start in enumerate(range(0, rows, BLOCK_ROWS)):
            yield _Block(self, index).table().slice(0, rows - start)


class _Block:
    """Draws one block; every draw is over all of its rows at once."""

    def __init__(self, corpus: Corpus, index: int) -> None:
        self._corpus = corpus
        self._first = index * BLOCK_ROWS
        self._generator = np.random.default_rng([corpus.seed, 2, index])
        self._language = self._generator.choice(len(VOWELS), BLOCK_ROWS, p=LANGUAGE_SHARE)
        self._concept = self._zipf(corpus.concepts, (BLOCK_ROWS, CONCEPTS_PER_RECORD))

    def table(self) -> pa.RecordBatch:
        every = np.arange(BLOCK_ROWS)
        title = self._texts(every, "f m f m")
        described = self._texts(every, "f f m f f f m f f f")
        alternative = self._texts(every, "m f f")
        no_alternative = pa.array(self._generator.random(BLOCK_ROWS) < 0.2)
        alternative = pc.if_else(no_alternative, pa.scalar(None, pa.string()), alternative)
        boards = self._lists(3, "f m")
        queries = self._lists(2, "m f")
        clicks = self._zipf(1000, len(queries.values)) + 1
        searched = pa.StructArray.from_arrays([queries.values, clicks], names=["text", "clicks"])
        ids = pc.binary_join_element_wise(
            "row", pc.utf8_lpad(pc.cast(pa.array(self._first + every), pa.string()), 10, "0"), "-"
        )
        columns = [ids, pc.utf8_capitalize(title), described, alternative, boards]
        columns.append(pa.ListArray.from_arrays(queries.offsets, searched))
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    def _lists(self, most: int, slots: str) -> pa.ListArray:
        """0 to `most` texts for each row."""
        count = self._generator.integers(0, most + 1, BLOCK_ROWS)
        texts = self._texts(np.repeat(np.arange(BLOCK_ROWS), count), slots)
        offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), texts)

    def _texts(self, row: np.ndarray, slots: str) -> pa.Array:
        """A text for each of `row [n]`: its slots are a mention (m) of a concept or two words of filler (f)."""
        columns = [
            self._mention(row) if slot == "m" else self._filler(row) for slot in slots.split()
        ]
        words = np.concatenate(columns, axis=1)
        stood = words != ABSENT
        offsets = np.concatenate([[0], np.cumsum(stood.sum(axis=1))]).astype(np.int32)
        spelled = self._misspell(self._corpus.spellings.take(pa.array(words[stood])))
        return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), spelled), " ")

    def _mention(self, row: np.ndarray) -> np.ndarray:
        """A phrase of one of the record's concepts in its language: `[n, MENTION]`."""
        size = len(row)
        concept = self._concept[row, self._generator.integers(0, CONCEPTS_PER_RECORD, size)]
        words = self._corpus.phrases[concept, self._generator.integers(0, SYNONYMS, size)]
        return np.where(words == ABSENT, ABSENT, words + self._first_word(row))

    def _filler(self, row: np.ndarray) -> np.ndarray:
        """Two words, often the same two together, or a stop word and one; now and then dirt: `[n, 3]`."""
        size, corpus = len(row), self._corpus
        word = self._zipf(corpus.words, size)
        # Half of the pairs are turns of speech: the second word is a function of the first.
        other = np.where(
            self._chance(0.5, size), word * 7919 % corpus.words, self._zipf(corpus.words, size)
        )
        stop = self._generator.integers(-STOPS, 0, size)
        left = np.where(self._chance(0.5, size), stop, other)
        dirt = self._generator.integers(
            len(corpus.spellings) - len(DIRT), len(corpus.spellings), size
        )
        base = self._first_word(row)[:, 0]
        tail = np.where(self._chance(2 * corpus.dirt, size), dirt, ABSENT)
        return np.stack([left + base, word + base, tail], axis=1)

    def _first_word(self, row: np.ndarray) -> np.ndarray:
        """Place of the first word that is no stop word, of the language of each of `row [n]`: `[n, 1]`."""
        return (self._language[row] * (STOPS + self._corpus.words) + STOPS)[:, None]

    def _misspell(self, words: pa.Array) -> pa.Array:
        chosen = self._chance(self._corpus.typos, len(words))
        wrong = [word[:2] + word[3:] for word in words.filter(pa.array(chosen)).to_pylist()]
        return pc.replace_with_mask(words, pa.array(chosen), pa.array(wrong, pa.string()))

    def _zipf(self, size: int, shape: int | tuple[int, ...]) -> np.ndarray:
        """0..size-1, the r-th with a probability of about 1 / r."""
        drawn = np.exp(self._generator.random(shape) * np.log(size + 1)).astype(np.int64) - 1
        return np.clip(drawn, 0, size - 1)

    def _chance(self, share: float, size: int) -> np.ndarray:
        return self._generator.random(size) < share


def write_rows(
    corpus: Corpus, rows: int, folder: Path, rows_per_file: int = 16 * BLOCK_ROWS
) -> None:
    """Writes the rows as Parquet files of `rows_per_file` rows to a new folder."""
    folder.mkdir(parents=True)
    per_file = max(1, rows_per_file // BLOCK_ROWS)
    writer: pq.ParquetWriter | None = None
    for index, block in enumerate(corpus.blocks(rows)):
        if index % per_file == 0:
            if writer is not None:
                writer.close()
            path = folder / f"rows-{index // per_file:05d}.parquet"
            writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        assert writer is not None
        writer.write_batch(block)
    if writer is not None:
        writer.close()


def _spell_words(count: int, language: int, seed: int) -> list[str]:
    """Different words of two to four syllables; frequent ones are short, rare ones far from each other."""
    generator = np.random.default_rng([seed, 0, language])
    consonants, vowels = CONSONANTS[language].split(), VOWELS[language].split()
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = 2 if len(words) < 300 else 3 if len(words) < 3000 else 4
        first = generator.integers(0, len(consonants), (count, syllables)).tolist()
        second = generator.integers(0, len(vowels), (count, syllables)).tolist()
        limit = min({2: 300, 3: 3000, 4: count}[syllables], count)
        for c, v in zip(first, second, strict=True):
            words["".join(consonants[i] + vowels[j] for i, j in zip(c, v, strict=True))] = None
            if len(words) >= limit:
                break
    return list(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--words", type=int, default=50_000)
    parser.add_argument("--concepts", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    corpus = Corpus(arguments.words, arguments.concepts, seed=arguments.seed)
    write_rows(corpus, arguments.rows, arguments.output)


if __name__ == "__main__":
    main()
