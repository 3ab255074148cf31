"""Network computes the next tokens' logits for rows of many texts at once, and no bit of a row depends on its company.

A row is one token of one text at one position, whether it belongs to a prompt or was just generated. Plain decoding
feeds one row at a time, continuous batching any mixture; both must say the same, and floating point does not
add up the same in another order. So every sum here has one order, whatever else is computed beside it:

- a linear layer sees its rows padded to a multiple of ROWS: matrix kernels of one family sum over the width in one
  order from four rows up (one to three rows take another kernel, with other bits);
- attention sums page by page (PAGE keys each) and then over the pages from first to last, so that how far other texts
  have come changes nothing ("fixed split", He et al., Defeating Nondeterminism in LLM Inference, 2025);
- norms and the rest look at one row alone.

That the kernels of this machine keep to it is not taken on trust: `prove` runs the same rows in different company when
the engine starts and compares bits. If they differ, every step is computed in the one largest shape, and proven again.
Rejected: PyTorch's `scaled_dot_product_attention` (its blocks follow the number of queries), padding every text to
the longest (it costs the longest, and its sums move with it), float64 (rarer differences are still differences).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tenon.errors import ConfigError, InputError, missing_extra, sentence
from tenon.serving.lm.bundle import Bundle, Shape
from tenon.serving.lm.cache import PAGE

ROWS = 8  # rows of a linear layer come in multiples of this
FEW, MANY = 4, 32  # rows of one text that attend together: while it is generated, and while its prompt is read
NEVER = -1e30  # a score that no softmax notices, and whose difference to itself is a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Tokens of one text to compute: the first one's position, and the pages of the text so far, these included."""

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The shapes that rows are brought into: multiples of `rows`, and groups of `few` or `many` for attention."""

    rows: int
    few: int
    many: int


def torch_module() -> Any:
    """Import torch, or say how to get it."""
    try:
        import torch
    except ImportError as error:
        raise missing_extra("torch", "torch", "serve a language model") from error
    return torch


class Network:
    """The weights and the pages of keys and values on one device. Used by one thread."""

    def __init__(self, bundle: Bundle, pages: int, step_rows: int, *, device: str = "cpu") -> None:
        self.torch = torch = torch_module()
        self.shape = shape = bundle.shape
        self.device = torch.device(device)
        self.step_rows = step_rows
        weights = load(bundle, self.device)
        self.embedding = weights["model.embed_tokens.weight"]
        self.head = self.embedding if shape.tied else weights["lm_head.weight"]
        self.norm = weights["model.norm.weight"]
        self.layers = [_layer(weights, number) for number in range(shape.layers)]
        size = shape.head
        steps = torch.arange(0, size, 2, device=self.device) / size
        angle = torch.outer(torch.arange(shape.context, device=self.device), shape.theta ** (-steps)).repeat(1, 2)
        self.cos, self.sin = angle.cos()[:, None], angle.sin()[:, None]
        # One page more than is handed out: rows that only fill a shape up write there, and nobody reads it.
        room = (shape.layers, pages + 1, shape.kv_heads, PAGE, size)
        self.keys = torch.zeros(room, device=self.device)
        self.values = torch.zeros(room, device=self.device)
        self.spare = pages
        self.form = Form(rows=ROWS, few=FEW, many=MANY)
        self.exact = self._settle(pages)

    # ── one step ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def step(self, parts: Sequence[Part], wanted: Sequence[int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Compute the parts; return the logits of the rows numbered in `wanted`, and the last hidden state of all rows.

        Rows are numbered through all parts in order. Keys and values are written to the pages as it goes; parts of one
        step belong to different texts, and no part writes to a page that another one reads.
        """
        torch = self.torch
        with torch.inference_mode():
            plan = _plan(parts, self.form, self.spare, self.step_rows)
            place = {name: torch.from_numpy(array).to(self.device) for name, array in plan.arrays.items()}
            cos, sin = self.cos[place["positions"]], self.sin[place["positions"]]
            x = self.embedding[place["tokens"]]
            groups = [{name: torch.from_numpy(a).to(self.device) for name, a in g.items()} for g in plan.groups]
            for number, layer in enumerate(self.layers):
                h = self._normed(x, layer["before"])
                q, k, v = (self._linear(h, layer[name]).unflatten(-1, (-1, self.shape.head)) for name in "qkv")
                self.keys[number, place["page"], :, place["offset"]] = _turned(torch, k, cos, sin)
                self.values[number, place["page"], :, place["offset"]] = v
                seen = self._attend(number, _turned(torch, q, cos, sin), groups)
                x = x + self._linear(seen, layer["o"])
                h = self._normed(x, layer["between"])
                gate = torch.nn.functional.silu(self._linear(h, layer["gate"]))
                x = x + self._linear(gate * self._linear(h, layer["up"]), layer["down"])
            x = self._normed(x, self.norm)
            rows = list(wanted) + [0] * (-len(wanted) % self.form.rows)
            logits = self._linear(x[rows], self.head)[: len(wanted)] if wanted else x[:0]
            return logits.cpu().numpy(), x[: plan.rows].cpu().numpy()

    def _linear(self, x: Any, weight: Any) -> Any:
        return self.torch.nn.functional.linear(x, weight)

    def _normed(self, x: Any, weight: Any) -> Any:
        return self.torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, self.shape.eps)

    def _attend(self, number: int, q: Any, groups: Sequence[Mapping[str, Any]]) -> Any:
        """Return what each row sees of its own text: a softmax over the pages, put together from first to last.

        For one group of m rows and one page, `part` is the sum of values by exp(score - top), `mass` that of ones.
        """
        torch, shape = self.torch, self.shape
        share = shape.heads // shape.kv_heads
        out = torch.zeros_like(q)
        for group in groups:
            rows, pages, known, at = (group[name] for name in ("rows", "pages", "known", "at"))
            texts, m = rows.shape
            deep = at.shape[1]
            keys, values = self.keys[number, pages], self.values[number, pages]  # [pair, kv head, key, size]
            # the queries of one key head stand together: [text, kv head, share * m, size]
            own = q[rows].view(texts, m, shape.kv_heads, share, shape.head)
            own = own.permute(0, 2, 3, 1, 4).reshape(texts, shape.kv_heads, share * m, shape.head)
            asked = own[group["text"]].flatten(0, 1)
            scores = torch.bmm(asked, keys.flatten(0, 1).transpose(1, 2)) * shape.head**-0.5
            scores = scores.view(-1, shape.kv_heads, share, m, PAGE).masked_fill_(~known[:, None, None], NEVER)
            top = scores.amax(-1, keepdim=True)
            weights = (scores - top).exp_()
            mass = weights.sum(-1, keepdim=True)
            part = torch.bmm(weights.view(-1, share * m, PAGE), values.flatten(0, 1)).view(*mass.shape[:-1], -1)
            # from pairs of text and page to [text, depth]; where a text has no more pages stands an empty one
            none = at < 0
            slot = at.clamp(min=0)
            tops = top[slot].masked_fill(none[:, :, None, None, None, None], NEVER)
            scale = (tops - tops.amax(1, keepdim=True)).exp()
            total, weight = torch.zeros_like(part[:texts]), torch.zeros_like(mass[:texts])
            for depth in range(deep):
                total = total + scale[:, depth] * part[slot[:, depth]]
                weight = weight + scale[:, depth] * mass[slot[:, depth]]
            seen = (total / weight).permute(0, 3, 1, 2, 4).reshape(texts * m, shape.heads, shape.head)
            real = group["real"]
            out[rows.flatten()[real]] = seen[real]
        return out.flatten(1)

    # ── proof ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _settle(self, pages: int) -> bool:
        """Find the shapes in which rows keep their bits: the quick ones, else always the largest; say if there are."""
        one_size = -(-self.step_rows // ROWS) * ROWS
        for form in (self.form, Form(rows=one_size, few=MANY, many=MANY)):
            self.form = form
            if self.prove(pages):
                return True
        return False

    def prove(self, pages: int) -> bool:
        """Say whether a text's logits have the same bits read at once, token by token, and in company.

        Writes to the first pages; for use before any text is served.
        """
        length = min(2 * PAGE + 7, self.shape.context, PAGE * (pages // 2), self.step_rows)
        texts = np.random.default_rng(1).integers(0, self.shape.vocab, (2, length)).tolist()
        need = -(-length // PAGE)
        own = [list(range(need)), list(range(need, 2 * need))]
        last = length - 1
        whole = self.step([Part(tokens=texts[0], start=0, pages=own[0])], [0, last])[0]
        first = self.step([Part(tokens=texts[0][:1], start=0, pages=own[0])], [0])[0]
        if first.tobytes() != whole[:1].tobytes():
            return False
        half = length // 2
        for at in range(1, length):
            mine = Part(tokens=texts[0][at : at + 1], start=at, pages=own[0])
            begin = 0 if at == 1 else half if at == length // 3 else None
            other = texts[1][begin : begin + half] if begin is not None else []
            company = [Part(tokens=other, start=begin, pages=own[1])] if begin is not None and other else []
            room = len(other) + 1 <= self.step_rows
            apart = self.step([*(company if room else []), mine], [len(other) if room else 0])[0]
        return apart.tobytes() == whole[1:].tobytes()


def _layer(weights: Mapping[str, Any], number: int) -> dict[str, Any]:
    stem = f"model.layers.{number}."
    names = {
        "before": "input_layernorm",
        "between": "post_attention_layernorm",
        **{name: f"self_attn.{name}_proj" for name in "qkvo"},
        **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
    }
    return {own: weights[f"{stem}{name}.weight"] for own, name in names.items()}


def _turned(torch: Any, x: Any, cos: Any, sin: Any) -> Any:
    """Turn each head's halves by the position's angle (rotary positions, in Llama's order)."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


# ── rows to shapes ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The rows of a step as arrays, and the groups that attend together; `rows` of them are real."""

    rows: int
    arrays: Mapping[str, NDArray[Any]]
    groups: Sequence[Mapping[str, NDArray[Any]]]


def _plan(parts: Sequence[Part], form: Form, spare: int, most: int) -> Plan:
    """Lay the rows of all parts out: token, position, page and offset of each, filled up to a multiple."""
    tokens: list[int] = []
    positions: list[int] = []
    pages: list[int] = []
    few: list[tuple[Part, int, int, int]] = []  # part, its first row in the step, begin and end within the part
    many: list[tuple[Part, int, int, int]] = []
    for part in parts:
        first = len(tokens)
        count = len(part.tokens)
        size = form.few if count <= form.few else form.many
        into = few if size == form.few else many
        into.extend((part, first, at, min(at + size, count)) for at in range(0, count, size))
        tokens += part.tokens
        positions += range(part.start, part.start + count)
        pages += [part.pages[position // PAGE] for position in range(part.start, part.start + count)]
    rows = len(tokens)
    assert 0 < rows <= most, rows
    fill = -rows % form.rows
    arrays = {
        "tokens": np.array(tokens + [0] * fill, np.int64),
        "positions": np.array(positions + [0] * fill, np.int64),
        "page": np.array(pages + [spare] * fill, np.int64),
    }
    arrays["offset"] = arrays["positions"] % PAGE
    groups = [_group(found, size) for found, size in ((few, form.few), (many, form.many)) if found]
    return Plan(rows=rows, arrays=arrays, groups=groups)


def _group(found: Sequence[tuple[Part, int, int, int]], m: int) -> dict[str, NDArray[Any]]:
    """Lay out groups of m rows: which rows, and every pair of a group with a page that its rows may see.

    A group with fewer rows repeats its last one, whose result is not taken; `known` says which keys a row may see.
    """
    depths = [-(-(part.start + end) // PAGE) for part, _, _, end in found]
    pairs = sum(depths)
    rows = np.empty((len(found), m), np.int64)
    real = np.zeros((len(found), m), bool)
    positions = np.empty((len(found), m), np.int64)
    at = np.full((len(found), max(depths)), -1, np.int64)
    text, pages, base = np.empty(pairs, np.int64), np.empty(pairs, np.int64), np.empty(pairs, np.int64)
    pair = 0
    for number, ((part, first, begin, end), depth) in enumerate(zip(found, depths, strict=True)):
        inside = np.minimum(np.arange(begin, begin + m), end - 1)
        rows[number] = first + inside
        positions[number] = part.start + inside
        real[number, : end - begin] = True
        at[number, :depth] = np.arange(pair, pair + depth)
        text[pair : pair + depth] = number
        pages[pair : pair + depth] = part.pages[:depth]
        base[pair : pair + depth] = np.arange(depth) * PAGE
        pair += depth
    known = base[:, None, None] + np.arange(PAGE) <= positions[text][:, :, None]
    return {"rows": rows, "real": np.flatnonzero(real), "at": at, "text": text, "pages": pages, "known": known}


# ── weights ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def expected(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the name and size of every weight of a network of this shape."""
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    layer = {
        "input_layernorm": (shape.width,),
        "post_attention_layernorm": (shape.width,),
        "self_attn.q_proj": (queries, shape.width),
        "self_attn.k_proj": (keys, shape.width),
        "self_attn.v_proj": (keys, shape.width),
        "self_attn.o_proj": (shape.width, queries),
        "mlp.gate_proj": (shape.hidden, shape.width),
        "mlp.up_proj": (shape.hidden, shape.width),
        "mlp.down_proj": (shape.width, shape.hidden),
    }
    wanted: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, shape.width)}
    for number in range(shape.layers):
        wanted.update({f"model.layers.{number}.{name}.weight": size for name, size in layer.items()})
    wanted["model.norm.weight"] = (shape.width,)
    if not shape.tied:
        wanted["lm_head.weight"] = (shape.vocab, shape.width)
    return wanted


def load(bundle: Bundle, device: Any) -> dict[str, Any]:
    """Read the weights as float32; InputError names the first that is missing, of another size, or no number."""
    torch = torch_module()
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise missing_extra("safetensors", "torch", "read a language model's weights") from error
    wanted = expected(bundle.shape)
    place = str(bundle.weights)
    found: dict[str, Any] = {}
    try:
        with safe_open(place, framework="pt") as file:
            names = set(file.keys())
            missing = sorted(set(wanted) - names)
            if missing:
                got = f"a file without {len(missing)} of them, the first '{missing[0]}'"
                raise InputError(sentence(f"{len(wanted)} weights", got, at=place, hint="export the model again"))
            for name, size in wanted.items():
                weight = file.get_tensor(name).to(device=device, dtype=torch.float32)
                if tuple(weight.shape) != size:
                    raise InputError(sentence(f"a weight of {size}", f"{tuple(weight.shape)}", at=f"{place}: {name}"))
                if not bool(torch.isfinite(weight).all()):
                    raise InputError(sentence("finite weights", "NaN or infinity", at=f"{place}: {name}"))
                found[name] = weight.contiguous()
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(sentence("weights as safetensors", str(error), at=place, hint="export again")) from error
    return found


def check_room(shape: Shape, pages: int, place: str) -> None:
    """Raise ConfigError when one text of the whole context does not fit into the pages."""
    need = -(-shape.context // PAGE)
    if pages < need:
        size = need * shape.page_bytes(PAGE)
        got = f"{pages} pages of {PAGE} tokens"
        hint = f"set limits.language.cache_bytes to {size:,} or more"
        raise ConfigError(sentence(f"room for a context of {shape.context:,} tokens", got, at=place, hint=hint))
