"""Bytes of a message as docs/protocol_frames.md lists them: a value a line, what it is behind it, `..` where bytes differ."""

from __future__ import annotations

import re
import struct
import textwrap
from collections.abc import Collection, Iterator

BYTES_OF_A_LINE = 12


def listing(message: bytes, differing: Collection[str] = ()) -> str:
    """Every byte of a msgpack message, in order.

    Args:
        message: One value.
        differing: Keys of maps whose numbers are other ones in every run.
    """
    lines: list[str] = []
    end = _value(message, 0, 0, "", differing, lines)
    assert end == len(message)
    return "\n".join(lines) + "\n"


def text_listing(text: bytes) -> str:
    """The bytes of a text, with the text behind them."""
    rows = [text[start : start + BYTES_OF_A_LINE] for start in range(0, len(text), BYTES_OF_A_LINE)]
    return "".join(f"{row.hex(' '):<{3 * BYTES_OF_A_LINE}} # {row.decode()}".rstrip() + "\n" for row in rows)


def pattern(listed: str) -> re.Pattern[bytes]:
    """What matches exactly the messages that a listing describes."""
    words = " ".join(line.partition("#")[0] for line in listed.splitlines()).split()
    return re.compile(b"".join(b"." if word == ".." else re.escape(bytes.fromhex(word)) for word in words), re.DOTALL)


def _value(data: bytes, at: int, depth: int, key: str, differing: Collection[str], lines: list[str]) -> int:
    """Lists the value that begins at `at`; returns where it ends."""
    kind, start, size, children = _head(data, at)
    end = start + (0 if children else size)
    body = data[start:end]
    hidden = key in differing and kind == "float of 8 bytes"
    said = kind if children else _said(kind, body, data[at])
    words = [f"{byte:02x}" for byte in data[at:start]] + [".." if hidden else f"{byte:02x}" for byte in body]
    rows = [words[i : i + BYTES_OF_A_LINE] for i in range(0, len(words), BYTES_OF_A_LINE)]
    text = "differs" if hidden else said
    for number, row in enumerate(rows):
        comment = f"# {'  ' * depth}{text}" if number == 0 else ""
        lines.append(f"{' '.join(row):<{3 * BYTES_OF_A_LINE}} {comment}".rstrip())
    name = ""
    for child in range(children * size):
        before = end
        end = _value(data, end, depth + 1, name or key, differing, lines)
        if children == 2 and child % 2 == 0:
            _, start, _, _ = _head(data, before)
            name = data[start:end].decode()
            if key in differing:
                name = key
    return end


def _head(data: bytes, at: int) -> tuple[str, int, int, int]:
    """(what it is, where its body begins, bytes of the body or entries, values per entry)."""
    first = data[at]
    if first < 0x80 or first >= 0xE0:
        return "integer", at + 1, 0, 0
    if first < 0x90:
        return f"map of {first & 15}", at + 1, first & 15, 2
    if first < 0xA0:
        return f"list of {first & 15}", at + 1, first & 15, 1
    if first < 0xC0:
        return f"text of {first & 31} bytes", at + 1, first & 31, 0
    if first in (0xC0, 0xC2, 0xC3):
        return {0xC0: "nil", 0xC2: "false", 0xC3: "true"}[first], at + 1, 0, 0
    numbers = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
    if first in numbers:
        return f"integer of {numbers[first]} bytes", at + 1, numbers[first], 0
    if first == 0xCB:
        return "float of 8 bytes", at + 1, 8, 0
    widths = {0xC4: 1, 0xC5: 2, 0xD9: 1, 0xDA: 2, 0xDC: 2, 0xDE: 2}
    size = int.from_bytes(data[at + 1 : at + 1 + widths[first]], "big")
    begin = at + 1 + widths[first]
    if first in (0xDC, 0xDE):
        return f"{'list' if first == 0xDC else 'map'} of {size}", begin, size, 1 if first == 0xDC else 2
    return f"{size} bytes" if first < 0xC6 else f"text of {size} bytes", begin, size, 0


def _said(kind: str, body: bytes, first: int) -> str:
    if kind == "integer":
        return str(first if first < 0x80 else first - 256)
    if kind.startswith("integer"):
        return str(int.from_bytes(body, "big"))
    if kind.startswith("float"):
        return str(struct.unpack(">d", body)[0])
    if kind.startswith("text"):
        return f'"{body.decode()}"'
    if kind.endswith("bytes"):
        plain = re.fullmatch(rb"[a-z_]+", body)
        return f'{kind}: "{body.decode()}"' if plain else kind
    return kind


def fenced(page: str, title: str) -> Iterator[str]:
    """The text blocks below a heading."""
    section = re.split(r"^## ", page.split(f"\n## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    yield from (textwrap.dedent(block) for block in re.findall(r"```text\n(.*?)```", section, re.DOTALL))
