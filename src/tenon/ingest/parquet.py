"""Parquet files of one schema joined into one, by copying their row groups and writing one footer; no value is read.

Each range of the input becomes a small Parquet file by itself, which is what makes ingest parallel and resumable.
Joining them costs a copy of the bytes: the row groups are copied as they are, and the offsets in the footer moved. The
footer is Thrift in its compact form; this module reads and writes just enough of it (structs, lists, numbers, bytes)
as a tree, so fields it does not know survive.

Source: the Apache Parquet format (parquet.thrift: FileMetaData, RowGroup, ColumnChunk, ColumnMetaData) and the Thrift
compact protocol. Page indexes hold offsets outside the footer and are left out; readers go without.

Rejected: reading the parts and writing them again (as slow as all the rest of ingest), and a dependency for it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenon.errors import CorruptError, sentence

MAGIC = b"PAR1"
BLOCK = 4 << 20
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
# The numbers of the fields that are touched, by structure.
NUM_ROWS, ROW_GROUPS, SCHEMA = 3, 4, 2
GROUP_COLUMNS, GROUP_OFFSET, GROUP_ORDINAL = 1, 5, 7
CHUNK_OFFSET, CHUNK_META, CHUNK_INDEXES = 2, 3, (4, 5, 6, 7)
META_OFFSETS = (9, 10, 11, 14)

Struct = dict[int, tuple[int, Any]]


@dataclass(slots=True)
class _Reader:
    data: bytes
    at: int = 0

    def varint(self) -> int:
        out = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            out |= (byte & 0x7F) << shift
            if byte < 0x80:
                return out
            shift += 7

    def zigzag(self) -> int:
        number = self.varint()
        return (number >> 1) ^ -(number & 1)

    def value(self, kind: int) -> Any:
        if kind in (TRUE, FALSE):
            return kind == TRUE
        if kind == BYTE:
            self.at += 1
            return self.data[self.at - 1]
        if kind in (I16, I32, I64):
            return self.zigzag()
        if kind == DOUBLE:
            self.at += 8
            return self.data[self.at - 8 : self.at]
        if kind == BINARY:
            size = self.varint()
            self.at += size
            return self.data[self.at - size : self.at]
        if kind in (LIST, SET):
            return self.list()
        if kind == STRUCT:
            return self.struct()
        raise ValueError(f"thrift type {kind}")

    def list(self) -> tuple[int, list[Any]]:
        head = self.data[self.at]
        self.at += 1
        size, kind = head >> 4, head & 0x0F
        if size == 15:
            size = self.varint()
        if kind in (TRUE, FALSE):
            self.at += size
            return kind, list(self.data[self.at - size : self.at])
        return kind, [self.value(kind) for _ in range(size)]

    def struct(self) -> Struct:
        out: Struct = {}
        number = 0
        while True:
            head = self.data[self.at]
            self.at += 1
            if head == 0:
                return out
            step, kind = head >> 4, head & 0x0F
            number = number + step if step else self.zigzag()
            out[number] = (kind, self.value(kind))


def _varint(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _write(out: bytearray, kind: int, value: Any) -> None:
    if kind == BYTE:
        out.append(value)
    elif kind in (I16, I32, I64):
        _varint(out, (value << 1) ^ (value >> 63))
    elif kind == DOUBLE:
        out += value
    elif kind == BINARY:
        _varint(out, len(value))
        out += value
    elif kind in (LIST, SET):
        inner, items = value
        out.append((min(len(items), 15) << 4) | inner)
        if len(items) >= 15:
            _varint(out, len(items))
        if inner in (TRUE, FALSE):
            out += bytes(items)
        else:
            for item in items:
                _write(out, inner, item)
    elif kind == STRUCT and isinstance(value, bytes):
        out += value  # written before
    elif kind == STRUCT:
        last = 0
        for number in sorted(value):
            inner, item = value[number]
            if inner in (TRUE, FALSE):
                inner = TRUE if item else FALSE
            if 0 < number - last < 16:
                out.append(((number - last) << 4) | inner)
            else:
                out.append(inner)
                _varint(out, (number << 1) ^ (number >> 63))
            if inner not in (TRUE, FALSE):
                _write(out, inner, item)
            last = number
        out.append(0)


def packed(tree: Struct) -> bytes:
    """Return a structure as it is written."""
    out = bytearray()
    _write(out, STRUCT, tree)
    return bytes(out)


def footer(path: Path) -> tuple[Struct, int]:
    """Return the footer of a Parquet file as a tree, and where it begins."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(size - 8, 0))
        tail = stream.read(8)
        if size < 12 or tail[4:] != MAGIC:
            raise CorruptError(sentence("a whole Parquet file", "one without its end", at=str(path)))
        (length,) = struct.unpack("<I", tail[:4])
        stream.seek(size - 8 - length)
        return _Reader(stream.read(length)).struct(), size - 8 - length


class Joining:
    """Parts of one schema becoming one Parquet file, each behind those before it; no file is held open in between."""

    __slots__ = ("_groups", "_place", "_rows", "_tree", "target")

    def __init__(self, target: Path) -> None:
        self.target = target
        self._tree: Struct = {}
        self._groups: list[bytes] = []  # as they are written: trees of thousands of columns take twenty times as much
        self._rows = 0
        self._place = target.write_bytes(MAGIC)

    def add(self, part: Path) -> None:
        """Copy the row groups of a part."""
        tree, end = footer(part)
        shift = self._place - len(MAGIC)
        if not self._tree:
            self._tree = tree
        elif tree[SCHEMA] != self._tree[SCHEMA]:
            raise CorruptError(sentence("parts of one schema", "another", at=str(part), hint="remove the parts"))
        with part.open("rb") as stream, self.target.open("r+b") as out:
            out.seek(self._place)
            stream.seek(len(MAGIC))
            left = end - len(MAGIC)
            while left and (block := stream.read(min(BLOCK, left))):
                out.write(block)
                left -= len(block)
        self._place += end - len(MAGIC)
        self._rows += tree[NUM_ROWS][1]
        for group in tree.pop(ROW_GROUPS)[1][1]:
            if group[3][1]:
                if GROUP_ORDINAL in group:
                    group[GROUP_ORDINAL] = (I16, len(self._groups) & 0x7FFF)
                self._groups.append(packed(_moved(group, shift)))

    def close(self) -> int:
        """Write the footer, durable when this returns; returns the rows of all parts."""
        self._tree[NUM_ROWS] = (I64, self._rows)
        self._tree[ROW_GROUPS] = (LIST, (STRUCT, self._groups))
        tail = packed(self._tree)
        with self.target.open("r+b") as out:
            out.seek(self._place)
            out.write(tail + struct.pack("<I", len(tail)) + MAGIC)
            out.truncate()
            out.flush()
            os.fsync(out.fileno())
        return self._rows


def join(parts: Sequence[Path], target: Path) -> int:
    """Write parts of one schema, in order, as one Parquet file, durable when this returns; returns its rows."""
    joining = Joining(target)
    for part in parts:
        joining.add(part)
    return joining.close()


def _moved(group: Struct, shift: int) -> Struct:
    """Return a row group with its offsets moved, and without page indexes."""
    if GROUP_OFFSET in group:
        group[GROUP_OFFSET] = (I64, group[GROUP_OFFSET][1] + shift)
    for chunk in group[GROUP_COLUMNS][1][1]:
        for number in CHUNK_INDEXES:
            chunk.pop(number, None)
        chunk[CHUNK_OFFSET] = (I64, chunk[CHUNK_OFFSET][1] + shift if chunk[CHUNK_OFFSET][1] else 0)
        meta = chunk[CHUNK_META][1]
        for number in META_OFFSETS:
            if number in meta and meta[number][1]:
                meta[number] = (I64, meta[number][1] + shift)
    return group
