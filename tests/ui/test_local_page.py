"""The local page shows what the store remembers, only to this machine, and never as more than text."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.ui.conftest import Browser, Fill

from tenon import ui
from tenon.errors import UsageError
from tenon.store import Store
from tenon.ui import chart, text

PATHS = [
    "/",
    "/models/late",
    "/runs",
    "/runs?model=late",
    "/runs/run1",
    "/compare?run=run1&run=run2",
    "/watch/late",
    "/data",
    "/data/d1",
    "/findings",
    "/findings?severity=error",
    "/ledger",
    "/history",
]
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}\x1b[31m\u202e\x00=cmd()"


class Seen(HTMLParser):
    """Collect the tags and attributes of a page, to look at it as a browser would."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def seen(body: str) -> Seen:
    """Parse a page."""
    parser = Seen()
    parser.feed(body)
    return parser


class TestItShowsWhatTheStoreRemembers:
    def test_the_overview_says_what_is_in_production_how_it_does_and_what_it_costs(
        self, store: Store, filled: Fill, page: Browser
    ) -> None:
        filled(store, "")
        body = page.get("/").text
        for said in ("Late flights", "production: version 1", "0.760", "gate passed", "warning", "336,776", "closes"):
            assert said in body, said

    @pytest.mark.parametrize("path", PATHS)
    def test_every_page_opens_on_a_full_store_and_on_an_empty_one(
        self, store: Store, filled: Fill, page: Browser, path: str
    ) -> None:
        empty = page.get(path)
        assert empty.status in (200, 404), path
        filled(store, "")
        full = page.get(path)
        assert full.status == 200, full.text
        assert full.text.rstrip().endswith("</html>") and "None" not in re.sub(r"<[^>]+>", "", full.text)

    def test_a_run_shows_its_curves_and_two_runs_what_differs(self, store: Store, filled: Fill, page: Browser) -> None:
        filled(store, "")
        run = page.get("/runs/run1").text
        assert "<svg" in run and "train" in run and "valid" in run and "loss" in run
        both = page.get("/compare?run=run1&run=run2").text
        assert "params.leaves" in both and "32" in both and "33" in both and "seed" in both

    def test_watching_shows_performance_the_tests_mark_and_drift_in_colour(
        self, store: Store, filled: Fill, page: Browser
    ) -> None:
        filled(store, "")
        body = page.get("/watch/late").text
        assert "in the test 0.760" in body and "hollow" in body
        assert 'class="cell bad"' in body and 'class="cell low"' in body and 'class="cell open"' in body
        assert page.get("/watch/late?id=w1").status == 200

    def test_what_is_not_there_is_said_with_404(self, store: Store, filled: Fill, page: Browser) -> None:
        filled(store, "")
        for path in ("/models/none", "/runs/none", "/data/none", "/watch/none", "/nowhere", "/../etc/passwd"):
            answer = page.get(path)
            assert answer.status == 404, path
            assert "passwd" not in answer.text or "root:" not in answer.text

    def test_records_with_hardly_any_field_still_show(self, store: Store, page: Browser) -> None:
        for kind in ("run", "version", "watch", "features", "dataset"):
            store.put(kind, f"{kind}0", {"id": f"{kind}0", "model": "late"})
        store.put(
            "watch", "watch1", {"id": "watch1", "model": "late", "windows": [{}, {"start": "x"}], "findings": [{}]}
        )
        store.put(
            "run", "run9", {"id": "run9", "model": "late", "metrics": {"test": {"roc_auc": {}}}, "calibration": [{}]}
        )
        for path in (
            "/",
            "/models/late",
            "/runs",
            "/runs/run0",
            "/runs/run9",
            "/watch/late",
            "/data/dataset0",
            "/findings",
        ):
            assert page.get(path).status == 200, path

    def test_a_damaged_record_is_told_in_the_words_of_the_error(self, store: Store, page: Browser) -> None:
        store.put("run", "r", {"id": "r", "model": "late"})
        import sqlite3

        with sqlite3.connect(store.folder / "tenon.db") as raw:
            raw.execute("UPDATE record SET body = 'not json'")
        raw.close()
        answer = page.get("/runs/r")
        assert answer.status == 503 and "expected JSON" in answer.text


class TestOnlyThisMachineMayAsk:
    @pytest.mark.parametrize(
        "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::1"]
    )
    def test_another_name_in_the_host_header_is_refused(self, store: Store, host: str) -> None:
        answer = Browser(ui.build_app(store)).get("/", host=host)
        assert answer.status == 421 and "tenon" not in answer.text

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8322", "localhost:1", "LOCALHOST", "[::1]:8322"])
    def test_the_names_of_this_machine_are_answered(self, store: Store, host: str) -> None:
        assert Browser(ui.build_app(store)).get("/", host=host).status == 200

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
    def test_it_takes_nothing(self, page: Browser, method: str) -> None:
        assert page.get("/", method=method).status == 405

    def test_every_answer_carries_the_headers_that_keep_it_to_itself(self, page: Browser) -> None:
        for path in ("/", "/style.css", "/nowhere"):
            headers = page.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "script-src" not in headers["content-security-policy"]  # default-src 'none' forbids all
            assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
            assert headers["referrer-policy"] == "no-referrer" and headers["cache-control"] == "no-store"
            assert "set-cookie" not in headers
        assert page.get("/", host="evil.example").headers["x-frame-options"] == "DENY"

    def test_it_needs_nothing_from_elsewhere(self, store: Store, filled: Fill, page: Browser) -> None:
        filled(store, "")
        for path in PATHS:
            found = seen(page.get(path).text)
            assert "script" not in found.tags and "style" not in found.tags, path
            for name, value in found.attributes:
                assert name != "style" and not name.startswith("on"), (path, name)
                if name in ("href", "src", "action"):
                    assert value.startswith(("/", "data:,")) and not value.startswith("//"), (path, value)
        assert "url(" not in page.get("/style.css").text and "@import" not in page.get("/style.css").text


class TestTextFromOutsideIsOnlyText:
    @pytest.mark.parametrize("path", PATHS)
    def test_html_escapes_templates_and_direction_marks_are_harmless(
        self, store: Store, filled: Fill, page: Browser, path: str
    ) -> None:
        filled(store, HOSTILE.replace("\x00", ""))
        answer = page.get(path)
        assert answer.status == 200, answer.text
        found = seen(answer.text)
        assert "script" not in found.tags and "img" not in found.tags
        assert not any(name.startswith("on") for name, _ in found.attributes)
        assert "\x1b" not in answer.text and "\u202e" not in answer.text
        assert "{{7*7}}" in answer.text or path in QUIET

    def test_a_cell_that_a_spreadsheet_would_run_is_defused(self) -> None:
        for formula in ("=cmd|' /C calc'!A0", "@SUM(A1)", "+1+cmd()", "-1+cmd()"):
            assert text.clean(formula).startswith("'")
        assert text.clean("-3.25") == "-3.25" and text.clean("-12 %") == "-12 %"

    def test_names_in_addresses_cannot_leave_their_place(self, store: Store, page: Browser) -> None:
        odd = "../../x?y=<b>&z#w/"
        store.put("run", "r1", {"id": "r1", "model": odd})
        body = page.get("/runs").text
        assert 'href="/models/..%2F..%2Fx%3Fy%3D%3Cb%3E%26z%23w%2F"' in body
        assert page.get("/models/..%2F..%2Fx%3Fy%3D%3Cb%3E%26z%23w%2F").status == 200

    def test_query_words_are_only_looked_up(self, store: Store, filled: Fill, page: Browser) -> None:
        filled(store, "")
        for query in ("/runs?model=' OR 1=1 --", "/findings?severity=<script>", "/watch/late?id=' OR 1=1"):
            answer = page.get(query)
            assert answer.status == 200 and "<script>" not in answer.text


QUIET = ("/findings?severity=error", "/runs", "/runs?model=late", "/compare?run=run1&run=run2")


class TestPictures:
    def test_ticks_are_round_and_cover_the_data(self) -> None:
        drawn = str(chart.lines([chart.Series(name="a", points=[(0, 0.7012), (10, 0.7859)])], chart.Axes(x="x", y="y")))
        assert ">0.7<" in drawn.replace("0.700", "0.7") and ">0.8" in drawn.replace("0.800", "0.8")
        assert "nan" not in drawn and "inf" not in drawn

    @pytest.mark.parametrize(
        "points",
        [[], [(0.0, 1.0)], [(0.0, 0.0), (1.0, 0.0)], [(0.0, float("nan")), (1.0, 2.0)], [(0.0, 1e-9), (1.0, 1e12)]],
    )
    def test_odd_data_never_breaks_a_picture(self, points: list[tuple[float, float]]) -> None:
        drawn = str(chart.lines([chart.Series(name="a", points=points, dots=True)], chart.Axes()))
        assert "nan" not in drawn and "inf" not in drawn

    def test_a_spike_survives_thinning(self) -> None:
        from tenon.ui.read import POINTS, thinned

        pairs = [(float(i), 0.0) for i in range(50_000)]
        pairs[31_234] = (31_234.0, 99.0)
        kept = thinned(pairs)
        assert len(kept) <= 2 * POINTS and (31_234.0, 99.0) in kept and kept[0] == pairs[0] and kept[-1] == pairs[-1]


class TestItRuns:
    def test_it_listens_on_this_machine_alone_and_says_where(self, tmp_path: Path) -> None:
        Store.open(tmp_path).close()
        code = (
            "import sys; from pathlib import Path; from tenon import ui; from tenon.store import Store\n"
            "with Store.open(Path(sys.argv[1]), read_only=True) as store:\n"
            "    ui.run(ui.build_app(store), started=lambda url: print(url, flush=True))\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            for host, status in (("localhost", 200), ("evil.example", 421)):
                connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
                connection.request("GET", "/", headers={"host": host})
                assert connection.getresponse().status == status
                connection.close()
        finally:
            process.terminate()
            process.wait(20)
            process.stdout.close()

    def test_a_port_in_use_is_said_in_words(self, store: Store) -> None:
        import socket

        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            held.listen()
            with pytest.raises(UsageError, match="expected a free port"):
                ui.run(ui.build_app(store), port=held.getsockname()[1])

    def test_the_page_never_writes(self, tmp_path: Path, filled: Fill) -> None:
        with Store.open(tmp_path) as store:
            filled(store, "")
        with Store.open(tmp_path, read_only=True) as store:
            assert all(Browser(ui.build_app(store)).get(path).status == 200 for path in PATHS)

    def test_importing_it_pulls_in_nothing_heavy(self) -> None:
        heavy = ("torch", "lightgbm", "sklearn", "polars", "duckdb")
        code = f"import sys, tenon.ui.app; print([name for name in {heavy} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
