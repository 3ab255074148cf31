"""OpenAI's own client works unchanged, wrong requests are told what is wrong, and nobody holds up anybody else."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenon.config import ServeConfig
from tenon.serving import Settings

from ...waiting import eventually

Serve = Callable[..., str]


def imported() -> Any:
    """The client's package, which takes seconds to import: where it is used and not where tests are collected."""
    return pytest.importorskip("openai", reason="openai, a package of `dev`, is not installed")


def client(url: str, key: str = "any") -> Any:
    return imported().OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def post(url: str, path: str, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def metric(url: str, name: str) -> float:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((name + "{", name + " ")))


# ── the real client ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_models_are_listed_and_described(url: str) -> None:
    with client(url) as asking:
        (only,) = asking.models.list().data
        assert (only.id, only.object, only.owned_by) == ("tiny", "model", "tenon")
        assert asking.models.retrieve("tiny").id == "tiny"


def test_a_completion_streamed_or_whole_is_the_same_and_counts_its_tokens(url: str) -> None:
    how: dict[str, Any] = {"model": "tiny", "prompt": "in the end", "temperature": 0, "max_tokens": 25}
    with client(url) as asking:
        whole = asking.completions.create(**how)
        events = list(asking.completions.create(**how, stream=True, stream_options={"include_usage": True}))
    assert "".join(event.choices[0].text for event in events if event.choices) == whole.choices[0].text
    assert events[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == events[-1].usage.completion_tokens == 25
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 25
    assert whole.id.startswith("cmpl-") and whole.system_fingerprint


def test_a_conversation_is_answered_and_its_second_turn_finds_the_first_in_the_cache(url: str) -> None:
    turns: list[Any] = [
        {"role": "system", "content": "be kind " * 5},
        {"role": "user", "content": "tell me of it " * 4},
    ]
    with client(url) as asking:
        first = asking.chat.completions.create(model="tiny", messages=turns, temperature=0, max_completion_tokens=8)
        said = first.choices[0].message
        assert said.role == "assistant" and first.choices[0].finish_reason == "length"
        turns += [{"role": "assistant", "content": said.content}, {"role": "user", "content": "more"}]
        second = asking.chat.completions.create(model="tiny", messages=turns, temperature=0, max_tokens=4)
        assert second.usage.prompt_tokens_details.cached_tokens >= 64
        stream = asking.chat.completions.create(model="tiny", messages=turns, temperature=0, max_tokens=4, stream=True)
        deltas = [event.choices[0].delta for event in stream]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == second.choices[0].message.content


def test_several_choices_differ_and_the_same_seed_says_the_same(url: str) -> None:
    how: dict[str, Any] = {"model": "tiny", "prompt": "the", "seed": 4, "n": 3, "max_tokens": 12}
    with client(url) as asking:
        first, again = (asking.completions.create(**how) for _ in range(2))
        streamed = ["", "", ""]
        for event in asking.completions.create(**how, stream=True):
            streamed[event.choices[0].index] += event.choices[0].text
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices] == streamed
    assert len(set(texts)) == 3


def test_a_stop_string_ends_the_text_before_it(url: str) -> None:
    how: dict[str, Any] = {"model": "tiny", "prompt": "there and", "temperature": 0, "max_tokens": 40}
    with client(url) as asking:
        whole = asking.completions.create(**how).choices[0].text
        stop = whole[12:15]
        cut = asking.completions.create(**how, stop=[stop, "never said"]).choices[0]
        events = [event.choices[0] for event in asking.completions.create(**how, stop=stop, stream=True)]
    assert cut.text == whole.split(stop)[0] == "".join(event.text for event in events)
    assert cut.finish_reason == events[-1].finish_reason == "stop"


def test_texts_are_embedded_alike_in_both_encodings(url: str) -> None:
    with client(url) as asking:
        plain = asking.embeddings.create(model="tiny", input=["in the end", "other"], encoding_format="float")
        packed = asking.embeddings.create(model="tiny", input="in the end")  # the client asks for base64 of itself
    assert len(plain.data) == 2 and len(plain.data[0].embedding) == 32
    assert plain.data[0].embedding == pytest.approx(packed.data[0].embedding, abs=1e-6)
    assert sum(value * value for value in plain.data[0].embedding) == pytest.approx(1)


# ── wrong requests ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "body", "at", "words"),
    [
        ("completions", {"prompt": ""}, "$.model", "name of a model"),
        ("completions", {"model": "tiny", "temprature": 1}, "$.temprature", "did you mean 'temperature'"),
        ("completions", {"model": "tiny", "temperature": "hot"}, "$.temperature", "number from 0 to 2"),
        ("completions", {"model": "tiny", "top_p": 0}, "$.top_p", "1e-06 to 1"),
        ("completions", {"model": "tiny", "n": 9}, "$.n", "from 1 to 8"),
        ("completions", {"model": "tiny", "max_tokens": 0}, "$.max_tokens", "whole number"),
        ("completions", {"model": "tiny", "max_tokens": 999}, "$.max_tokens", "the context is 256"),
        ("completions", {"model": "tiny", "prompt": "x" * 900}, "$.prompt", "at most 255 tokens"),
        ("completions", {"model": "tiny", "prompt": [1, 2, 5000]}, "$.prompt[2]", "from 0 to 271"),
        ("completions", {"model": "tiny", "prompt": ["a", 5]}, "$.prompt[1]", "a text or a list of tokens"),
        ("completions", {"model": "tiny", "prompt": []}, "$.prompt", "1 to 64"),
        ("completions", {"model": "tiny", "stop": ["a"] * 5}, "$.stop", "at most 4"),
        ("completions", {"model": "tiny", "stop": [""]}, "$.stop[0]", "1 to 64 characters"),
        ("completions", {"model": "tiny", "logprobs": 5}, "$.logprobs", "expected null"),
        ("completions", {"model": "tiny", "seed": 1.5}, "$.seed", "whole number"),
        ("completions", {"model": "tiny", "stream_options": {}}, "$.stream_options", "stream true"),
        ("chat/completions", {"model": "tiny"}, "$.messages", "at least one message"),
        ("chat/completions", {"model": "tiny", "messages": [1]}, "$.messages[0]", "role and content"),
        ("chat/completions", {"model": "tiny", "messages": [{"role": "x"}]}, "$.messages[0].role", "'assistant'"),
        (
            "chat/completions",
            {"model": "tiny", "messages": [{"role": "user", "content": "<|endoftext|>"}]},
            "$.messages[0].content",
            "special token",
        ),
        (
            "chat/completions",
            {"model": "tiny", "messages": [{"role": "user", "content": ""}], "tools": [{"type": "function"}]},
            "$.tools",
            "nothing else",
        ),
        ("embeddings", {"model": "tiny", "input": 5}, "$.input", "a text"),
        ("embeddings", {"model": "tiny", "input": "a", "dimensions": 8}, "$.dimensions", "expected null"),
    ],
)
def test_a_wrong_request_is_told_where_what_was_expected_and_what_came(
    url: str, path: str, body: dict[str, Any], at: str, words: str
) -> None:
    status, answer = post(url, f"/v1/{path}", body)
    error = answer["error"]
    assert (status, error["path"], error["type"]) == (400, at, "invalid_request_error")
    assert words in error["message"] and error["expected"] and "got" in error


def test_the_client_raises_its_own_errors(serve_tiny: Serve) -> None:
    url = serve_tiny(Settings(serve=ServeConfig(token="secret")))
    openai = imported()
    with client(url, "wrong") as asking, pytest.raises(openai.AuthenticationError):
        asking.models.list()
    with client(url, "secret") as asking:
        assert asking.models.list().data
        with pytest.raises(openai.NotFoundError, match="tiny"):
            asking.completions.create(model="tin", prompt="")
        with pytest.raises(openai.BadRequestError, match="context"):
            asking.completions.create(model="tiny", prompt="", max_tokens=1000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "prompt",
    "messages",
    "input",
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "max_tokens",
    "stream",
    "logit_bias",
)


@given(
    st.sampled_from(("completions", "chat/completions", "embeddings")),
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_is_answered_or_refused_and_never_a_fault_of_ours(
    url: str, path: str, body: dict[str, Any]
) -> None:
    body = {"model": "tiny", "max_tokens": 1, **body}
    if path == "embeddings":
        del body["max_tokens"]
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    connection.request("POST", f"/v1/{path}", json.dumps(body))
    assert connection.getresponse().status in (200, 400)
    connection.close()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 5000, b'{"model": "tiny", "prompt": "\\ud800"}'])
def test_what_is_no_json_object_is_refused(url: str, body: bytes) -> None:
    status, answer = post(url, "/v1/completions", body)
    assert status in (200, 400) and ("choices" in answer or answer["error"]["message"])


# ── many at once ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_too_many_at_once_are_sent_away_with_a_time_to_come_back(serve_tiny: Serve) -> None:
    url = serve_tiny(requests=4)

    def one(_: int) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
        how = {"model": "tiny", "prompt": "x", "max_tokens": 200, "seed": 1, "n": 2}
        connection.request("POST", "/v1/completions", json.dumps(how))
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status, answer.getheader("retry-after")

    with ThreadPoolExecutor(8) as pool:
        came = list(pool.map(one, range(8)))
    assert {status for status, _ in came} == {200, 429}
    assert all(after == "1" for status, after in came if status == 429)
    status, answer = post(url, "/v1/completions", {"model": "tiny", "prompt": ["a"] * 5})
    assert (status, answer["error"]["type"]) == (413, "invalid_request_error")


def raw(url: str, body: dict[str, Any]) -> socket.socket:
    """Send a request and return the socket, unread, with a small window."""
    host, _, port = url.removeprefix("http://").partition(":")
    sock = socket.create_connection((host, int(port)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
    sock.sendall(head.encode() + data)
    return sock


def idle(url: str) -> bool:
    return metric(url, "tenon_lm_running") + metric(url, "tenon_lm_waiting") == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_that_vanishes_is_taken_out_of_the_batch(serve_tiny: Serve, stream: bool) -> None:
    url = serve_tiny(batch=2)
    how = {"model": "tiny", "prompt": "x", "max_tokens": 250, "seed": 3, "n": 8, "stream": stream}
    for _ in range(4):
        raw(url, how).close()
    assert eventually(lambda: idle(url), 10)
    assert metric(url, "tenon_lm_texts_total") == 32
    assert metric(url, "tenon_lm_new_tokens_total") < 32 * 250
    assert metric(url, "tenon_lm_pages_available") == metric(url, "tenon_lm_pages")


def test_a_reader_who_does_not_read_holds_up_nobody(serve_tiny: Serve) -> None:
    url = serve_tiny()
    how = {"model": "tiny", "prompt": "x", "max_tokens": 250, "seed": 3, "n": 8, "stream": True}
    slow = [raw(url, how) for _ in range(3)]
    with client(url) as asking:
        began = time.monotonic()
        said = asking.completions.create(model="tiny", prompt="hello", temperature=0, max_tokens=5)
        assert said.usage.completion_tokens <= 5 and time.monotonic() - began < 10
    assert eventually(lambda: idle(url), 20), "the texts of a slow reader end and free their pages unread"
    for sock in slow:
        sock.close()
