"""Sources under s3:// against a local server, gs:// by its code path, and files that are derived once."""

from __future__ import annotations

import dataclasses
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyarrow import fs
from written_sources import TAGS, WRITERS, Row

from vitscale.config import SourceConfig
from vitscale.data.sources import cache, collect_classes, guess_source, open_source, storage
from vitscale.data.sources.storage import Location, locate
from vitscale.errors import UserError

ROWS: list[Row] = [
    {"id": f"e{i}", "image": b"image %d" % i, "colour": "red", "tags": TAGS[: i % 3]}
    for i in range(6)
]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> fs.FileSystem:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage._s3.cache_clear()
    client = fs.S3FileSystem(
        endpoint_override=endpoint.removeprefix("http://"),
        scheme="http",
        allow_bucket_creation=True,
        allow_bucket_deletion=True,
    )
    client.create_dir("photos")
    return client


@pytest.mark.parametrize("kind", ["csv", "parquet", "webdataset"])
def test_s3(kind: str, bucket: fs.FileSystem, tmp_path: Path) -> None:
    local = WRITERS[kind](tmp_path / kind, ROWS)
    folder = Path(local.path).parent if kind == "csv" else Path(local.path)
    fs.copy_files(str(folder), f"photos/{kind}", destination_filesystem=bucket)
    remote = guess_source(f"s3://photos/{kind}", fields=local.fields, id_column=local.id_column)
    assert (remote.kind, remote.path[:14]) == (kind, "s3://photos/" + kind[:2])
    source = open_source(remote, ".", collect_classes([remote], "."))
    assert [e.image for e in source.read([4, 0, 5])] == [ROWS[i]["image"] for i in (4, 0, 5)]  # type: ignore[union-attr]
    assert source[2].id == "e2"
    assert source.classes["tags"] == sorted(TAGS[:2])
    assert not [path for path in tmp_path.rglob("*") if path.name == "s3:"]
    relative = dataclasses.replace(remote, path=remote.path.removeprefix("s3://photos/"))
    assert len(open_source(relative, "s3://photos", source.classes)) == len(ROWS)
    missing = dataclasses.replace(remote, path="s3://photos/none/data.csv")
    with pytest.raises(UserError, match="s3://photos/none"):
        collect_classes([missing], ".")


def test_a_missing_image_on_s3_is_a_reject(bucket: fs.FileSystem, tmp_path: Path) -> None:
    local = WRITERS["csv"](tmp_path / "csv", ROWS)
    fs.copy_files(str(Path(local.path).parent), "photos/holes", destination_filesystem=bucket)
    bucket.delete_file("photos/holes/e3.jpg")
    config = dataclasses.replace(local, path="s3://photos/holes/data.csv")
    source = open_source(config, ".", collect_classes([config], "."))
    found = source.read([2, 3])
    assert (found[1].reason, found[1].example_id) == ("missing file", "e3")  # type: ignore[union-attr]


def test_shards_do_not_read_s3() -> None:
    config = SourceConfig("shards", "s3://photos/shards", split="train")
    with pytest.raises(UserError, match=r"local folders and gs:// only"):
        collect_classes([config], ".")


def test_gs_goes_through_its_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder stands in for the bucket: what is tested is the way there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fake = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(storage, "_gcs", lambda: fake)
    for kind in ("csv", "parquet", "webdataset"):
        local = WRITERS[kind](tmp_path / "bucket" / kind, ROWS)
        path = f"gs://bucket/{kind}" + ("/data.csv" if kind == "csv" else "")
        config = dataclasses.replace(local, path=path)
        source = open_source(config, ".", collect_classes([config], "."))
        assert [source[i].image for i in range(6)] == [row["image"] for row in ROWS]


def test_locations() -> None:
    assert locate("/a", "b.csv") == Location("/a/b.csv")
    assert locate("s3://x/y", "b/c.csv") == Location("s3://x/y/b/c.csv")
    assert locate("s3://x/y", "/b/c.csv") == Location("/b/c.csv")
    assert locate("/a", "gs://x/y/") == Location("gs://x/y")
    assert Location("gs://x/y/z.tar").parent == Location("gs://x/y")
    with pytest.raises(UserError, match="http:// is not supported"):
        locate(".", "http://host/a.csv")


def test_derived_files_are_built_once(tmp_path: Path) -> None:
    built = []

    def build(path: Path) -> None:
        built.append(path)
        path.write_text("x")

    beside = Location(str(tmp_path))
    first = cache.build_once(beside, "a.txt", (1, "k"), build)
    assert cache.build_once(beside, "a.txt", (1, "k"), build) == first
    assert len(built) == 1
    assert cache.build_once(beside, "a.txt", (2, "k"), build) != first
    assert first.parent == tmp_path / ".vitscale"
    assert stat.S_IMODE(first.stat().st_mode) == 0o644

    def fails(path: Path) -> None:
        path.write_text("half")
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        cache.build_once(beside, "b.txt", 1, fails)
    assert len(list(first.parent.iterdir())) == 2  # nothing half-written stays


def test_many_build_the_same_file_at_once(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def build(path: Path) -> None:
        together.wait(timeout=30)
        path.write_text("x" * 100_000)

    with ThreadPoolExecutor(8) as pool:
        beside = Location(str(tmp_path))
        paths = {
            f.result()
            for f in [pool.submit(cache.build_once, beside, "a", 1, build) for _ in range(8)]
        }
    assert len(paths) == 1
    assert paths.pop().read_text() == "x" * 100_000
    assert len(list((tmp_path / ".vitscale").iterdir())) == 1


def test_a_read_only_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data"
    folder.mkdir(mode=0o555)
    path = cache.build_once(Location(str(folder)), "a.txt", 1, lambda p: p.write_text("x"))  # type: ignore[arg-type, return-value]
    assert path.is_relative_to(tmp_path / "home" / "vitscale")
    assert not list(folder.iterdir())  # nor by root, whom rights do not stop


def test_an_unreachable_bucket_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(bucket: str) -> fs.FileSystem:
        raise OSError(f"no region for {bucket}")

    monkeypatch.setattr(storage, "_s3", refuses)
    with pytest.raises(UserError, match=r"s3://gone/a\.csv cannot be reached: no region for gone"):
        Location("s3://gone/a.csv").is_file()
