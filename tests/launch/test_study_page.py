"""The page of a study in headless Chromium: no errors, nothing fetched, no wider than a phone, light and dark."""

from headless import DESK, PHONE, chromium, look_at
from written_runs import Written, write_run

from launch.study import make_study
from launch.study_report import write_study
from launch.study_runs import collect_runs


def test_page_in_a_browser(tmp_path):
    for size in (100, 200, 400, 800):
        for width in (16, 32):
            y = 0.9 - width / 100 * (size / 100) ** -0.4
            run = Written(f"n{size}-w{width}", {"m/x": (y, y - 0.1, y + 0.1)}, size, width)
            write_run(tmp_path / "runs", run)
    study = make_study(collect_runs([tmp_path / "runs"]), samples=50)
    write_study(tmp_path / "out", study, "runs")
    with chromium() as browser:
        for width, scheme in ((PHONE, "dark"), (DESK, "light")):
            look = look_at(browser, tmp_path / "out" / "study.html", width=width, scheme=scheme)
            assert look.errors == []
            assert look.requests == []
            assert look.overflow <= 0
            assert not look.is_blank
            assert (look.background < 100) == (scheme == "dark")
