import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.association import (
    MIN_CHANCE,
    MIN_COUNT,
    STRENGTH,
    LearntAssociations,
    count_associations,
    load_associations,
    read_associations,
    write_associations,
)
from data_prep.association_votes import BASIC, CANDIDATES, CONTEXTS, MIN_BEST
from data_prep.features import Expansion
from data_prep.scorer import ASSOCIATIONS_FILE
from data_prep.scoring import PhraseTable
from vitscale.errors import UserError

WORDS = ("sea", "boat", "abbey", "tower", "oil", "turner")
SOURCES = ("title", "artist")
Record = tuple[dict[int, int], set[int]]  # phrase -> bits of the sources that hold it; labels
RECORDS = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 5), st.integers(1, 3), max_size=4),
        st.sets(st.integers(0, 3), max_size=3),
    ),
    min_size=1,
    max_size=25,
)


def table_of(is_label: list[bool]) -> PhraseTable:
    size = len(WORDS)
    return PhraseTable(
        WORDS,
        np.arange(size, dtype=np.int32),
        np.zeros(size, np.int32),
        np.ones(size),
        is_label=np.array(is_label),
    )


TABLE = table_of([True] * 4 + [False] * 2)


def matrix(sets: list[set[int]]) -> scipy.sparse.csr_matrix:
    dense = np.zeros((len(sets), len(WORDS)), np.int64)
    for row, found in enumerate(sets):
        dense[row, list(found)] = 1
    return scipy.sparse.csr_matrix(dense)


def learn(records: list[Record]) -> LearntAssociations:
    contexts, labels = matrix([set(t) for t, _ in records]), matrix([tags for _, tags in records])
    counted = count_associations(contexts, labels, WORDS, SOURCES)
    return LearntAssociations.build(counted, TABLE, SOURCES)


def expand(known: LearntAssociations, records: list[dict[int, int]]) -> Expansion:
    pairs = [(i, p, texts[p]) for i, texts in enumerate(records) for p in sorted(texts)]
    record, phrase, bits = np.array(pairs, np.int64).reshape(-1, 3).T
    return known.expand(record, phrase, bits, TABLE)


def plain(records: list[Record], texts: dict[int, int]) -> dict[int, dict[str, float]]:
    """The features of one record's candidates, from their definitions."""
    base = Counter(label for _, tags in records for label in tags)
    seen = Counter(p for t, _ in records for p in t)
    both = Counter((c, label) for t, tags in records for c in t for label in tags)
    share = {label: n / len(records) for label, n in base.items()}
    chance: dict[tuple[int, int], float] = {}
    for (c, label), n in both.items():
        value = (n + STRENGTH * share[label]) / (seen[c] + STRENGTH)
        if n >= MIN_COUNT and value >= MIN_CHANCE and value > share[label]:
            chance[c, label] = value
    known = [c for c in sorted(texts) if any(c == pair[0] for pair in chance)]
    found = {}
    for label in base:
        votes = [(chance[c, label], c) for c in known if (c, label) in chance]
        ranked = sorted(votes, key=lambda vote: -vote[0])
        if label not in texts and (not ranked or ranked[0][0] < MIN_BEST):
            continue
        values = [v for v, _ in ranked] + [0.0, 0.0]
        found[label] = {
            "best": values[0],
            "second": values[1],
            "mean": sum(values) / max(len(known), 1),
            "noisy_or": 1 - math.prod(1 - min(v, 0.999999) for v in values),
            "log_odds": sum(math.log(v / share[label]) for v, _ in votes),
            "lift": math.log1p(values[0] / share[label]),
            "support": math.log1p(seen[ranked[0][1]]) if ranked else 0.0,
            "contexts": float(len(votes)),
            "own": chance.get((label, label), 0.0) if label in texts else 0.0,
            "tagged": math.log1p(base[label]),
            **{
                f"source/{name}": max((v for v, c in votes if texts[c] >> s & 1), default=0.0)
                for s, name in enumerate(SOURCES)
            },
        }
    return found


@settings(max_examples=60, deadline=None)
@given(RECORDS, RECORDS)
def test_features_are_those_of_their_definitions(
    records: list[Record], others: list[Record]
) -> None:
    known = learn(records)
    assert known.names == tuple(f"assoc/{n}" for n in (*BASIC, "source/title", "source/artist"))
    found = expand(known, [texts for texts, _ in others])
    values = {
        (r, p): dict(zip(known.names, v.tolist(), strict=True))
        for r, p, v in zip(found.record.tolist(), found.phrase.tolist(), found.values, strict=True)
    }
    assert len(values) == len(found.record)
    wanted = {
        (i, label): {f"assoc/{n}": v for n, v in told.items()}
        for i, (texts, _) in enumerate(others)
        for label, told in plain(records, texts).items()
    }
    assert set(values) == set(wanted)
    for pair, told in wanted.items():
        assert values[pair] == pytest.approx(told, abs=1e-5)


@settings(max_examples=20, deadline=None)
@given(RECORDS, RECORDS)
def test_a_record_is_told_the_same_alone(records: list[Record], others: list[Record]) -> None:
    known, texts = learn(records), [texts for texts, _ in others]
    together = expand(known, texts)
    for index, alone in enumerate(texts):
        one, rows = expand(known, [alone]), together.record == index
        np.testing.assert_array_equal(one.phrase, together.phrase[rows])
        np.testing.assert_array_equal(one.values, together.values[rows])
        np.testing.assert_array_equal(one.evidence, together.evidence[rows])


@settings(max_examples=20, deadline=None)
@given(RECORDS)
def test_the_file_holds_the_whole_table(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record]
) -> None:
    folder = tmp_path_factory.mktemp("scorer")
    known = learn(records)
    write_associations(folder, known.table)
    again = load_associations(folder, TABLE, SOURCES)
    assert again is not None
    texts = [texts for texts, _ in records]
    for a, b in zip(vars(expand(known, texts)).values(), vars(expand(again, texts)).values()):  # noqa: B905
        np.testing.assert_array_equal(a, b)


def test_evidence_and_labels_that_no_text_holds() -> None:
    # "turner" goes with boats, "abbey" with towers; "oil" says nothing.
    records: list[Record] = [({5: 2, 4: 1}, {1})] * 5 + [({2: 1, 4: 1}, {3})] * 5
    known = learn(records)
    found = expand(known, [{4: 1, 5: 2}])
    assert [WORDS[p] for p in found.phrase] == ["boat"]
    assert [WORDS[p] for p in found.evidence[0] if p >= 0] == ["turner"]
    assert found.evidence.shape == (1, CONTEXTS)
    values = dict(zip(known.names, found.values[0].tolist(), strict=True))
    assert values["assoc/best"] == pytest.approx((5 + STRENGTH / 2) / (5 + STRENGTH))
    assert (values["assoc/source/title"], values["assoc/own"]) == (0.0, 0.0)


def test_a_vocabulary_without_the_phrases_gets_nothing_and_evidence_is_no_label(
    tmp_path: Path,
) -> None:
    records: list[Record] = [({5: 2}, {1, 5})] * 5 + [({2: 1}, {3})] * 5
    write_associations(tmp_path, learn(records).table)
    known = load_associations(
        tmp_path, TABLE, ("artist",)
    )  # of the two sources, with another number
    assert known is not None
    found = expand(known, [{5: 1}])
    assert [WORDS[p] for p in found.phrase] == ["boat"]  # "turner" is evidence alone
    values = dict(zip(known.names, found.values[0].tolist(), strict=True))
    assert values["assoc/source/artist"] > 0
    assert values["assoc/source/title"] == 0
    other = PhraseTable(
        ("lamp", "desk"), np.arange(2, dtype=np.int32), np.zeros(2, np.int32), np.ones(2)
    )
    strange = load_associations(tmp_path, other, ("artist",))
    assert strange is not None
    pairs = np.zeros(2, np.int64), np.arange(2), np.ones(2, np.int64)
    assert len(strange.expand(*pairs, other).record) == 0
    assert load_associations(tmp_path / "none", other, ()) is None


def test_candidates_of_a_record_are_bounded() -> None:
    size = CANDIDATES + 30
    phrases = tuple(f"w{i:03d}" for i in range(size + 1))
    held = scipy.sparse.csr_matrix(
        (np.ones(4, np.int64), (np.arange(4), np.full(4, size))), shape=(4, size + 1)
    )
    tags = np.zeros((8, size + 1), np.int64)
    tags[:4, :size] = 1
    contexts = scipy.sparse.vstack([held, scipy.sparse.csr_matrix((4, size + 1), dtype=np.int64)])
    table = PhraseTable(
        phrases,
        np.arange(size + 1, dtype=np.int32),
        np.zeros(size + 1, np.int32),
        np.ones(size + 1),
    )
    counted = count_associations(contexts.tocsr(), scipy.sparse.csr_matrix(tags), phrases, ())
    known = LearntAssociations.build(counted, table, ())
    one = np.array([0]), np.array([size]), np.array([1])
    assert len(known.expand(*one, table).record) == CANDIDATES


@pytest.mark.parametrize("what", ["text", "other"])
def test_another_file_is_told(tmp_path: Path, what: str) -> None:
    path = tmp_path / ASSOCIATIONS_FILE
    if what == "text":
        path.write_text("context,label\n")
    else:
        pq.write_table(pa.table({"context": ["a"], "label": ["b"]}), path)
    with pytest.raises(UserError, match=r"associations\.parquet is no table of associations"):
        read_associations(path)
