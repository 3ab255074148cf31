"""Pages: the same numbers to three people, in three formats, whole in one file, the same bytes, and harmless."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tenon.errors import UsageError
from tenon.report import AUDIENCES, FORMATS, draw, facts
from tenon.store import Store

Facts = dict[str, Any]
Gather = Callable[..., Facts]
SVG = "{http://www.w3.org/2000/svg}"
EVERY = [(audience, form) for audience in AUDIENCES for form in FORMATS]
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Outline(HTMLParser):
    """Reads a page: its elements with attributes, the text under each, and whether they nest."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.stack == [], self.stack

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.texts.append(("/".join(self.stack), data))


def told(page: str) -> str:
    """Return what a page says before its list of sources, without tags."""
    body = page[page.index("<main>") : page.index("</main>") + len("</main>")]
    return " ".join(" ".join(data for _, data in Outline(body).texts).split())


def walk(value: Any) -> Iterator[str]:
    """Yield every text in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from walk(one)
    elif isinstance(value, list):
        for one in value:
            yield from walk(one)


# ── the same numbers ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_three_tell_the_same_numbers(story: Facts) -> None:
    pages = {audience: json.loads(draw(story, audience, "json")) for audience in AUDIENCES}
    for page in pages.values():
        for key, figure in page["figures"].items():
            assert figure == story["figures"][key]
    shared = set(pages["executive"]["figures"]) & set(pages["manager"]["figures"]) & set(pages["engineer"]["figures"])
    assert {"test.roc_auc", "cost.month", "gate.checks"} <= shared | set(pages["engineer"]["figures"])
    assert len({json.dumps(page["verdict"]) for page in pages.values()}) == 1


def test_the_three_formats_of_a_page_say_the_same_words(story: Facts) -> None:
    sentence = "it ranks the late one higher 76 times in 100"
    html = told(draw(story, "executive", "html"))
    text = " ".join(draw(story, "executive", "text").split())
    data = " ".join(" ".join(walk(json.loads(draw(story, "executive", "json")))).split())
    assert sentence in html
    assert sentence in text
    assert sentence in data


@pytest.mark.parametrize("audience", AUDIENCES)
def test_every_figure_on_a_page_is_in_its_list_of_sources(story: Facts, audience: str) -> None:
    quoted = json.loads(draw(story, audience, "json"))["figures"]
    page = draw(story, audience, "html")
    sources = page[page.index('id="sources"') :]
    for figure in quoted.values():
        assert figure["label"] in sources.replace("&#39;", "'").replace("&gt;", ">")
    titles = re.findall(r'<span title="from ([^"]+)">', page)
    assert len(titles) >= len(quoted)


def test_the_engineer_is_told_every_feature_with_its_sql_and_every_window(story: Facts) -> None:
    page = told(draw(story, "engineer", "html"))
    for row in story["tables"]["features"]["rows"]:
        assert row["name"] in page
        assert row["sql"] in page
    for row in story["tables"]["drift"]["rows"]:
        assert f"{row['values'][3]:.3f}" in page
    assert story["lineage"]["blobs"]["model (ONNX)"] in page


def test_the_manager_is_told_each_check_with_its_reason_and_each_alert_with_an_owner(story: Facts) -> None:
    page = told(draw(story, "manager", "html"))
    for check in story["tables"]["gate"]["rows"]:
        assert check["said"] in page
    alerts = [one for one in story["findings"] if one["severity"] != "info"]
    assert alerts
    assert page.count("What to do:") == page.count("Owner: operations.") == len(alerts)
    assert "Rows lost: none." in page


# ── the executive's page ─────────────────────────────────────────────────────────────────────────────────────────────

JARGON = [
    "auc",
    "roc",
    "psi",
    "brier",
    "baseline",
    "logistic",
    "lightgbm",
    "calibrat",
    "p99",
    "drift",
    "onnx",
    "bootstrap",
]


@pytest.mark.parametrize("left_out", [(), ("watch",), ("version", "alias"), ("run", "version", "alias"), ("scores",)])
def test_the_executive_reads_no_term_of_the_trade(without: Gather, left_out: tuple[str, ...]) -> None:
    words = re.findall(r"[a-z0-9]+", told(draw(without(*left_out), "executive", "html")).lower())
    assert not {word for word in words for term in JARGON if word.startswith(term)}


def test_the_executive_reads_at_most_a_page(story: Facts) -> None:
    page = re.sub(r"<svg.*?</svg>|<sup.*?</sup>", "", draw(story, "executive", "html"), flags=re.S)
    assert len(told(page).split()) < 400


def test_the_executive_is_answered_first(story: Facts) -> None:
    text = draw(story, "executive", "text").splitlines()
    assert text[4] == "[+] Is it good enough? Yes."
    assert "[!] Is it safe to use now? Yes, with care." in text[:10]


def test_a_refused_model_is_told_as_refused_in_every_audience(store: Store, example: Any) -> None:
    example.fill(store)
    refused = copy.deepcopy(example.version())
    refused["gate"] = {
        "allowed": False,
        "checks": [{"name": "beyond_noise", "passed": False, "said": "that lift is too small", "value": 0, "limit": 0}],
    }
    store.put("version", example.VERSION, refused, at=example.AT)
    run = example.run()
    run["lift"] = {"roc_auc": {"value": 0.001, "low": -0.002, "high": 0.004}}
    store.put("run", example.RUN, run, at=example.AT)
    found = facts(store, "late")
    for audience in AUDIENCES:
        assert "[x] Is it good enough? No." in draw(found, audience, "text")
    assert "It does not beat a simple scorecard by more than chance" in draw(found, "executive", "text")


def test_a_model_of_numbers_is_told_by_its_error(store: Store, example: Any) -> None:
    example.fill(store, leave_out=frozenset({"watch", "scores"}))
    run = example.run()
    estimate = example.estimate
    run["task"] = "regression"
    run["metrics"] = {"test": {"rmse": estimate(12.5, 0.4), "mae": estimate(8.1, 0.2), "r2": estimate(0.41, 0.02)}}
    run["baselines"] = {"constant": {"rmse": estimate(17.9, 0.5)}, "linear": {"rmse": estimate(14.2, 0.4)}}
    run["lift"] = {"rmse": estimate(1.7, 0.2)}
    run["calibration"] = [
        {"predicted": p, "observed": p + 0.4, "rows": 100, "low": p, "high": p + 1} for p in (-5.0, 9.0)
    ]
    store.put("run", example.RUN, run, at=example.AT)
    found = facts(store, "late")
    page = draw(found, "executive", "text")
    assert "its typical error is 12.500; that of a straight-line rule is 14.200" in " ".join(page.split())
    for audience, form in EVERY:
        assert draw(found, audience, form)


# ── one file, the same bytes, for everybody ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("audience", AUDIENCES)
def test_a_page_is_one_file_that_fetches_nothing_and_runs_nothing(story: Facts, audience: str) -> None:
    page = draw(story, audience, "html")
    outline = Outline(page)
    assert not {tag for tag, _ in outline.elements} & {"script", "link", "img", "iframe", "object", "embed", "form"}
    for tag, attributes in outline.elements:
        assert not any(name.startswith("on") or name == "src" for name in attributes), (tag, attributes)
        assert str(attributes.get("href", "#")).startswith("#")
    assert "url(" not in page
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page


@pytest.mark.parametrize("audience", AUDIENCES)
def test_a_page_can_be_read_without_seeing_it(story: Facts, audience: str) -> None:
    page = draw(story, audience, "html")
    outline = Outline(page)
    pictures = re.findall(r"<svg xmlns.*?</svg>", page, re.S)
    assert pictures
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.attrib["role"] == "img"
        assert all((root.findtext(f"{SVG}{part}") or "").strip() for part in ("title", "desc"))
    ids = [str(attributes["id"]) for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in outline.elements:
        if "aria-labelledby" in attributes:
            assert set(str(attributes["aria-labelledby"]).split()) <= set(ids)
        if str(attributes.get("href", "")).startswith("#"):
            assert str(attributes["href"])[1:] in ids
    headers = [attributes for tag, attributes in outline.elements if tag == "th"]
    assert headers
    assert all(attributes.get("scope") in ("col", "row") for attributes in headers)
    assert [tag for tag, _ in outline.elements].count("h1") == 1
    assert ("html", {"lang": "en"}) in outline.elements


@pytest.mark.parametrize("audience", AUDIENCES)
def test_text_fits_a_terminal(story: Facts, audience: str) -> None:
    lines = draw(story, audience, "text").split("\n")
    assert max(len(line) for line in lines) <= 100
    assert lines[-1] == ""


def test_the_same_facts_give_the_same_bytes(story: Facts, tmp_path: Path) -> None:
    again = json.loads(json.dumps(story))
    for audience, form in EVERY:
        assert draw(story, audience, form) == draw(again, audience, form)
    kept = tmp_path / "facts.json"
    kept.write_text(json.dumps(story), "utf-8")
    code = (
        "import hashlib, json, sys; from tenon.report import draw; facts = json.load(open(sys.argv[1]));"
        "print(hashlib.sha256(''.join(draw(facts, a, 'html') for a in ('engineer', 'manager')).encode()).hexdigest())"
    )
    digests = set()
    for seed in ("1", "2"):
        environ = {**os.environ, "PYTHONHASHSEED": seed, "TZ": "Asia/Tokyo" if seed == "1" else "America/New_York"}
        done = subprocess.run(
            [sys.executable, "-c", code, str(kept)], env=environ, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout)
    assert len(digests) == 1


@pytest.mark.parametrize(("audience", "form"), EVERY)
@pytest.mark.parametrize(
    "left_out",
    [
        ("watch", "serving", "ledger"),
        ("version", "alias", "watch"),
        ("dataset", "features", "run", "version", "alias", "watch", "serving", "ledger"),
        ("features",),
        ("project",),
    ],
)
def test_every_page_is_drawn_from_whatever_is_there(
    without: Gather, left_out: tuple[str, ...], audience: str, form: str
) -> None:
    page = draw(without(*left_out), audience, form)
    if form == "html":
        Outline(page)
    assert "nan" not in re.findall(r"[a-z]+", page.lower())
    assert "Not known" in page or left_out in (("features",), ("project",))


def test_an_audience_or_a_format_nobody_knows_is_refused_with_the_nearest(story: Facts) -> None:
    with pytest.raises(UsageError, match="did you mean 'executive'"):
        draw(story, "executives")
    with pytest.raises(UsageError, match="expected a format of 'html', 'json', 'text', got 'pdf'"):
        draw(story, "manager", "pdf")


# ── hostile values ───────────────────────────────────────────────────────────────────────────────────────────────────

EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred",
    "\u202egpj.exe\u2066",
    '=HYPERLINK("http://evil.example","x")',
    "@SUM(1+1)*cmd|'/C calc'!A0",
    "+cmd|'/C calc'!A0",
    "-2+3+cmd|'/C calc'!A0",
    "a\nb\r\nc\td\x00e\x85f g",
    "{test.roc_auc} {% x %} {{ 7*7 }}",
]


@pytest.fixture
def hostile(store: Store, example: Any) -> Facts:
    """The story with every name and sentence in it replaced by something hostile."""
    example.fill(store)
    turn = iter(EVIL * 200)

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            kept = {name: spoil(one, name) for name, one in value.items()}
            return {
                next(turn) if key in ("packages", "params", "drift", "kinds") else name: one
                for name, one in kept.items()
            }
        if isinstance(value, list):
            return [spoil(one, key) for one in value]
        fixed = (
            "id",
            "model",
            "version",
            "run",
            "features",
            "severity",
            "code",
            "start",
            "end",
            "from",
            "to",
            "status",
        )
        named = isinstance(value, str) and key not in fixed and len(value) != 64
        return next(turn) if named else value

    for kind in ("project", "dataset", "features", "run", "version", "watch"):
        for body in store.find(kind):
            spoiled = spoil(body)
            if kind == "project":
                spoiled["models"][0]["name"] = "late"
            if kind == "features":
                spoiled["datasets"] = body["datasets"]
            if kind == "run":
                spoiled["task"] = "binary"
            store.put(kind, body["id"], spoiled, at=body["at"])
    store.event(
        "alias", "late", dict.fromkeys(("alias", "version", "previous", "reason", "by"), EVIL[2]), at=example.AT
    )
    return facts(store, "late")


@pytest.mark.parametrize("audience", AUDIENCES)
def test_hostile_values_are_harmless_in_html(hostile: Facts, audience: str) -> None:
    page = draw(hostile, audience, "html")
    outline = Outline(page)
    assert not {tag for tag, _ in outline.elements} & {"script", "img"}
    assert not any(name.startswith("on") for _, attributes in outline.elements for name in attributes)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    assert audience != "engineer" or "{test.roc_auc} {% x %} {{ 7*7 }}" in page
    cells = [data for place, data in outline.texts if place.endswith(("/td", "/th", "/td/code", "/th/code"))]
    assert cells
    assert not [cell for cell in cells if re.match(r"\s*[=@]", cell)]
    assert not [cell for cell in cells if re.match(r"\s*[+-][^\d.]", cell)]


@pytest.mark.parametrize("audience", AUDIENCES)
def test_hostile_values_are_harmless_in_a_terminal(hostile: Facts, audience: str) -> None:
    text = draw(hostile, audience, "text")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert max(len(line) for line in text.split("\n")) <= 100


@pytest.mark.parametrize("audience", AUDIENCES)
def test_hostile_values_are_harmless_in_json(hostile: Facts, audience: str) -> None:
    data = draw(hostile, audience, "json")
    assert data.isascii()
    assert not set("<>&") & set(data)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", data)
    for text in walk(json.loads(data)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
