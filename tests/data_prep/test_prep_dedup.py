import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.dedup import CANDIDATES_SCHEMA, Pairs, decide, join_groups
from data_prep.fingerprint import CODE_BYTES, similar
from data_prep.lsh import SIGNATURES_SCHEMA, file_exact, file_near, find_pairs, similar_bytes
from data_prep.schema_images import DedupConfig, EvaluationSetConfig
from vitscale.errors import UserError

CONFIG = DedupConfig()
NO_PAIRS = np.zeros((0, 2), np.int64)


def signatures(bits: np.ndarray, places: list[int] | None = None) -> pa.RecordBatch:
    """`SIGNATURES_SCHEMA` of hashes `[n, 256] bool`, of uniform margins."""
    codes = np.zeros((len(bits), CODE_BYTES), np.uint8)
    codes[:, :32] = np.packbits(bits, axis=1)
    margins = np.arange(256, dtype=np.uint8).tobytes()
    rows = [
        {"set": place, "id": f"i{i}", "views": 1, "codes": code.tobytes(), "margins": margins}
        | {"sha256": code[:32].tobytes()}
        for i, (code, place) in enumerate(zip(codes, places or [-1] * len(codes), strict=True))
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SIGNATURES_SCHEMA)


def near_pairs(batch: pa.RecordBatch, config: DedupConfig = CONFIG) -> set[tuple[str, int, str]]:
    batches = [file_near(batch, band, 24, config) for band in range(config.bands)]
    found, _ = find_pairs(
        pa.Table.from_batches(batches),
        lambda a, b: similar(a, b, config.max_distance),
        config.window,
    )
    return {tuple(row.values()) for row in found.to_pylist()}


def flipped(bits: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    copy = bits.copy()
    for row in copy:
        row[generator.permutation(256)[:count]] ^= True
    return copy


def test_all_pairs_found_are_true_and_close_ones_are_found() -> None:
    generator = np.random.default_rng(0)
    originals = generator.random((400, 256)) < 0.5
    copies = flipped(originals, 8, generator)
    found = near_pairs(signatures(np.concatenate([originals, copies])))
    pairs = {frozenset((a, b)) for a, _, b in found}
    true = {frozenset((f"i{i}", f"i{i + 400}")) for i in range(400)}
    assert pairs <= true
    assert len(pairs) >= 0.98 * len(true)


def test_pairs_of_evaluation_sets_name_the_corpus_first() -> None:
    same = np.repeat(np.random.default_rng(1).random((1, 256)) < 0.5, 4, axis=0)
    found = near_pairs(signatures(same, [1, -1, 0, 0]))
    assert found == {("i1", 0, "i2"), ("i1", 0, "i3"), ("i1", 1, "i0")}
    exact, _ = find_pairs(
        pa.Table.from_batches([file_exact(signatures(same, [1, -1, 0, 0]))]), similar_bytes, 8
    )
    assert {tuple(row.values()) for row in exact.to_pylist()} == found


@pytest.mark.parametrize("crowd", [1000, 4000])
def test_a_crowded_bucket_costs_in_proportion(crowd: int) -> None:
    """Everything under one key: comparisons are rows * window, not rows squared."""
    bits = np.random.default_rng(2).random((crowd, 256)) < 0.5
    batch = signatures(bits)
    filed = file_near(batch, 0, 24, DedupConfig(weak_bits=0))
    one_key = filed.set_column(0, filed.schema.field(0), pa.array([7] * crowd, pa.uint64()))
    compared = 0

    def count(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(left)
        return np.zeros(len(left), bool)

    _, crowded = find_pairs(pa.Table.from_batches([one_key]), count, 16)
    assert crowded == crowd
    assert compared <= crowd * 15


def test_comparisons_grow_with_images_not_pairs() -> None:
    counts = {}
    for size in (2000, 8000):
        bits = np.random.default_rng(3).random((size, 256)) < 0.5
        compared = 0

        def count(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            nonlocal compared
            compared += len(left)
            return np.zeros(len(left), bool)

        filed = [file_near(signatures(bits), band, 24, CONFIG) for band in range(CONFIG.bands)]
        find_pairs(pa.Table.from_batches(filed), count, CONFIG.window)
        counts[size] = compared / (size * size / 2)
    # 64 pairs of keys a band, a chance of 2 ** -24 each: a vanishing share of all pairs.
    assert max(counts.values()) < 1e-3


def candidates(texts: list[int], groups: list[str] | None = None) -> pa.Table:
    ids = [f"i{i}" for i in range(len(texts))]
    columns = [ids, groups or ids, texts, [100] * len(texts)]
    return pa.Table.from_arrays(
        [pa.array(c, f.type) for c, f in zip(columns, CANDIDATES_SCHEMA, strict=True)],
        schema=CANDIDATES_SCHEMA,
    )


def decided(texts: list[int], exact: object, near: object, **more: object) -> list[object]:
    leaks = more.get("leaks", [None] * len(texts))
    pairs = Pairs(
        np.array(exact).reshape(-1, 2).astype(int), np.array(near).reshape(-1, 2).astype(int)
    )
    table = decide(candidates(texts), pairs, leaks, bool(more.get("remove", True)))  # type: ignore[arg-type]
    return [(row["copy_of"], row["reason"]) for row in table.to_pylist()]


EXACT, NEAR = "exact copy of another image", "near copy of another image"


def test_the_copy_with_the_most_text_stays_then_the_first_id() -> None:
    assert decided([5, 9, 9], [(0, 1), (1, 2)], []) == [("i1", EXACT), (None, None), ("i1", EXACT)]


def test_a_chain_of_near_copies_keeps_both_ends() -> None:
    found = decided([9, 1, 5], [], [(0, 1), (1, 2)])
    assert found == [(None, None), ("i0", NEAR), (None, None)]


def test_copies_of_a_removed_copy_belong_to_the_one_that_stays() -> None:
    found = decided([9, 5, 4], [(1, 2)], [(0, 2)])
    assert found == [(None, None), ("i0", NEAR), ("i0", NEAR)]


def test_what_is_evaluated_on_goes_with_all_its_exact_copies_and_keeps_nobody_out() -> None:
    found = decided([9, 5, 4], [(0, 1)], [(1, 2)], leaks=[None, "eval", None])
    assert found == [
        (None, "in evaluation set eval"),
        (None, "in evaluation set eval"),
        (None, None),
    ]
    kept = decided([1, 2], [(0, 1)], [], leaks=["eval", None], remove=False)
    assert [reason for _, reason in kept] == ["in evaluation set eval"] * 2


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20),
    st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=4),
)
def test_nothing_goes_without_one_that_stays_and_no_two_copies_stay(
    texts: list[int], near: list[tuple[int, int]], exact: list[tuple[int, int]]
) -> None:
    count = len(texts)
    near = [(a, b) for a, b in near if a < count and b < count and a != b]
    exact = [(a, b) for a, b in exact if a < count and b < count and a != b]
    found = decided(texts, exact, near)
    gone = {i for i, (_, reason) in enumerate(found) if reason is not None}
    for a, b in near + exact:
        assert a in gone or b in gone
    for i in gone:
        assert int(found[i][0][1:]) not in gone  # type: ignore[index]


def test_groups_that_share_a_copy_share_their_split() -> None:
    pairs = [np.array([(0, 3), (1, 4)])]
    assert join_groups(["b", "c", "d", "a", "b"], pairs) == ["a", "a", "d", "a", "a"]
    assert join_groups(["b", "c"], [NO_PAIRS]) == ["b", "c"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_distance": 200}, "dedup.max_distance=200"),
        ({"crops": (1.0,)}, "dedup.crops: 1.0"),
        ({"min_similarity": 0.0}, "dedup.min_similarity"),
        ({"band_bits": 60}, "dedup.band_bits=60"),
        ({"window": 1}, "dedup.window=1"),
        ({"evaluation_sets": (EvaluationSetConfig("a", "x"),) * 2}, "its own name, not 'a' twice"),
    ],
)
def test_impossible_settings_of_dedup_are_told(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DedupConfig(**values)
