"""Rows a second of one core that matches a vocabulary: ours, ahocorasick_rs and a plain Python trie, as one JSON line.

    python benchmarks/matching.py [--phrases 50000 500000] [--rows 20480] [--exact-rows 2000]

A row has five texts, 35 words on average. Phrases have 1 to 6 words of a Zipf vocabulary; a third of each text is made
of phrases. Times are CPU seconds, since the machine is shared; rivals take turns by batches of 2048 rows.

    ours_match     tokenised texts to (record, source, phrase, support) rows: word look-up, search, sums (match_batch)
    ours_find      the same words to (position, length, phrase): look-up and search alone
    ours_text      raw text to rows: tokenising (Unicode, markup, URLs) and ours_match
    ahocorasick    texts of the same words, already normalised and joined by spaces, to phrases on word boundaries
    python_trie    the same words to (position, length, phrase), a dict of dicts; on `--exact-rows` rows

recall and precision: our matches and ahocorasick's against the Python trie's, as (text, start, length, phrase), with
all overlaps.
memory_mb: what building the trie and matching add to the resident size of a process that has done a tiny match.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ahocorasick_rs
import numpy as np
import pyarrow as pa

from data_prep.candidates import WORDS_SCHEMA, match_batch, tokenize_batch
from data_prep.matching import PhraseTrie, find_phrases, list_offsets
from data_prep.schema_text import TextConfig
from data_prep.sources import RECORD_SCHEMA

WORDS, TEXTS, BATCH = 200_000, 5, 2048
Match = tuple[int, int, int, int]  # text, first word, words, phrase


def zipf_words(rng: np.random.Generator, count: int) -> list[str]:
    odds = 1.0 / np.arange(1, WORDS + 1) ** 0.9
    drawn = np.searchsorted(np.cumsum(odds / odds.sum()), rng.random(count))
    return [f"w{np.base_repr(word, 36).lower()}" for word in drawn]


def make_phrases(rng: np.random.Generator, count: int) -> list[str]:
    phrases: dict[str, None] = {}
    while len(phrases) < count:
        lengths = rng.choice(6, count, p=[0.2, 0.4, 0.22, 0.1, 0.05, 0.03]) + 1
        words = iter(zipf_words(rng, int(lengths.sum())))
        phrases.update(dict.fromkeys(" ".join(next(words) for _ in range(n)) for n in lengths))
    return list(phrases)[:count]


def make_texts(rng: np.random.Generator, phrases: Sequence[str], count: int) -> list[list[str]]:
    lengths = rng.integers(3, 12, count)
    noise = iter(zipf_words(rng, int(lengths.sum())))
    texts = []
    for length in lengths:
        text: list[str] = []
        while len(text) < length:
            if rng.random() < 0.18:
                text += phrases[rng.integers(len(phrases))].split(" ")
            else:
                text.append(next(noise))
        texts.append(text[:length])
    return texts


def python_trie(phrases: Sequence[str]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for index, phrase in enumerate(phrases):
        node = root
        for word in phrase.split(" "):
            node = node.setdefault(word, {})
        node[""] = index
    return root


def python_matches(root: dict[str, Any], texts: Sequence[Sequence[str]]) -> Iterator[Match]:
    for number, text in enumerate(texts):
        for start in range(len(text)):
            node = root
            for stop in range(start, len(text)):
                node = node.get(text[stop])
                if node is None:
                    break
                if "" in node:
                    yield number, start, stop + 1 - start, node[""]


def automaton_matches(
    automaton: ahocorasick_rs.AhoCorasick, texts: Sequence[str], phrases: Sequence[str]
) -> Iterator[Match]:
    """Every overlapping occurrence that begins and ends at a space or the text's end."""
    for number, text in enumerate(texts):
        for index, start, stop in automaton.find_matches_as_indexes(text, overlapping=True):
            if (start == 0 or text[start - 1] == " ") and (stop == len(text) or text[stop] == " "):
                words = phrases[index].count(" ") + 1
                yield number, text.count(" ", 0, start), words, index


def our_matches(batch: pa.RecordBatch, trie: PhraseTrie) -> Iterator[Match]:
    offsets = list_offsets(batch.column("words"))
    found = find_phrases(batch.column("words").flatten(), offsets, trie, "all")
    text = np.searchsorted(offsets, found[0], side="right") - 1
    columns = (text, found[0] - offsets[text], found[1], found[2])
    return zip(*(column.tolist() for column in columns), strict=True)


def words_batch(texts: Sequence[Sequence[str]]) -> pa.RecordBatch:
    rows = np.arange(len(texts))
    columns = [
        pa.array(rows // TEXTS, pa.int32()),
        pa.array(rows % TEXTS, pa.int8()),
        pa.array(np.ones(len(texts)), pa.float32()),
        pa.array(["en"] * len(texts)).dictionary_encode(),
        pa.array(texts, pa.list_(pa.string())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=WORDS_SCHEMA)


def records_batch(texts: Sequence[Sequence[str]]) -> pa.RecordBatch:
    items = [
        {"source": i % TEXTS, "weight": 1.0, "text": " ".join(text).capitalize(), "language": "en"}
        for i, text in enumerate(texts)
    ]
    rows = [{"id": str(i), "texts": items[i : i + TEXTS]} for i in range(0, len(items), TEXTS)]
    return pa.RecordBatch.from_pylist(rows, schema=RECORD_SCHEMA)


def agreement(found: Iterator[Match], true: set[Match]) -> dict[str, float]:
    matches = list(found)
    hit = len(true.intersection(matches))
    return {"recall": hit / len(true), "precision": hit / len(matches)}


def measure(num_phrases: int, rows: int, exact_rows: int, overlap: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    phrases = make_phrases(rng, num_phrases)
    batches = [make_texts(rng, phrases, BATCH * TEXTS) for _ in range(rows // BATCH)]
    exact = make_texts(rng, phrases, exact_rows * TEXTS)
    trie = PhraseTrie.build(phrases)
    automaton = ahocorasick_rs.AhoCorasick(phrases)
    root = python_trie(phrases)
    true = set(python_matches(root, exact))
    canonical, confidence = np.arange(num_phrases), np.zeros(TEXTS, bool)

    def match(words: pa.RecordBatch) -> int:
        return match_batch(words, trie, canonical, overlap, confidence).num_rows  # type: ignore[arg-type]

    def find(words: pa.RecordBatch) -> int:
        offsets = list_offsets(words.column("words"))
        return len(find_phrases(words.column("words").flatten(), offsets, trie, overlap)[0])  # type: ignore[arg-type]

    ways: dict[str, Callable[..., int]] = {
        "ours_match": match,
        "ours_find": find,
        "ours_text": lambda records: match(tokenize_batch(records, TextConfig())),
        "ahocorasick": lambda texts: sum(1 for _ in automaton_matches(automaton, texts, phrases)),
    }
    seconds = dict.fromkeys(ways, 0.0)
    for number, texts in enumerate([exact, *batches]):
        words = words_batch(texts)
        joined = [" ".join(text) for text in texts]
        inputs = {"ours_text": records_batch(texts), "ahocorasick": joined}
        for name, way in ways.items():
            begin = time.process_time()
            way(inputs.get(name, words))
            seconds[name] += (time.process_time() - begin) * (number > 0)  # the first compiles
    begin = time.process_time()
    for _ in python_matches(root, exact):
        pass
    rates = {name: rows // BATCH * BATCH / taken for name, taken in seconds.items()}
    rates["python_trie"] = exact_rows / (time.process_time() - begin)
    return {
        "phrases": num_phrases,
        "overlap": overlap,
        "rows_per_sec": {name: round(rate) for name, rate in rates.items()},
        "ours": agreement(our_matches(words_batch(exact), trie), true),
        "ahocorasick": agreement(
            automaton_matches(automaton, [" ".join(text) for text in exact], phrases), true
        ),
        "memory_mb": memory_of(num_phrases),
    }


def memory_of(num_phrases: int) -> float:
    """In a process of its own, where nothing else has raised the peak."""
    command = [sys.executable, __file__, "--memory", str(num_phrases)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_memory(num_phrases: int) -> None:
    rng = np.random.default_rng(0)
    phrases = make_phrases(rng, num_phrases)
    words = words_batch(make_texts(rng, phrases, BATCH * TEXTS))
    confidence = np.zeros(TEXTS, bool)
    match_batch(words, PhraseTrie.build(phrases[:9]), np.arange(9), "all", confidence)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before = resident_mb("VmRSS")
    match_batch(words, PhraseTrie.build(phrases), np.arange(num_phrases), "all", confidence)
    print(round(resident_mb("VmHWM") - before, 1))


def resident_mb(field: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--phrases", type=int, nargs="+", default=[50_000, 500_000])
    parser.add_argument("--rows", type=int, default=20_480)
    parser.add_argument("--exact-rows", type=int, default=2000)
    parser.add_argument("--overlap", choices=["all", "longest"], default="all")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print_memory(arguments.memory)
        return
    runs = [
        measure(count, arguments.rows, arguments.exact_rows, arguments.overlap)
        for count in arguments.phrases
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"benchmark": "matching", "runs": runs, "peak_mb_all_ways": peak}))


if __name__ == "__main__":
    main()
