"""Ids of words, looked up a batch at a time by their bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_prep.compiled import FREE, compiled, slot_of

LONG = np.int64(1 << 62)  # keys of words of more than seven bytes are at least this


@dataclass(frozen=True)
class Spellings:
    """A hash table from S spellings, UTF-8 bytes, to word ids."""

    # [C, 2] int64, C a power of two: key of the bytes or FREE, spelling << 32 | id
    slots: np.ndarray
    offsets: np.ndarray  # [S + 1] int32
    data: np.ndarray  # [B] uint8

    @staticmethod
    def build(ids: Mapping[str, int]) -> Spellings:
        offsets, data = string_buffers(pa.array(list(ids), pa.string()))
        slots = np.full((1 << max(2 * len(ids), 2).bit_length(), 2), FREE, np.int64)
        _insert_spellings(slots, offsets, data, np.fromiter(ids.values(), np.int64, len(ids)))
        return Spellings(slots, offsets, data)

    def look_up(self, words: pa.Array) -> np.ndarray:
        """Ids `[T] int64` of words `[T]`, -1 for the unknown."""
        return _look_up(*string_buffers(words), self.slots, self.offsets, self.data)


def string_buffers(words: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets `[n + 1] int32` and bytes `uint8` of a string array without nulls."""
    assert words.type == pa.string()
    assert not words.null_count
    _, offsets, data = words.buffers()
    if offsets is None:
        return np.zeros(1, np.int32), np.zeros(0, np.uint8)
    window = slice(words.offset, words.offset + len(words) + 1)
    return np.frombuffer(offsets, np.int32)[window], np.frombuffer(data or b"", np.uint8)


@compiled
def _key(data: np.ndarray, begin: int, end: int) -> np.int64:
    """Up to seven bytes themselves and their number, which no other word has; of more a hash (FNV-1a) above LONG."""
    if end - begin <= 7:
        packed = np.uint64(end - begin)
        for i in range(begin, end):
            packed = packed << np.uint64(8) | np.uint64(data[i])
        return np.int64(packed)
    mixed = np.uint64(0xCBF29CE484222325)
    for i in range(begin, end):
        mixed = (mixed ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
    return np.int64(mixed >> np.uint64(2)) | LONG


@compiled
def _insert_spellings(
    slots: np.ndarray, offsets: np.ndarray, data: np.ndarray, ids: np.ndarray
) -> None:
    mask = len(slots) - 1
    for i in range(len(ids)):
        key = _key(data, offsets[i], offsets[i + 1])
        slot = slot_of(key, mask)
        while slots[slot, 0] != FREE:
            slot = (slot + 1) & mask
        slots[slot, 0] = key
        slots[slot, 1] = i << 32 | ids[i]


@compiled
def _look_up(
    offsets: np.ndarray,
    data: np.ndarray,
    slots: np.ndarray,
    known_offsets: np.ndarray,
    known: np.ndarray,
) -> np.ndarray:
    out = np.full(len(offsets) - 1, -1, np.int64)
    mask = len(slots) - 1
    for i in range(len(out)):
        key = _key(data, offsets[i], offsets[i + 1])
        slot = slot_of(key, mask)
        while slots[slot, 0] != FREE:
            if slots[slot, 0] == key:
                j = slots[slot, 1] >> 32
                if key < LONG or np.array_equal(
                    data[offsets[i] : offsets[i + 1]],
                    known[known_offsets[j] : known_offsets[j + 1]],
                ):
                    out[i] = slots[slot, 1] & 0xFFFFFFFF
                    break
            slot = (slot + 1) & mask
    return out
