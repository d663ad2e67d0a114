"""Seconds and peak memory of the steps that handle the vocabulary as a whole, one process: a JSON line for each.

    python benchmarks/vocabulary.py [--phrases 1000000] [--only STEP ...]

About `--phrases` phrases are selected among three times as many frequent sequences of made-up words. Each step runs in
a process of its own; memory is what it has at its peak beyond what the process had with its inputs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LETTERS = "etaoinshrdlucmfwypvbgk"
LANGUAGES = ("de", "en", "fr", "und")


def make_words(count: int, seed: int = 0) -> list[str]:
    """Different made-up words of 4 to 12 letters, sorted."""
    draw = np.random.default_rng(seed)
    share = 1 / np.arange(1, len(LETTERS) + 1)
    found: set[str] = set()
    while len(found) < count:
        lengths = draw.integers(4, 13, count)
        flat = draw.choice(list(LETTERS), size=int(lengths.sum()), p=share / share.sum())
        text, ends = "".join(flat), np.cumsum(lengths)
        found.update(text[e - n : e] for e, n in zip(ends, lengths, strict=True))
    return sorted(found)[:count]


def make_sequences(phrases: int) -> Any:
    """`3 * phrases` sequences of up to four words whose parts are all among them."""
    from data_prep.sequences import single_words

    draw = np.random.default_rng(0)
    words = make_words(phrases // 4)
    language = draw.integers(0, len(LANGUAGES), len(words))
    count = np.sort(draw.zipf(1.3, len(words)).clip(max=10_000_000) + 100)[::-1]
    found = single_words(pa.array(words), draw.permutation(count), language, LANGUAGES)
    for length, wanted in ((2, 1.5), (3, 0.8), (4, 0.45)):
        ids = found.level(length - 1)
        prefix = draw.choice(ids, int(wanted * phrases))
        # Its last word makes a sequence with the words before it: that of another sequence of the same suffix.
        if length == 2:
            word = draw.integers(0, len(words), len(prefix))
        else:
            by_prefix = ids[np.argsort(found.prefix[ids], kind="stable")]
            heads = found.prefix[by_prefix]
            low = np.searchsorted(heads, found.suffix[prefix])
            high = np.searchsorted(heads, found.suffix[prefix], side="right")
            prefix, low, high = (values[high > low] for values in (prefix, low, high))
            word = found.last[by_prefix[draw.integers(low, high)]]
        key = np.unique(prefix.astype(np.int64) << 32 | word)
        prefix, word = key >> 32, key & 0xFFFFFFFF
        count = np.minimum(found.count[prefix] // 2, 50) + 5
        found = found.grown(prefix, word, count, found.language[prefix])
    return found


def time_select(phrases: int) -> Callable[[], dict[str, int]]:
    from data_prep.given import no_phrases
    from data_prep.mining import join_phrases
    from data_prep.schema import VocabularyConfig
    from data_prep.schema_text import TextConfig
    from data_prep.selection import select_phrases

    sequences = make_sequences(phrases)
    config = VocabularyConfig(max_phrases=phrases, min_npmi=-1.0, fragment_fraction=1.1)

    def run() -> dict[str, int]:
        blocked = frozenset({sequences.words[7].as_py()})
        mined = select_phrases(sequences, 10_000_000, config, TextConfig(), blocked)
        joined = join_phrases(no_phrases(), mined, {}, {}, {}, fold_plurals=True)
        return {"sequences": len(sequences), "phrases": len(joined.phrases)}

    return run


def time_trie(phrases: int) -> Callable[[], dict[str, int]]:
    from data_prep.matching import PhraseTrie

    sequences = make_sequences(phrases)
    PhraseTrie.build(["a", "a b"])  # compiles

    def run() -> dict[str, int]:
        trie = PhraseTrie.build(sequences.texts().to_pylist())
        return {"sequences": len(sequences), "words": len(trie.words)}

    return run


def time_misspellings(phrases: int) -> Callable[[], dict[str, int]]:
    from data_prep.canonical import rare_misspellings
    from data_prep.schema import VocabularyConfig

    words = make_words(phrases)
    counts = np.where(np.random.default_rng(1).random(len(words)) < 0.5, 100, 1)
    rare_misspellings(pa.array(words[:9]), counts[:9], VocabularyConfig())  # compiles

    def run() -> dict[str, int]:
        found = rare_misspellings(pa.array(words), counts, VocabularyConfig())
        return {"words": len(words), "misspellings": len(found)}

    return run


def time_given(phrases: int) -> Callable[[], dict[str, int]]:
    from data_prep.canonical import inflections
    from data_prep.given import last_words, read_given
    from data_prep.mining import join_phrases
    from data_prep.schema_text import TextConfig
    from data_prep.selection import MinedPhrases

    words = make_words(phrases // 4)
    draw = np.random.default_rng(2)
    pairs = draw.integers(0, len(words), (phrases, 2))
    names = list({f"{words[a].title()}, {words[b]}": None for a, b in pairs.tolist()})
    path = Path(tempfile.mkdtemp()) / "given.parquet"
    pq.write_table(pa.table({"phrase": names}), path)

    def run() -> dict[str, int]:
        given = read_given(path, TextConfig(), "first")
        nothing = MinedPhrases((), np.zeros(0, np.int64), ())
        plurals = inflections(last_words(given), words)
        joined = join_phrases(given, nothing, {}, {}, plurals, fold_plurals=True)
        return {"phrases": len(joined.phrases)}

    return run


def time_tables(phrases: int) -> Callable[[], dict[str, int]]:
    from data_prep.categories import PHRASE_CATEGORIES_SCHEMA, category_entropy
    from data_prep.phrases import phrase_languages
    from data_prep.stages import LANGUAGE_COUNTS_SCHEMA

    draw = np.random.default_rng(3)
    rows = 10 * phrases
    phrase = np.sort(draw.integers(0, phrases, rows))
    columns = [pa.array(phrase, pa.int32()), pa.array(draw.integers(0, 200, rows), pa.int32())]
    columns.append(pa.array(draw.integers(1, 50, rows)))
    counts = pa.Table.from_arrays(columns, schema=PHRASE_CATEGORIES_SCHEMA)
    names = pa.array(LANGUAGES).take(pa.array(draw.integers(0, 4, 2 * phrases)))
    spoken = [pa.array(phrase[::5], pa.int32()), names, pa.array(draw.integers(1, 9, 2 * phrases))]
    table = pa.Table.from_arrays(spoken, schema=LANGUAGE_COUNTS_SCHEMA)
    canonical = np.arange(phrases)

    def run() -> dict[str, int]:
        batches = counts.to_batches(max_chunksize=1_000_000)
        found = category_entropy(lambda: batches, np.full(200, 1000), canonical)
        languages = phrase_languages(table, canonical, "und")
        return {"entropies": int(np.isfinite(found).sum()), "languages": len(languages)}

    return run


STEPS = {
    "select": time_select,
    "trie": time_trie,
    "misspellings": time_misspellings,
    "given": time_given,
    "categories_and_languages": time_tables,
}


def measure(name: str, phrases: int) -> None:
    run = STEPS[name](phrases)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, cpu = time.monotonic(), time.process_time()
    found = run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures: dict[str, object] = {
        "step": name,
        **found,
        "seconds": round(time.monotonic() - begin, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "more_memory_gb": round((peak - before) * 1024 / 1e9, 2),
        "peak_memory_gb": round(peak * 1024 / 1e9, 2),
    }
    print(json.dumps(figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phrases", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*", choices=STEPS, default=list(STEPS))
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for name in arguments.only:
        process = context.Process(target=measure, args=(name, arguments.phrases))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
