"""What engines write of their caches under `/metrics`: how much fits, and how much is in use.

vLLM, SGLang, llama.cpp and tenon are read; one that writes none of these names says nothing, and what it has cached is
learnt from its answers alone. Sizes are tokens, shares are of 1.
"""

from __future__ import annotations

import asyncio
import re

from tenon.serving.replica import Forward, Replica, Unanswered

ANSWER_S = 2.0
PAGE_TOKENS = 32  # of tenon's own language models
IN_USE = frozenset((
    b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc", b"sglang:token_usage", b"llamacpp:kv_cache_usage_ratio",
    b"tenon_session_memory_ratio",
))  # fmt: skip
VLLM = re.compile(rb'vllm:cache_config_info\{[^}]*block_size="(\d{1,9})"[^}]*num_gpu_blocks="(\d{1,12})"')


async def metrics(replica: Replica) -> bytes:
    """Return what a replica writes under `/metrics`; nothing when it does not answer, or has no such page."""
    try:
        async with asyncio.timeout(ANSWER_S):
            answer = await replica.ask(Forward(method="GET", target="/metrics", headers=()))
            text = b"".join([part async for part in answer.chunks()])
    except (TimeoutError, Unanswered):
        return b""
    return text if answer.status == 200 else b""


def share_in_use(text: bytes) -> float:
    """Return the share of its memory for caches and sessions that is in use; 0 where nothing is said of it."""
    pages = _sum(text, b"tenon_lm_pages")
    held = (pages - _sum(text, b"tenon_lm_pages_available")) / pages if pages else 0.0
    return max([held, *(value for name, value in _values(text) if name in IN_USE)])


def cache_tokens(text: bytes) -> int:
    """Return how many tokens fit in the cache; 0 where nothing is said of it."""
    found = VLLM.search(text)
    if found:
        return int(found[1]) * int(found[2])
    return int(max(_sum(text, b"tenon_lm_pages") * PAGE_TOKENS, _sum(text, b"sglang:max_total_num_tokens")))


def _values(text: bytes) -> list[tuple[bytes, float]]:
    found = []
    for line in text.splitlines():
        name, _, value = line.rpartition(b" ")
        try:
            found.append((name.partition(b"{")[0], float(value)))
        except ValueError:
            continue
    return found


def _sum(text: bytes, wanted: bytes) -> float:
    return sum(value for name, value in _values(text) if name == wanted)
