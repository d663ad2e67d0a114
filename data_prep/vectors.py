"""Phrase vectors from outside the corpus: a table of vectors, or a sentence-transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.schema import EmbeddingConfig
from vitscale.errors import UserError


def external_vectors(
    phrases: Sequence[str], config: EmbeddingConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors `[P, D] float32` as they are, and which phrases have one, `[P] bool`."""
    if not config.path or not Path(config.path).exists():
        raise UserError(
            f"embedding.path {config.path!r} does not exist; embedding.kind={config.kind!r} needs "
            + ("a Parquet file." if config.kind == "table" else "a saved model's folder.")
        )
    if config.kind == "table":
        return read_vectors(Path(config.path), phrases)
    return encode_phrases(Path(config.path), phrases), np.ones(len(phrases), bool)


def read_vectors(path: Path, phrases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Looks the phrases up in a Parquet file of `phrase: string, vector: list of floats`, batch by batch.

    Phrases are compared as the pipeline writes them: normalised, words joined by one space. A phrase that the file has
    twice takes the first vector.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"embedding.path {path} is not a Parquet file: {error}.") from error
    if not {"phrase", "vector"} <= set(file.schema_arrow.names):
        raise UserError(
            f"embedding.path {path} has the columns {file.schema_arrow.names}; it needs phrase and vector."
        )
    wanted = pa.array(phrases, pa.string())
    vectors = np.zeros((len(phrases), 0), np.float32)
    found = np.zeros(len(phrases), bool)
    for batch in file.iter_batches(columns=["phrase", "vector"]):
        place = pc.index_in(batch.column("phrase").cast(pa.string()), wanted)
        kept = pc.is_valid(place)
        if not pc.any(kept).as_py():
            continue
        rows = _as_matrix(batch.column("vector").filter(kept), path)
        index = place.filter(kept).to_numpy()
        if vectors.shape[1] == 0:
            vectors = np.zeros((len(phrases), rows.shape[1]), np.float32)
        if rows.shape[1] != vectors.shape[1]:
            raise UserError(
                f"embedding.path {path} has vectors of {vectors.shape[1]} and of {rows.shape[1]} "
                "numbers; all need the same."
            )
        first, position = np.unique(index, return_index=True)
        position = position[~found[first]]
        vectors[index[position]] = rows[position]
        found[index[position]] = True
    if not found.any():
        raise UserError(
            f"embedding.path {path} has none of the {len(phrases)} phrases, such as {phrases[0]!r}."
        )
    return vectors, found


def encode_phrases(folder: Path, phrases: Sequence[str]) -> np.ndarray:
    """Embeds the phrases with a saved sentence-transformers model (extra `sentence`), `[P, D] float32`."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(
            f"embedding.kind='sentence_transformers' needs sentence_transformers ({error}): "
            "pip install 'vitscale[sentence]'."
        ) from error
    try:
        # A folder alone: nothing is fetched, and no code that came with the model is run.
        model = SentenceTransformer(str(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"embedding.path {folder} is not a sentence-transformers folder: {error}."
        ) from error
    found = model.encode(list(phrases), show_progress_bar=False, convert_to_numpy=True)
    return np.asarray(found, np.float32)


def _as_matrix(column: pa.Array, path: Path) -> np.ndarray:
    """A list column without nulls, all of one length, as `[n, D] float32`."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not lists and not pa.types.is_fixed_size_list(kind):
        raise UserError(f"embedding.path {path}: vector is {kind}, not a list of numbers.")
    lengths = pc.unique(pc.list_value_length(column))
    values = pc.list_flatten(column)
    if len(lengths) != 1 or not lengths[0].as_py() or values.null_count:
        raise UserError(
            f"embedding.path {path} has vectors of different lengths, or without numbers."
        )
    matrix = values.cast(pa.float32()).to_numpy(zero_copy_only=False)
    if not np.isfinite(matrix).all():
        raise UserError(f"embedding.path {path} has a vector with NaN or infinity.")
    return matrix.reshape(len(column), -1)
