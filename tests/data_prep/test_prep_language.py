import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from data_prep.language import identify, identify_batch, load_model
from data_prep.schema_text import LanguageConfig
from data_prep.sources import RECORD_SCHEMA
from vitscale.errors import UserError

SENTENCES = {
    "en": "Mid century modern sideboard with walnut legs and brass handles",
    "de": "Rotes Samtsofa mit Beinen aus Nussbaum für das Wohnzimmer",
    "fr": "Canapé en velours rouge avec pieds en noyer",
    "it": "Divano in velluto rosso con gambe in noce",
    "ja": "赤いベルベットのソファ",
    "ko": "빨간 벨벳 소파",
    "tr": "Ceviz ayaklı kırmızı kadife kanepe",
}
LIBRARY = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.text(max_size=40) | st.sampled_from(list(SENTENCES.values())), min_size=1, max_size=6
    )
)
def test_a_text_alone_is_judged_as_the_library_does(texts: list[str]) -> None:
    texts = [" ".join(t for t in text if t.isalpha() or t == " ") for text in texts]
    languages, confidence = identify(texts, np.arange(len(texts)), load_model(()))
    for text, language, found in zip(texts, languages, confidence, strict=True):
        expected, likely = LIBRARY.classify(text)
        assert found == pytest.approx(likely, abs=2e-3)
        assert language == expected or abs(dict(LIBRARY.rank(text))[language] - likely) < 2e-3


def batch(*texts: tuple[int, str, str | None]) -> pa.RecordBatch:
    items = [{"source": s, "weight": 1.0, "text": t, "language": tag} for s, t, tag in texts]
    rows = [{"id": "a", "texts": []}, {"id": "b", "texts": items}]
    return pa.RecordBatch.from_pylist(rows, schema=RECORD_SCHEMA)


def languages_of(found: pa.RecordBatch) -> list[str]:
    assert found.schema.equals(RECORD_SCHEMA)
    return found.column("texts").flatten().field("language").to_pylist()


@pytest.mark.parametrize("tag", SENTENCES)
def test_a_short_text_has_the_language_of_its_record(tag: str) -> None:
    texts = batch((0, SENTENCES[tag], None), (1, "123", None), (1, "#", None))
    assert languages_of(identify_batch(texts, LanguageConfig())) == [tag] * 3


def test_sources_differ_and_what_is_given_stays() -> None:
    texts = batch(
        (0, SENTENCES["de"], None), (1, SENTENCES["fr"], None), (2, SENTENCES["de"], "nds")
    )
    assert languages_of(identify_batch(texts, LanguageConfig())) == ["de", "fr", "nds"]
    unknown = batch((0, "12 34", None))
    assert languages_of(identify_batch(unknown, LanguageConfig(default="en"))) == ["en"]
    off = LanguageConfig(identify=False, default="xx")
    assert languages_of(identify_batch(texts, off)) == ["xx", "xx", "nds"]


def test_languages_can_be_narrowed_and_must_be_known() -> None:
    few = LanguageConfig(languages=("en", "fr"), min_confidence=0.0)
    assert set(languages_of(identify_batch(batch((0, SENTENCES["de"], None)), few))) <= {"en", "fr"}
    with pytest.raises(UserError, match="'klingon' is none of"):
        identify_batch(batch((0, "x", None)), LanguageConfig(languages=("klingon",)))
