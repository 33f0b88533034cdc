"""Counts machine instructions in a cubin by their operation codes: no disassembler knows sm_70 any more.

Volta's and Turing's instructions are 16 bytes whose lowest 12 bits are the operation and the kind of its operands.
"""

from __future__ import annotations

import struct
from collections import Counter

HMMA_884 = 0x236
"""One step of mma.m8n8k4: with float32 sums an mma is four of them."""
LOCAL = {0x983: "LDL", 0x387: "STL"}
"""What reads and writes local memory: spills, and arrays that are not in registers."""

_SIZE = 16


def operations(cubin: bytes, entry: str) -> Counter[int]:
    """Count a kernel's instructions by operation code.

    Raises
    ------
    ValueError
        If it is no cubin, or has no such kernel.
    """
    code = _section(cubin, f".text.{entry}")
    return Counter(struct.unpack_from("<Q", code, at)[0] & 0xFFF for at in range(0, len(code) - _SIZE + 1, _SIZE))


def _section(data: bytes, name: str) -> bytes:
    """Return a section of a 64-bit ELF file."""
    if data[:5] != b"\x7fELF\x02":
        raise ValueError("expected a 64-bit ELF file")
    headers, = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    rows = [struct.unpack_from("<IIQQQQ", data, headers + size * number) for number in range(count)]
    words = rows[names][4]
    for title, _, _, _, offset, length in rows:
        start = words + title
        if data[start:data.index(b"\0", start)] == name.encode():
            return data[offset:offset + length]
    raise ValueError(f"expected a section {name}")
