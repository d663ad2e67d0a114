import json
import math
import os
import struct
import subprocess
import sys
import textwrap
import time

import pytest
from tensorboardX.proto.event_pb2 import Event

from vitscale.config import LogConfig
from vitscale.errors import UserError
from vitscale.train.metrics import (
    EVENTS_FILE,
    METRICS_FILE,
    MetricsWriter,
    read_events,
    read_metrics,
)

FILES_ONLY = LogConfig(tensorboard=False)


def strict(text: str):
    """JSON as everybody but Python reads it."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def tensorboard_events(folder):
    """(step, tag, value) and ("purge", step) of all event files, in TensorBoard's order."""
    found = []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            if event.HasField("session_log"):
                found.append(("purge", event.step))
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return found


def write_steps(writer, steps, offset=0.0):
    for step in steps:
        writer.write(step, {"train/loss": step + offset})


def test_a_line_is_complete_as_soon_as_it_is_written(tmp_path):
    with MetricsWriter(tmp_path, start_step=0, log=FILES_ONLY) as writer:
        writer.write(5, {"train/loss": 0.1})
        assert read_metrics(tmp_path) == [{"step": 5, "train/loss": 0.1}]


def test_values_that_are_not_finite_are_valid_json(tmp_path):
    with MetricsWriter(tmp_path, start_step=0, log=FILES_ONLY) as writer:
        writer.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5})
        writer.event("skip", step=1, grad_norm=math.inf)
    assert strict((tmp_path / METRICS_FILE).read_text()) == {
        **dict.fromkeys("abc"),
        "step": 1,
        "d": 1.5,
    }
    assert strict((tmp_path / EVENTS_FILE).read_text())["grad_norm"] is None
    (row,) = read_metrics(tmp_path)
    assert all(math.isnan(row[name]) for name in "abc")
    assert row["d"] == 1.5


def test_resume_drops_the_lines_after_the_restored_step_and_no_others(tmp_path):
    with MetricsWriter(tmp_path, start_step=0, log=FILES_ONLY) as writer:
        writer.write(10, {"train/loss": math.nan, "x": 0.1 + 0.2})
        write_steps(writer, (20, 30))
    first = (tmp_path / METRICS_FILE).read_bytes().splitlines()[0]
    with MetricsWriter(tmp_path, start_step=20, log=FILES_ONLY) as writer:
        write_steps(writer, (30,), offset=0.5)
    assert (tmp_path / METRICS_FILE).read_bytes().splitlines()[0] == first
    assert [(r["step"], r["train/loss"]) for r in read_metrics(tmp_path)[1:]] == [
        (20, 20.0),
        (30, 30.5),
    ]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_line_that_a_kill_cut_off_takes_no_other_with_it(tmp_path):
    with MetricsWriter(tmp_path, start_step=0, log=FILES_ONLY) as writer:
        write_steps(writer, (10,))
        writer.event("start", step=0)
    for name in (METRICS_FILE, EVENTS_FILE):
        with (tmp_path / name).open("a") as file:
            file.write('{"step": 20, "tr')
    assert len(read_metrics(tmp_path)) == len(read_events(tmp_path)) == 1
    with MetricsWriter(tmp_path, start_step=10, log=FILES_ONLY) as writer:
        write_steps(writer, (20,))
        writer.event("restore", step=10)
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 20]
    assert [event["event"] for event in read_events(tmp_path)] == ["start", "restore"]


def test_events_say_when(tmp_path):
    before = time.time()
    with MetricsWriter(tmp_path, start_step=0, log=FILES_ONLY) as writer:
        writer.event("rollback", step=100, reason="11 steps were skipped")
    (event,) = read_events(tmp_path)
    assert before <= event.pop("time") <= time.time()
    assert event == {"event": "rollback", "step": 100, "reason": "11 steps were skipped"}


def test_a_process_that_does_not_write_touches_nothing(tmp_path):
    log = LogConfig(wandb_project="vitscale")
    with MetricsWriter(tmp_path, start_step=0, log=log, enabled=False) as writer:
        write_steps(writer, (1,))
        writer.event("start", step=0)
        writer.rewind(0)
    assert not list(tmp_path.iterdir())


def test_tensorboard_forgets_what_a_rewind_drops(tmp_path):
    with MetricsWriter(tmp_path, start_step=0, log=LogConfig()) as writer:
        write_steps(writer, (10, 20, 30))
        writer.rewind(10)  # within the second that names the file
        write_steps(writer, (20,), offset=0.5)
    assert [row["train/loss"] for row in read_metrics(tmp_path)] == [10.0, 20.5]
    assert tensorboard_events(tmp_path / "tensorboard") == [
        ("purge", 1),
        (10, "train/loss", 10.0),
        (20, "train/loss", 20.0),
        (30, "train/loss", 30.0),
        ("purge", 11),
        (20, "train/loss", 20.5),
    ]


def test_missing_wandb_is_said_in_words(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    log = LogConfig(wandb_project="vitscale")
    with pytest.raises(UserError, match=r"pip install 'vitscale\[wandb\]'"):
        MetricsWriter(tmp_path, start_step=0, log=log)
    assert not list(tmp_path.iterdir())


RUN = """
    import sys
    from pathlib import Path
    from vitscale.config import LogConfig
    from vitscale.errors import UserError
    from vitscale.train.metrics import MetricsWriter

    workdir, start, mode = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    log = LogConfig(tensorboard=False, wandb_project="vitscale-test", wandb_mode=mode)
    try:
        with MetricsWriter(workdir, start_step=start, log=log, config={"seed": 7}) as writer:
            for step in (start + 10, start + 20):
                writer.write(step, {"train/loss": float(step)})
    except UserError as error:
        print("UserError:", error)
    print("loaded:", [m for m in ("torch", "tensorflow") if m in sys.modules])
"""


def start_run(workdir, start=0, mode="offline"):
    """A process of its own: W&B keeps a service, and the environment is what must not leak."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"HOME": str(workdir), "MY_SECRET": "squeamish-ossifrage", "NETRC": "/nowhere"}
    command = [sys.executable, "-c", textwrap.dedent(RUN), str(workdir), str(start), mode]
    done = subprocess.run(
        [*command, "--token=squeamish-ossifrage"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def wandb_records(path):
    """The records of a .wandb file: 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    content, at, record = path.read_bytes(), 7, b""
    while at < len(content):
        if (left := -at % 32768) and left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def wandb_history(path):
    """Id, config and logged rows of one offline run."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows, config, run_id = [], {}, ""
    for data in wandb_records(path):
        record = Record.FromString(data)
        if record.HasField("run"):
            run_id = record.run.run_id
            config |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
        if record.HasField("history"):
            items = record.history.item
            rows.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return run_id, config, rows


def test_wandb_offline_writes_one_run_across_a_restart_and_no_secret(tmp_path):
    pytest.importorskip("wandb", reason="Weights & Biases (extra [wandb]) is not installed")
    first = start_run(tmp_path)
    assert first == "loaded: []\n"
    run_id = (tmp_path / "wandb_id").read_text()
    time.sleep(1.1)  # the folders of offline runs are named by the second
    start_run(tmp_path, start=20)
    assert (tmp_path / "wandb_id").read_text() == run_id

    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    for file, steps in zip(files, ((10, 20), (30, 40)), strict=True):
        found_id, config, rows = wandb_history(file)
        assert found_id == run_id
        assert config["seed"] == 7
        assert [(r["step"], r["train/loss"]) for r in rows] == [(s, float(s)) for s in steps]
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert b"squeamish-ossifrage" not in file.read_bytes(), file


def test_wandb_online_without_a_key_is_said_in_words(tmp_path):
    pytest.importorskip("wandb", reason="Weights & Biases (extra [wandb]) is not installed")
    output = start_run(tmp_path, mode="online")
    assert "UserError: Weights & Biases does not start" in output
    assert "log.wandb_mode" in output
    assert not (tmp_path / METRICS_FILE).exists()
