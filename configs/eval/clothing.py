"""Test accuracy of `configs/clothing.py`, and retrieval: test photos search the train photos of the same label."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    def photos(split: str) -> dict:
        return {"kind": "csv", "path": "images.csv", "split": split, "fields": ["label"]}

    return ConfigDict(
        {
            "root": "../shared/data/clothing",
            "retrieval": [
                {
                    "name": "retrieval",
                    "queries": photos("test"),
                    "index": photos("train"),
                    "relevant_field": "label",
                }
            ],
            "classification": [{"name": "test", "source": photos("test"), "tasks": ["label"]}],
            "knn": [
                {"name": "knn", "train": photos("train"), "test": photos("test"), "field": "label"}
            ],
        }
    )
