"""Stopping by SIGTERM and by a notice, in one process; several are in tests/parallel/test_distributed.py."""

import http.server
import os
import signal
import threading
import time

import pytest

from vitscale.train.preemption import NOTICE_FILE, StopSignal, find_notice, gce_preempted


def wait_until_stop(stop):
    end = time.monotonic() + 5
    while not stop.should_stop(1):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_sigterm_stops_and_a_second_one_does_not_kill():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal() as stop:
        assert not stop.should_stop(1)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until_stop(stop)
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_there_is_nothing_to_handle():
    asked = []

    def work():
        with StopSignal() as stop:
            asked.append(stop.should_stop(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert asked == [False]


def test_a_notice_file_stops(tmp_path):
    file = tmp_path / "notice"
    notice = find_notice({NOTICE_FILE: str(file)})
    with StopSignal(notice=notice, every=0.02) as stop:
        time.sleep(0.1)
        assert not stop.should_stop(1)
        file.touch()
        wait_until_stop(stop)


@pytest.fixture
def metadata():
    """A metadata server on this machine; its values can be changed."""
    values = {"preempted": "FALSE", "maintenance-event": "NONE"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            key = self.path.removeprefix("/computeMetadata/v1/instance/")
            known = self.headers["Metadata-Flavor"] == "Google" and key in values
            self.send_response(200 if known else 403)
            self.end_headers()
            if known:
                self.wfile.write(values[key].encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        values["host"] = f"127.0.0.1:{server.server_port}"
        yield values
        server.shutdown()


@pytest.mark.parametrize(
    ("key", "value", "stops"),
    [
        ("preempted", "TRUE", True),
        ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", True),
        ("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE", False),
    ],
)
def test_compute_engine_says_when_it_takes_the_machine(metadata, key, value, stops):
    notice = find_notice({"GCE_METADATA_HOST": metadata["host"]})
    assert not notice()
    metadata[key] = value
    assert notice() == stops


def test_no_metadata_server_is_no_notice():
    assert find_notice({"HOME": "/root"}) is None
    started = time.monotonic()
    assert not gce_preempted("127.0.0.1:9")
    assert time.monotonic() - started < 3
