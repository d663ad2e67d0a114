"""The loader: a batch is a function of (seed, number), whatever threads, hosts and resumes do."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vitscale.config import DataConfig, SourceConfig
from vitscale.data import decode
from vitscale.data.loader import Batch, TrainLoader, eval_batches
from vitscale.data.records import Example, Labels
from vitscale.data.sources import Source, collect_classes, open_source
from vitscale.errors import UserError

SIZE = 16
TASKS = {"words": "concepts"}
CLASSES = {"concepts": ["a", "b", "c", "d", "e"], "other": ["x", "y"]}


@pytest.fixture
def shards(make_shards: Callable, make_examples: Callable) -> SourceConfig:
    folder = make_shards(make_examples(24), CLASSES)
    return SourceConfig("shards", str(folder), split="train")


def open_all(configs: tuple[SourceConfig, ...]) -> list[Source]:
    classes = collect_classes(configs, ".")
    return [open_source(config, ".", classes) for config in configs]


def loader(*configs: SourceConfig, seed: int = 0, **changes: object) -> TrainLoader:
    options = {k: changes.pop(k) for k in list(changes) if k.startswith(("process", "start"))}
    data = DataConfig(sources=configs, **({"global_batch_size": 8} | changes))  # type: ignore[arg-type]
    return TrainLoader(open_all(configs), data, image_size=SIZE, tasks=TASKS, seed=seed, **options)


def take(iterator: Iterator[Batch], count: int) -> list[Batch]:
    return [next(iterator) for _ in range(count)]


def ids_of(batches: list[Batch]) -> list[str]:
    return [name for batch in batches for name in batch.ids]


def assert_equal(one: Batch, two: Batch, rows: slice = slice(None)) -> None:
    """`two` equals the rows `rows` of `one`, bit for bit."""
    assert one.ids[rows] == two.ids
    np.testing.assert_array_equal(one.source[rows], two.source)
    for name in ("valid", "image", "position"):
        np.testing.assert_array_equal(getattr(one, name)[rows], getattr(two, name))
    for name in one.labels:
        np.testing.assert_array_equal(one.labels[name][rows], two.labels[name])
        np.testing.assert_array_equal(one.weights[name][rows], two.weights[name])
    for name in one.task_mask:
        np.testing.assert_array_equal(one.task_mask[name][rows], two.task_mask[name])


def test_shapes_and_dtypes(shards: SourceConfig) -> None:
    with loader(shards, max_labels=3) as batches:
        batch = next(batches)
    assert batch.image.shape == (8, SIZE, SIZE, 3)
    assert batch.valid.all()
    arrays = batch.arrays()
    assert sorted(arrays) == ["image", "labels", "position", "task_mask", "valid", "weights"]
    dtypes = {name: arrays[name].dtype for name in ("image", "position", "valid")}
    assert dtypes == {"image": np.uint8, "position": np.uint32, "valid": bool}
    assert arrays["labels"]["concepts"].shape == arrays["weights"]["concepts"].shape == (8, 3)
    assert arrays["labels"]["concepts"].dtype == np.int32
    assert arrays["weights"]["concepts"].dtype == np.float32
    assert arrays["task_mask"]["words"].tolist() == [True] * 8
    np.testing.assert_array_equal(batch.position, np.arange(8))
    # Example e<i> has labels i (0.5) and i + 1 (0.75) modulo 5: the best comes first.
    for name, labels, weights in zip(
        batch.ids, batch.labels["concepts"], batch.weights["concepts"], strict=True
    ):
        i = int(name[1:])
        assert labels.tolist() == [(i + 1) % 5, i % 5, -1]
        assert weights.tolist() == [0.75, 0.5, 0]


def test_only_the_best_labels_are_kept(shards: SourceConfig) -> None:
    with loader(shards, max_labels=1) as batches:
        batch = next(batches)
    assert (batch.weights["concepts"] == 0.75).all()


def test_an_epoch_has_every_example_once(shards: SourceConfig) -> None:
    with loader(shards) as batches:
        epochs = [ids_of(take(batches, 3)) for _ in range(2)]
    assert [len(set(ids)) for ids in epochs] == [24, 24]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    "changes", [{"num_threads": 1}, {"num_threads": 4}, {"prefetch_batches": 1}, {"num_workers": 2}]
)
def test_threads_and_workers_change_nothing(shards: SourceConfig, changes: dict) -> None:
    with loader(shards) as one, loader(shards, **changes) as two:
        for a, b in zip(take(one, 6), take(two, 6), strict=True):
            assert_equal(a, b)


def test_hosts_change_nothing(shards: SourceConfig) -> None:
    with loader(shards) as whole:
        expected = take(whole, 5)
    for count in (2, 4):
        for index in range(count):
            with loader(shards, process_index=index, process_count=count) as part:
                share = len(expected[0].ids) // count
                for a, b in zip(expected, take(part, 5), strict=True):
                    assert_equal(a, b, slice(index * share, (index + 1) * share))


def test_seed_changes_order_and_crops(shards: SourceConfig) -> None:
    with loader(shards) as one, loader(shards, seed=1) as two:
        a, b = take(one, 3), take(two, 3)
    assert [x.ids for x in a] != [x.ids for x in b]
    by_id = {i: image for x in a for i, image in zip(x.ids, x.image, strict=True)}
    same = [(by_id[i] == p).all() for x in b for i, p in zip(x.ids, x.image, strict=True)]
    assert not any(same)


def test_resume_is_exact(shards: SourceConfig) -> None:
    with loader(shards) as whole:
        expected = take(whole, 9)
        assert whole.get_state() == {"next_draw": 72, "global_batch_size": 8}
    with loader(shards) as first:
        take(first, 4)
        time.sleep(0.1)  # lets it prefetch beyond what was handed out
        state = first.get_state()
    assert state == {"next_draw": 32, "global_batch_size": 8}
    with loader(shards, start=state) as second:
        for a, b in zip(expected[4:], take(second, 5), strict=True):
            assert_equal(a, b)
        second.set_state(state | {"next_draw": 8})  # and back again
        assert_equal(expected[1], next(second))
        assert second.get_state()["next_draw"] == 16
    # A checkpoint of one host resumes on two.
    with loader(shards, start=state, process_index=1, process_count=2) as part:
        half = len(expected[4].ids) // 2
        assert_equal(expected[4], next(part), slice(half, None))


def test_another_batch_size_goes_on_at_the_next_draw(shards: SourceConfig) -> None:
    with loader(shards) as whole:
        expected = ids_of(take(whole, 6))
    with loader(shards) as first:
        found = ids_of(take(first, 3))
        state = first.get_state()
    with loader(shards, start=state, global_batch_size=12) as second:
        assert found + ids_of(take(second, 2)) == expected
    with (
        pytest.raises(UserError, match=r"global_batch_size=12: .* keep the checkpoint's 8"),
        loader(shards, start=state, global_batch_size=12, mixture="round_robin"),
    ):
        pass


def test_mixture_in_every_batch(make_shards: Callable, make_examples: Callable) -> None:
    small = make_shards(make_examples(8, "s"), CLASSES, name="small")
    large = make_shards(make_examples(24, "l"), CLASSES, name="large")
    configs = [SourceConfig("shards", str(f), split="train") for f in (small, large)]
    with loader(*configs) as batches:
        for batch in take(batches, 4):
            assert sum(i.startswith("s") for i in batch.ids) == 2
        assert batches.drawn() == {f"{small}[train]": 8, f"{large}[train]": 24}
        assert batches.epochs() == {f"{small}[train]": 1, f"{large}[train]": 1}
    with loader(*configs, mixture="balanced") as batches:
        assert sum(i.startswith("s") for i in next(batches).ids) == 4
    with loader(*configs, mixture="round_robin") as batches:
        starts = [{i[0] for i in batch.ids} for batch in take(batches, 4)]
        assert starts == [{"s"}, {"l"}, {"s"}, {"l"}]
        assert batches.epochs() == {f"{small}[train]": 2, f"{large}[train]": 2 / 3}


def test_counts_go_on_after_a_resume(shards: SourceConfig) -> None:
    with loader(shards) as first:
        take(first, 3)
        state = first.get_state()
    with loader(shards, start=state) as second:
        next(second)
        assert list(second.drawn().values()) == [32]


def test_sources_of_one_name_are_told_apart(shards: SourceConfig) -> None:
    with loader(shards, shards) as batches:
        name = f"{shards.path}[train]"
        assert list(batches.drawn()) == [name, f"{name}#2"]


def test_a_source_trains_the_tasks_that_it_lists(
    make_shards: Callable, make_examples: Callable
) -> None:
    examples = make_examples(8, "s")
    examples[3] = dataclasses.replace(examples[3], labels={"concepts": Labels.of([])})
    configs = [
        SourceConfig("shards", str(make_shards(examples, CLASSES, name="a")), split="train"),
        SourceConfig(
            "shards",
            str(make_shards(make_examples(8, "l"), CLASSES, name="b")),
            split="train",
            tasks=("second",),
        ),
    ]
    tasks = {"first": "concepts", "second": "concepts", "third": "other"}
    data = DataConfig(tuple(configs), global_batch_size=16)
    with TrainLoader(open_all(data.sources), data, image_size=8, tasks=tasks, seed=0) as batches:
        batch = next(batches)
    for row, name in enumerate(batch.ids):
        masks = {task: bool(mask[row]) for task, mask in batch.task_mask.items()}
        assert masks == {
            "first": name.startswith("s") and name != "s3",
            "second": name != "s3",
            "third": False,
        }
    wrong = dataclasses.replace(data, sources=(dataclasses.replace(configs[0], tasks=("frist",)),))
    with pytest.raises(UserError, match=r"data\.sources\.0\.tasks.*'frist'.*Did you mean 'first'"):
        TrainLoader(open_all(wrong.sources), wrong, image_size=8, tasks=tasks, seed=0)


def test_sampling_weights(shards: SourceConfig) -> None:
    weighted = dataclasses.replace(shards, sampling="sampling_weight")
    with loader(weighted) as batches:
        ids = ids_of(take(batches, 60))
    count = np.bincount([int(i[1:]) % 3 for i in ids])
    np.testing.assert_allclose(count / len(ids), [1 / 6, 2 / 6, 3 / 6], atol=0.02)


def test_a_source_without_a_field_gives_unlabelled_rows(shards: SourceConfig) -> None:
    sources = open_all((shards,))
    data = DataConfig(sources=(shards,), global_batch_size=4)
    tasks = {"a": "other", "b": "none"}
    with TrainLoader(sources, data, image_size=8, tasks=tasks, seed=0) as batches:
        batch = next(batches)
    assert not batch.task_mask["a"].any()
    for name in ("other", "none"):
        assert (batch.labels[name] == -1).all()
        assert (batch.weights[name] == 0).all()


def test_resize_instead_of_crop(shards: SourceConfig) -> None:
    source = open_all((shards,))[0]
    with loader(shards, crop="resize") as batches:
        batch = next(batches)
    np.testing.assert_array_equal(batch.image[0], whole_image(source, int(batch.ids[0][1:])))


def whole_image(source: Source, index: int) -> np.ndarray:
    pixels = np.empty((SIZE, SIZE, 3), np.uint8)
    decode.decode_into(source[index].image, pixels, None, 10**6)
    return pixels


@pytest.fixture
def damaged(make_shards: Callable, make_examples: Callable) -> SourceConfig:
    """20 examples, of which e0 has no image bytes and e1 and e2 are cut short."""
    examples = make_examples(20)
    for i, keep in enumerate([0, -60, -120]):
        examples[i] = dataclasses.replace(examples[i], image=examples[i].image[:keep])
    return SourceConfig("shards", str(make_shards(examples, CLASSES)), split="train")


@pytest.mark.parametrize("changes", [{}, {"num_workers": 2}, {"process_count": 2}])
def test_bad_examples_are_replaced_by_the_same_ones_everywhere(
    damaged: SourceConfig, changes: dict
) -> None:
    bad = {"e0": "empty", "e1": "truncated", "e2": "truncated"}
    options: dict = {"global_batch_size": 10, "max_reject_fraction": 0.4}
    with loader(damaged, **options) as batches:
        seen = take(batches, 6)  # three epochs
        assert batches.rejects.keys() == set(bad.values())
    rejects = [reject for batch in seen for reject in batch.rejects]
    assert {reject.id: reject.reason for reject in rejects} == bad
    assert {reject.source for reject in rejects} == {f"{damaged.path}[train]"}
    assert len(rejects) >= 9  # a replacement may be bad as well
    for number, batch in enumerate(seen):
        assert batch.valid.all()
        assert not bad.keys() & set(batch.ids)
        assert batch.weights["concepts"].any(axis=1).all()
        np.testing.assert_array_equal(batch.position, np.arange(10) + 10 * number)
    rows = 10 // changes.get("process_count", 1)
    with loader(damaged, **options, **changes) as other:
        for one, two in zip(seen, take(other, 6), strict=True):
            assert_equal(one, two, slice(0, rows))


def test_a_label_out_of_range_is_a_bad_example(
    make_shards: Callable, make_examples: Callable
) -> None:
    examples = make_examples(20)
    examples[4] = dataclasses.replace(examples[4], labels={"concepts": Labels.of([7])})
    config = SourceConfig("shards", str(make_shards(examples, CLASSES)), split="train")
    with loader(config, global_batch_size=20, max_reject_fraction=0.1) as batches:
        batch = next(batches)
    assert [(r.id, r.reason) for r in batch.rejects] == [("e4", "label out of range")]
    assert "e4" not in batch.ids


def test_a_source_of_nothing_but_bad_examples_ends_in_words(
    make_shards: Callable, make_examples: Callable
) -> None:
    examples = [dataclasses.replace(e, image=b"GIF87") for e in make_examples(6)]
    config = SourceConfig("shards", str(make_shards(examples, CLASSES)), split="train")
    with (
        loader(config, max_reject_fraction=1.0) as batches,
        pytest.raises(UserError, match=r"source .*\[train\]: 51 examples.*cannot be used"),
    ):
        next(batches)


def test_too_many_rejects_end_the_run_in_words(damaged: SourceConfig) -> None:
    words = r"\d of 20 examples .*max_reject_fraction=0.1 .*truncated.* for example 'e\d'"
    with (
        loader(damaged, global_batch_size=20, max_reject_fraction=0.1) as batches,
        pytest.raises(UserError, match=words),
    ):
        next(batches)


def test_the_limit_means_the_same_on_many_hosts(damaged: SourceConfig) -> None:
    """3 of 20 are bad. A host whose first examples are bad is not stopped: the limit counts its share of the data."""
    options: dict = {"global_batch_size": 4, "max_reject_fraction": 0.4}
    for index in range(4):
        with loader(damaged, process_index=index, process_count=4, **options) as part:
            take(part, 60)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_arrives_as_it_is(shards: SourceConfig, workers: int) -> None:
    path = sorted(Path(shards.path).glob("*.array_record"))[1]
    path.write_bytes(b"")
    with (
        loader(shards, num_workers=workers) as batches,
        pytest.raises(UserError, match=path.name),
    ):
        take(batches, 3)


def test_indivisible_batch(shards: SourceConfig) -> None:
    with pytest.raises(UserError, match="does not divide by 3"):
        loader(shards, process_count=3)


def test_close_ends_the_threads(shards: SourceConfig) -> None:
    def workers() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("grain")]

    before = len(workers())
    batches = loader(shards)
    next(batches)
    assert len(workers()) > before
    batches.close()
    deadline = time.monotonic() + 10
    while len(workers()) > before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(workers()) == before


def run_eval(source: Source, **changes: object) -> Iterator[Batch]:
    options: dict = {
        "batch_size": 7,
        "image_size": SIZE,
        "fields": ["concepts"],
        "max_labels": 2,
        "max_image_pixels": 10**6,
        "max_reject_fraction": 0.0,
        "num_threads": 2,
    }
    return eval_batches(source, **(options | changes))


def test_eval_is_in_order_and_complete(shards: SourceConfig) -> None:
    source = open_all((shards,))[0]
    batches = list(run_eval(source))
    assert [b.image.shape[0] for b in batches] == [7, 7, 7, 7]
    ids = [i for b in batches for i, ok in zip(b.ids, b.valid, strict=True) if ok]
    assert ids == [f"e{i}" for i in range(24)]
    last = batches[-1]
    assert last.valid.tolist() == [True] * 3 + [False] * 4
    assert last.ids[3:] == [""] * 4
    assert not last.image[3:].any()
    assert not last.weights["concepts"][3:].any()
    np.testing.assert_array_equal(batches[1].image[2], whole_image(source, 9))


def test_eval_rejects(damaged: SourceConfig) -> None:
    source = open_all((damaged,))[0]
    batches = list(run_eval(source, max_reject_fraction=0.15))
    assert batches[0].valid.tolist() == [False] * 3 + [True] * 4
    assert batches[0].ids[1] == "e1"
    assert not batches[0].image[:3].any()
    with pytest.raises(UserError, match="3 of 20 examples"):
        list(run_eval(source, max_reject_fraction=0.1))
    with pytest.raises(UserError, match="too large"):
        list(run_eval(source, max_image_pixels=100))


def test_eval_can_be_left_early(shards: SourceConfig) -> None:
    batches = run_eval(open_all((shards,))[0])
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def test_empty_labels_stay_unlabelled(make_shards: Callable, make_examples: Callable) -> None:
    example = Example("x", make_examples(1)[0].image, {"concepts": Labels.of([])})
    folder = make_shards([example], CLASSES, count=1)
    source = open_all((SourceConfig("shards", str(folder), split="train"),))[0]
    batch = next(iter(run_eval(source, batch_size=1)))
    assert batch.valid.all()
    assert not batch.weights["concepts"].any()


def test_eval_crops_and_task_masks(make_shards: Callable, make_examples: Callable) -> None:
    examples = make_examples(3)
    config = SourceConfig("shards", str(make_shards(examples, CLASSES, count=1)), split="train")
    source = open_all((config,))[0]
    tasks = {"first": "concepts", "second": "concepts"}
    options: dict = {"batch_size": 4, "tasks": tasks, "source_tasks": ("second",)}
    (batch,) = run_eval(source, eval_crop="centre", eval_crop_fraction=0.875, **options)
    assert not batch.task_mask["first"].any()
    assert batch.task_mask["second"].tolist() == [True, True, True, False]
    expected = np.empty((SIZE, SIZE, 3), np.uint8)
    box = (48 / 2 - 17.5, 2.5, 48 / 2 + 17.5, 37.5)  # of 48 x 40 pixels: 35 x 35
    decode.decode_into(examples[1].image, expected, lambda width, height: box, 10**6)
    np.testing.assert_array_equal(batch.image[1], expected)
