"""Records a second of one core that prepares texts for matching, step by step, as one JSON line.

    python benchmarks/prep_text.py --input ../shared/data/artworks/artworks.jsonl.gz \\
        --fields title group_title inscription medium artist movements [--records 16384]

CPU seconds, since the machine is shared; the steps take turns by batches of 2048 records.

    redact             e-mail addresses, handles and phone numbers removed
    identify           the language of every source, record by record where a source leaves doubt
    identify_library   py3langid's own classify on the same sources and records
    tokenize           markup and URLs stripped, Unicode normalised, words

agreement: of the sources' texts, the share for which both ways name the same language.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from data_prep.candidates import tokenize_batch
from data_prep.inputs import iterate_rows
from data_prep.language import identify, identify_batch, load_model
from data_prep.privacy import redact_batch
from data_prep.schema import PrepConfig
from data_prep.schema_text import LanguageConfig, PrivacyConfig, TextConfig, TextSourceConfig
from data_prep.sources import read_batches
from data_prep.text import plain_text


def find_sources(path: Path, fields: list[str]) -> tuple[TextSourceConfig, ...]:
    """A source for each field, by what the first records hold in it."""
    rows = [row for _, row in islice(iterate_rows(path, 1000), 1000)]
    kinds = {name: {type(row.get(name)) for row in rows} - {type(None)} for name in fields}
    return tuple(
        TextSourceConfig(name, kind="list" if list in kinds[name] else "text") for name in fields
    )


def texts_of(batch: pa.RecordBatch) -> list[str]:
    return batch.column("texts").flatten().field("text").to_pylist()


def with_library(batch: pa.RecordBatch, library: LanguageIdentifier) -> list[str]:
    """What the library says of each text, and of each record's texts together."""
    for record in batch.column("texts").to_pylist():
        library.classify(plain_text(" ".join(text["text"] for text in record)))
    return [library.classify(plain_text(text))[0] for text in texts_of(batch)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--fields", nargs="+", required=True)
    parser.add_argument("--id-field", default="id")
    parser.add_argument("--records", type=int, default=16_384)
    arguments = parser.parse_args()
    config = PrepConfig(
        find_sources(arguments.input, arguments.fields), arguments.id_field, image_field=None
    )
    library = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    model = load_model(())
    steps = {
        "redact": lambda batch: redact_batch(batch, PrivacyConfig()),
        "identify": lambda batch: identify_batch(batch, LanguageConfig()),
        "identify_library": lambda batch: with_library(batch, library),
        "tokenize": lambda batch: tokenize_batch(batch, TextConfig()),
    }
    seconds = dict.fromkeys(steps, 0.0)
    records = words = same = texts = 0
    batches = read_batches(config, arguments.input)
    for step in steps.values():
        step(next(batches))  # compiles
    for batch in islice(batches, arguments.records // config.batch_rows):
        for name, step in steps.items():
            begin = time.process_time()
            step(batch)
            seconds[name] += time.process_time() - begin
        found = texts_of(batch)
        ours = identify(found, np.arange(len(found)), model)[0]
        same += sum(map(str.__eq__, ours, with_library(batch, library)))
        texts += len(found)
        records += batch.num_rows
        words += len(tokenize_batch(batch, TextConfig()).column("words").flatten())
    rates = {name: round(records / taken) for name, taken in seconds.items()}
    described = {"records": records, "words_per_record": words / records, "texts": texts}
    print(
        json.dumps(
            {"benchmark": "prep_text", **described, "records_per_sec": rates}
            | {"agreement": same / texts}
        )
    )


if __name__ == "__main__":
    main()
