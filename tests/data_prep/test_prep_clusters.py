import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.clusters import build_clusters
from data_prep.review import apply_review, read_review, write_template
from data_prep.schema import ClusterConfig, EmbeddingConfig
from data_prep.stable_ids import NO_CLUSTERS, PreviousClusters, stable_ids
from data_prep.vectors import external_vectors
from vitscale.errors import UserError

PHRASES = ("sofa", "couch", "armchair", "recliner", "mug", "cup", "sale", "offer")
# Seats of two kinds in one cluster, cups apart from mugs, and what nobody wants as a label.
ASSIGNMENT = np.array([0, 0, 0, 0, 1, 2, 3, 3], np.int32)


def corner(*turn: float) -> np.ndarray:
    angles = np.array(turn)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = corner(0.0, 0.1, 0.5, 0.6, 1.5, 1.7, 3.0, 3.1)


def reviewed(path: Path, **changes: dict[str, str]) -> Path:
    """A template of the clusters above, with columns changed by cluster id ("c0")."""
    rows = [
        (c, PHRASES[int(np.argmax(c == ASSIGNMENT))], 9, [PHRASES[i] for i in members])
        for c, members in enumerate(([0, 1, 2, 3], [4], [5], [6, 7]))
    ]
    write_template(path, rows)
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    for name, change in changes.items():
        table[int(name[1:])].update(change)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    return path


def test_an_untouched_template_changes_nothing(tmp_path: Path) -> None:
    rows = read_review(reviewed(tmp_path / "review.csv"))
    assert rows == []
    found = apply_review(rows, PHRASES, VECTORS, ASSIGNMENT)
    np.testing.assert_array_equal(found.assignment, ASSIGNMENT)


def test_a_review_splits_merges_blocks_and_renames(tmp_path: Path) -> None:
    path = reviewed(
        tmp_path / "review.csv",
        c0={"action": "split", "argument": "sofa; armchair"},
        c1={"action": "Merge", "argument": "2", "new_name": "cups"},
        c3={"action": "block"},
    )
    found = apply_review(read_review(path), PHRASES, VECTORS, ASSIGNMENT)
    groups = [
        {p for p, a in zip(PHRASES, found.assignment, strict=True) if a == c}
        for c in range(int(found.assignment.max()) + 1)
    ]
    # "couch" and "recliner" are in no group and went to the nearest.
    assert sorted(map(sorted, groups)) == [
        ["armchair", "recliner"],
        ["couch", "sofa"],
        ["cup", "mug"],
        ["offer", "sale"],
    ]
    assert [groups[c] for c in found.blocked] == [{"sale", "offer"}]
    assert {name: groups[c] for c, name in found.names.items()} == {"cups": {"cup", "mug"}}
    assert found.unmatched == 0


def test_a_review_finds_clusters_by_their_phrases(tmp_path: Path) -> None:
    path = reviewed(tmp_path / "review.csv", c0={"action": "block"}, c2={"new_name": "beaker"})
    rows = read_review(path)
    # Other numbers, and a phrase that has left its cluster.
    found = apply_review(rows, PHRASES, VECTORS, np.array([3, 3, 3, 0, 1, 1, 2, 2], np.int32))
    assert found.blocked == {3}
    assert found.names == {1: "beaker"}
    few = apply_review(rows, ("mug", "tea"), VECTORS[:2], np.array([0, 1], np.int32))
    assert few.unmatched == 2
    assert not few.blocked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": "merge", "argument": "9"}, "line 3: merge into '9'"),
        ({"action": "merge", "argument": "1"}, "line 3: merge into '1'"),
        ({"action": "split", "argument": "mug"}, "line 3: split needs two or more groups"),
        ({"action": "delete"}, "line 3: action 'delete' is not"),
    ],
)
def test_a_review_that_makes_no_sense_is_told(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_review(reviewed(tmp_path / "review.csv", c1=change))


def test_a_file_that_is_no_review_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_review(tmp_path / "missing.csv")
    (tmp_path / "other.csv").write_text("cluster_id,name\n1,x\n")
    with pytest.raises(UserError, match="has no column 'action'"):
        read_review(tmp_path / "other.csv")


def ids_after(assignment: list[int], previous: PreviousClusters, **changes: Any) -> list[int]:
    weights = np.ones(len(assignment), np.float32)
    phrases = changes.get("phrases", PHRASES)
    ids = stable_ids(phrases, weights, np.array(assignment), previous, 0.5)
    return ids[np.array(assignment)].tolist()


PREVIOUS = PreviousClusters(
    {"sofa": 4, "couch": 4, "armchair": 2, "mug": 0, "cup": 0},
    ("mug", "gone", "chair", "x", "sofa"),
)


def test_ids_stay_where_clusters_match_and_are_never_used_twice() -> None:
    # "recliner" is new and joins the armchair; the sale is new; ids 1 and 3 are retired.
    found = ids_after([0, 0, 1, 1, 2, 2, 3, 3], PREVIOUS)
    assert found == [4, 4, 2, 2, 0, 0, 5, 5]
    # Half of the mugs' cluster leaves: one of the two keeps its id.
    assert ids_after([0, 0, 1, 1, 2, 3, 4, 4], PREVIOUS) == [4, 4, 2, 2, 0, 5, 6, 6]
    # All in one: the largest share is the sofas', but it is less than half of the whole.
    assert ids_after([0] * 8, PREVIOUS) == [5] * 8
    assert ids_after([1, 1, 0, 0, 2, 2, 3, 3], NO_CLUSTERS) == [1, 1, 0, 0, 2, 2, 3, 3]


def test_retired_ids_keep_their_names(tmp_path: Path) -> None:
    config = ClusterConfig(count=3)
    frequency = np.arange(8, 0, -1)
    first = build_clusters(PHRASES, VECTORS, frequency, config, seed=0)
    assert first.status == ("active",) * 3
    np.testing.assert_allclose(
        (VECTORS * first.centres[first.assignment]).sum(axis=1), 1 - first.distance, atol=1e-6
    )
    folder = tmp_path / "out"
    folder.mkdir()
    columns = {"phrase_id": range(8), "phrase": PHRASES}
    pq.write_table(pa.table(columns), folder / "vocabulary.parquet")
    pq.write_table(pa.Table.from_batches([first.table(np.arange(8))]), folder / "clusters.parquet")
    names = pa.Table.from_batches([first.names_table()])
    pq.write_table(names, folder / "cluster_names.parquet")
    # Without the seats, their ids retire.
    again = ClusterConfig(count=2, previous=str(folder))
    later = build_clusters(PHRASES[4:], VECTORS[4:], frequency[4:], again, seed=0)
    assert set(later.assignment) <= set(first.assignment[4:].tolist()) | {3}
    assert "retired" in later.status
    gone = later.status.index("retired")
    assert later.names[gone] == first.names[gone]
    assert later.sizes[gone] == 0
    with pytest.raises(UserError, match="is not an output folder of vitscale prep"):
        build_clusters(PHRASES, VECTORS, frequency, ClusterConfig(previous=str(tmp_path)), seed=0)


def test_a_review_is_part_of_the_clusters(tmp_path: Path) -> None:
    path = reviewed(tmp_path / "review.csv", c3={"action": "block", "new_name": "no label"})
    config = ClusterConfig(count=4, review=str(path))
    found = build_clusters(PHRASES, VECTORS, np.arange(8, 0, -1), config, seed=0)
    sale = found.assignment[6]
    assert found.status[sale] == "blocked"
    assert found.names[sale] == "no label"
    assert found.blocked.sum() == 1
    path = reviewed(path, c1={"action": "merge", "argument": "2"})
    found = build_clusters(PHRASES, VECTORS, np.arange(8, 0, -1), config, seed=0)
    assert found.assignment[4] == found.assignment[5]
    np.testing.assert_allclose(
        (VECTORS * found.centres[found.assignment]).sum(axis=1), 1 - found.distance, atol=1e-6
    )


def write_vectors(path: Path, phrases: list[str], vectors: list[Any], kind: Any = None) -> Path:
    kind = kind or pa.list_(pa.float32())
    pq.write_table(pa.table({"phrase": phrases, "vector": pa.array(vectors, kind)}), path)
    return path


def from_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    return external_vectors(PHRASES[:3], EmbeddingConfig(kind="table", path=str(path)))


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float16(), 2)]
)
def test_vectors_come_from_a_table(tmp_path: Path, kind: pa.DataType) -> None:
    phrases = ["couch", "ship", "sofa", "sofa"]
    path = write_vectors(tmp_path / "v.parquet", phrases, [[1, 2], [9, 9], [3, 4], [5, 6]], kind)
    vectors, known = from_table(path)
    assert vectors.tolist() == [[3, 4], [1, 2], [0, 0]]
    assert known.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1, 2], [1, 2, 3]], "different lengths"),
        ([[1, 2], None], "different lengths"),
        ([[1, 2], [1, float("nan")]], "NaN"),
        ([[], []], "without numbers"),
    ],
)
def test_a_bad_table_of_vectors_is_told(tmp_path: Path, vectors: list[Any], message: str) -> None:
    path = write_vectors(tmp_path / "v.parquet", ["sofa", "couch"], vectors)
    with pytest.raises(UserError, match=message):
        from_table(path)


def test_a_table_of_something_else_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        from_table(tmp_path / "missing.parquet")
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(UserError, match="is not a Parquet file"):
        from_table(tmp_path / "text.parquet")
    pq.write_table(pa.table({"phrase": ["sofa"]}), tmp_path / "half.parquet")
    with pytest.raises(UserError, match="it needs phrase and vector"):
        from_table(tmp_path / "half.parquet")
    with pytest.raises(UserError, match="has none of the 3 phrases, such as 'sofa'"):
        from_table(write_vectors(tmp_path / "v.parquet", ["ship"], [[1, 2]]))


# In a process of its own, without torchvision: one built for another torch than is installed, which pip allows, fails
# when transformers looks at it.
SENTENCE_MODEL = """
import sys
sys.modules["torchvision"] = None
from pathlib import Path
import numpy as np
import sentence_transformers
from transformers import BertConfig, BertModel, BertTokenizer
from data_prep.schema import EmbeddingConfig
from data_prep.vectors import external_vectors
from vitscale.errors import UserError

folder, phrases = Path(sys.argv[1]), sys.argv[2:]
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *phrases]
(folder / "vocab.txt").write_text("\\n".join(words))
BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
small = BertConfig(vocab_size=len(words), max_position_embeddings=16, **sizes)
BertModel(small).save_pretrained(folder / "bert")
# Of a bare encoder it makes a model with mean pooling.
sentence_transformers.SentenceTransformer(str(folder / "bert")).save(str(folder / "model"))
config = EmbeddingConfig(kind="sentence_transformers", path=str(folder / "model"))
vectors, known = external_vectors(phrases[:3], config)
assert vectors.shape == (3, 16)
assert vectors.dtype == np.float32
assert known.all()
assert len(np.unique(vectors, axis=0)) == 3
try:
    external_vectors(phrases, EmbeddingConfig(kind="sentence_transformers", path=str(folder)))
except UserError as error:
    assert "is not a sentence-transformers folder" in str(error)
else:
    raise AssertionError("a folder without a model was read")
"""


@pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="needs the extra 'sentence'"
)
def test_vectors_come_from_a_sentence_model(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SENTENCE_MODEL, str(tmp_path), *PHRASES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr


def test_a_missing_sentence_library_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    config = EmbeddingConfig(kind="sentence_transformers", path=str(tmp_path))
    with pytest.raises(UserError, match=r"pip install 'vitscale\[sentence\]'"):
        external_vectors(PHRASES, config)
