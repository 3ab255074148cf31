"""The pages: one to try a request with a real row, the documentation, OpenAPI, health; nothing from elsewhere."""

from __future__ import annotations

import json
import re
from typing import Any

from tenon.contract import Column
from tenon.serving import Seams


def test_the_page_to_try_a_request_holds_a_row_that_works(ask: Any) -> None:
    page = ask("GET", "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    found = re.search(r"const models = (\[.*\]);", page.raw.decode())
    assert found is not None
    (model,) = json.loads(found[1])
    assert (model["name"], model["version"], model["label"]) == ("late", "v1", "arr_delay > 30")
    assert ask.predict(model["example"]).status == 200


def test_an_example_is_made_from_the_columns_when_none_is_given(start: Any, flights: Any) -> None:
    ask = start(flights.make_service(example={}))
    schema = ask("GET", "/openapi.json").json["paths"]["/predict/late"]["post"]["requestBody"]["content"]
    example = schema["application/json"]["example"]["rows"][0]
    assert ask.predict(example).status == 200


def test_no_page_loads_anything_from_elsewhere(ask: Any) -> None:
    for path in ("/", "/docs"):
        text = ask("GET", path).raw.decode()
        assert not re.search(r"(src|href)=[\"']?(https?:)?//", text)
        assert "@import" not in text


def test_the_documentation_names_every_column_and_what_it_may_be(start: Any, flights: Any, store: Any) -> None:
    ask = start(seams=Seams(store=store, sources={"flights": flights.SOURCE}))
    text = ask("GET", "/docs").raw.decode()
    for said in (
        "POST /predict/late",
        "POST /facts/flights",
        "<code>carrier</code>",
        "one of AA, DL, UA",
        "0 to 6000",
        "arr_delay",
    ):
        assert said in text
    assert "arr_delay &gt; 30" in text


def test_names_and_values_cannot_break_out_of_a_page(start: Any, flights: Any) -> None:
    evil = "</script><script>alert(1)</script>"
    columns = [Column("carrier", description=evil), *flights.SOURCE.columns[1:]]
    ask = start(flights.make_service(version="v<1>", label=evil, example={"carrier": evil}, columns=columns))
    for path in ("/", "/docs"):
        assert "<script>alert" not in ask("GET", path).raw.decode()


def test_openapi_describes_every_door_with_its_columns(start: Any, flights: Any, store: Any) -> None:
    ask = start(seams=Seams(store=store, sources={"flights": flights.SOURCE}))
    found = ask("GET", "/openapi.json").json
    assert found["openapi"].startswith("3.1")
    assert {"/predict/late", "/labels/late", "/facts/flights", "/v2/models/late/infer", "/healthz"} <= set(
        found["paths"]
    )
    content = found["paths"]["/predict/late"]["post"]["requestBody"]["content"]["application/json"]
    row = content["schema"]["oneOf"][1]
    assert set(row["required"]) == {"carrier", "flight", "sched_dep"}
    assert row["properties"]["carrier"]["enum"] == ["AA", "DL", "UA"]
    assert row["properties"]["distance"]["maximum"] == 6000
    assert row["additionalProperties"] is False


def test_health_and_readiness(ask: Any) -> None:
    assert ask("GET", "/healthz").json == {"status": "ok"}
    assert ask("GET", "/readyz").json == {"status": "ready", "models": {"late": "v1"}}
    assert ask("HEAD", "/healthz").raw == b""
    assert ask("HEAD", "/").status == 200
