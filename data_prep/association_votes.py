"""The votes of a record's phrases for labels, in compiled code: what data_prep.association says of each feature.

A record's sums depend on its own phrases alone, in their order, so they do not depend on the batch.
"""

from __future__ import annotations

import numpy as np

from data_prep.compiled import compiled

CANDIDATES = 50  # of a record that its texts do not hold, at most; the likeliest
MIN_BEST = 0.08  # of such a candidate
CONTEXTS = 3  # that are told as evidence
BASIC = (
    *("best", "second", "mean", "noisy_or", "log_odds", "lift", "support", "contexts"),
    *("own", "tagged"),
)


@compiled
def count_votes(  # type: ignore[no-untyped-def]
    offsets, context, own, bits, start, labels, chance, seen_in, tagged, records, allowed, sources
):
    """Record `[E] int64`, label `[E] int64`, features `[E, A] float32`, best pairs `[E, CONTEXTS] int64` or -1.

    Args:
      offsets: `[R + 1] int64`: where the pairs of each record start among the N pairs of the texts.
      context, own: `[N] int64`: context and label that each pair's phrase is, or -1.
      bits: `[N] int64`: sources that hold it.
      start, labels, chance: `[C + 1]`, `[E']`, `[E']`: labels of each context, and how likely they are there.
      seen_in, tagged: `[C]`, `[L] int64`: records that hold each context, that have each label; of `records float`.
      allowed: `[L] bool`: the vocabulary has the label.
    """
    count, size = len(offsets) - 1, len(tagged)
    capacity = count * CANDIDATES + len(context)
    out_record = np.empty(capacity, np.int64)
    out_label = np.empty(capacity, np.int64)
    out_values = np.zeros((capacity, len(BASIC) + sources), np.float32)
    out_evidence = np.full((capacity, CONTEXTS), -1, np.int64)
    # By label, of the record at hand:
    last = np.full(size, -1, np.int64)  # the record that touched it last
    is_own = np.zeros(size, np.bool_)
    total = np.zeros((size, len(BASIC) + sources))
    top = np.zeros((size, CONTEXTS))  # chances of its best contexts
    top_pair = np.full((size, CONTEXTS), -1, np.int64)
    touched = np.empty(size, np.int64)
    found = 0
    for record in range(count):
        names, known = 0, 0
        for pair in range(offsets[record], offsets[record + 1]):
            label = own[pair]
            if label >= 0:
                names = _touch(label, record, names, touched, last, is_own, total, top, top_pair)
                is_own[label] = True
            row = context[pair]
            if row < 0:
                continue
            known += 1
            for edge in range(start[row], start[row + 1]):
                label = labels[edge]
                if not allowed[label]:
                    continue
                names = _touch(label, record, names, touched, last, is_own, total, top, top_pair)
                value = chance[edge]
                log_odds = np.log(value * records / tagged[label])
                _vote(total[label], value, log_odds, own[pair] == label, bits[pair], sources)
                _insert(top[label], top_pair[label], value, pair)
        chosen = np.sort(touched[:names])
        rank = np.empty(names)
        for index in range(names):
            rank[index] = -(top[chosen[index], 0] + total[chosen[index], 2] / max(known, 1))
        inferred = 0
        for index in np.argsort(rank, kind="mergesort"):
            label = chosen[index]
            if not is_own[label]:
                if inferred >= CANDIDATES or top[label, 0] < MIN_BEST:
                    continue
                inferred += 1
            best = top_pair[label, 0]
            support = seen_in[context[best]] if best >= 0 else 0
            _tell(
                out_values[found], total[label], top[label], known, support, tagged[label], records
            )
            out_record[found], out_label[found] = record, label
            out_evidence[found] = top_pair[label]
            found += 1
    return out_record[:found], out_label[:found], out_values[:found], out_evidence[:found]


@compiled
def _touch(label, record, names, touched, last, is_own, total, top, top_pair):  # type: ignore[no-untyped-def]
    """Starts a label's sums where the record has not touched it yet; how many it has touched."""
    if last[label] == record:
        return names
    last[label], is_own[label] = record, False
    total[label] = 0.0
    top[label] = 0.0
    top_pair[label] = -1
    touched[names] = label
    return names + 1


@compiled
def _vote(total, value, log_odds, is_itself, bits, sources):  # type: ignore[no-untyped-def]
    """Adds one context to a label's sums, in the order of BASIC and then of the sources."""
    total[2] += value
    total[3] += np.log1p(-min(value, 0.999999))
    total[4] += log_odds
    total[7] += 1.0
    if is_itself:
        total[8] = value
    for source in range(sources):
        if bits >> source & 1 and value > total[len(BASIC) + source]:
            total[len(BASIC) + source] = value


@compiled
def _insert(top, pairs, value, pair):  # type: ignore[no-untyped-def]
    """Puts a context among the best ones, behind its equals."""
    place = CONTEXTS
    while place > 0 and value > top[place - 1]:
        place -= 1
    for later in range(CONTEXTS - 1, place, -1):
        top[later], pairs[later] = top[later - 1], pairs[later - 1]
    if place < CONTEXTS:
        top[place], pairs[place] = value, pair


@compiled
def _tell(values, total, top, known, support, tagged, records):  # type: ignore[no-untyped-def]
    """The features of a label from its sums."""
    for feature in range(len(total)):
        values[feature] = total[feature]
    values[0], values[1] = top[0], top[1]
    values[2] = total[2] / max(known, 1)
    values[3] = 1.0 - np.exp(total[3])
    values[5] = np.log1p(top[0] * records / tagged)
    values[6] = np.log1p(support)
    values[9] = np.log1p(tagged)
