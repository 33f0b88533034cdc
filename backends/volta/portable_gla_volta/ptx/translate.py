"""PTX to C++: a function that one thread runs, on the emulator's primitives."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence

from portable_gla_volta.ptx.parse import (
    Instruction,
    Kernel,
    Label,
    Local,
    PtxError,
    Registers,
    Scope,
    Statement,
    parse,
)

__all__ = ["PtxError", "translate"]

_REGISTERS = {"pred": "bool", "b16": "uint16_t", "b32": "uint32_t", "f32": "float", "b64": "uint64_t"}
_TYPES = {"f32": "float", "pred": "bool",
          **{f"{letter}{size}": f"{'' if letter == 's' else 'u'}int{size}_t"
             for letter in "sub" for size in (8, 16, 32, 64)}}
_SPECIAL = {"%tid.x": "(uint32_t)thread()", "%ctaid.x": "(uint32_t)block()", "%laneid": "(uint32_t)lane()"}
_COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">",
             "hs": ">="}
_NEGATED = {"equ": "!=", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}  # unordered: the opposite does not hold
_INTEGER = "(?P<t>[sub](?:16|32|64))"


class Translation:
    """The C++ of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.registers = {name: statement.kind for statement in kernel.body if isinstance(statement, Registers)
                          for name in _declared(statement)}
        self.locals = {statement.name for statement in kernel.body if isinstance(statement, Local)}

    def text(self) -> str:
        """Return the source of a shared object that the emulator's machine can run."""
        kernel = self.kernel
        body = "\n".join(self._counted(kernel.body))
        # Tens of thousands of variables: not to optimise takes a fraction of the time.
        return (f'#pragma GCC optimize("O0")\n#include "instructions.h"\nusing namespace ptx;\n'
                f"struct Parameter {{ unsigned char byte[{kernel.size}]; }};\n"
                f'static const char *const file = "{kernel.name}.ptx";\n'
                'extern "C" __attribute__((visibility("default"), used)) long long instructions_run = 0;\n'
                f"KERNEL({kernel.name}, {kernel.threads}, 1, Parameter) {{\n{body}\n}}\n")

    def _counted(self, body: Sequence[Statement]) -> Iterator[str]:
        """Write the statements; at the start of each stretch that is run as a whole, how many instructions it has."""
        lengths, start = {0: 0}, 0
        for number, statement in enumerate(body):
            if isinstance(statement, Label):
                start = number
                lengths[start] = 0
            elif isinstance(statement, Instruction):
                lengths[start] += _issued(statement)
                if statement.name in ("bra", "ret"):
                    start = number + 1
                    lengths[start] = 0
        for number, statement in enumerate(body):
            if isinstance(statement, Label):
                yield self._statement(statement)
            if lengths.get(number):
                yield f"instructions_run += {lengths[number]};"
            if not isinstance(statement, Label):
                yield self._statement(statement)

    def _statement(self, statement: Statement) -> str:
        if isinstance(statement, Label):
            return f"{_label(statement.name)}:;"
        if isinstance(statement, Scope):
            return "{" if statement.opens else "}"
        if isinstance(statement, Local):
            return f"alignas(16) unsigned char local_{statement.name}[{statement.size}];"
        if isinstance(statement, Registers):
            if statement.kind not in _REGISTERS:
                raise PtxError(f"a register of type {statement.kind}")
            return f"{_REGISTERS[statement.kind]} {', '.join(map(_register, _declared(statement)))};"
        code = self._instruction(statement)
        if statement.guard:
            code = f"if ({'!' if statement.negated else ''}{_register(statement.guard)}) {{ {code} }}"
        return code

    def _instruction(self, one: Instruction) -> str:
        name = ".".join((one.name, *one.parts))
        match = _match(name)
        if match is None:
            raise PtxError(f"line {one.line}: no rule for {name} {', '.join(one.operands)}")
        write, found = match
        return write(self, found, one)

    def value(self, operand: str, kind: str) -> str:
        """Write an operand as a value of a type."""
        bits, declared = self._bits(operand, kind), self.registers.get(operand)
        if kind == "pred" or declared == kind == "f32":
            return bits
        if declared == "f32":
            return f"({_TYPES[kind]})float_to_bits({bits})"
        if declared in ("b16", "b32", "b64") and kind != "f32":  # as in C, a wider register's upper bits are dropped
            return bits if _TYPES[kind] == _REGISTERS[declared] else f"({_TYPES[kind]}){bits}"
        if declared is None and kind != "f32" and not operand.startswith("0f"):
            return f"({_TYPES[kind]}){bits}"
        return f"as<{_TYPES[kind]}>({bits})"

    def assign(self, operand: str, kind: str, value: str) -> str:
        """Write a value of a type into a register."""
        declared = self.registers.get(operand, "")
        if declared not in _REGISTERS:
            raise PtxError(f"the register {operand}")
        if declared == kind or (kind[0] in "sub" and declared == f"b{kind[1:]}"):
            return f"{_register(operand)} = {value};"
        if declared == "f32":
            return f"{_register(operand)} = bits_to_float({value});"
        return f"put({_register(operand)}, {value});"

    def _bits(self, operand: str, kind: str) -> str:
        if operand in self.registers:
            return _register(operand)
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", operand):
            return f"0x{operand[2:]}u"
        if re.fullmatch(r"-?\d+U?|0x[0-9a-fA-F]+U?", operand):
            number = int(operand.rstrip("U"), 0)
            return "true" if kind == "pred" and number else "false" if kind == "pred" else f"{number % 2**64}ull"
        if operand in _SPECIAL:
            return _SPECIAL[operand]
        if operand in self.locals:
            return f"(uint64_t)local_{operand}"
        if operand in (*self.kernel.shared, self.kernel.parameter):
            return "0u"  # addresses in these begin at 0: dynamic shared memory is all there is
        raise PtxError(f"the operand {operand}")

    def address(self, operand: str, kind: str) -> str:
        """Write the sum in brackets."""
        found = re.fullmatch(r"\[\s*([%\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if found is None:
            raise PtxError(f"the address {operand}")
        return f"{self.value(found[1], kind)} + {int(found[2] or 0)}"


def translate(text: str) -> str:
    """Translate a module of one kernel.

    Raises
    ------
    PtxError
        For anything that no rule covers.
    """
    return Translation(parse(text)).text()


def _issued(one: Instruction) -> int:
    """Estimate how many machine instructions of sm_70 an instruction of PTX becomes."""
    if one.name in ("cvta", "mov"):
        return 0  # registers are renamed
    if one.name == "mma":
        return 4
    return 2 if one.parts and one.parts[-1][1:] == "64" and one.name not in ("ld", "st", "setp") else 1


def _declared(statement: Registers) -> list[str]:
    return [f"{statement.name}{number}" for number in range(statement.number)] or [statement.name]


def _register(name: str) -> str:
    return "r_" + name.replace("%", "")


def _label(name: str) -> str:
    return "to_" + name.replace("$", "_")


_Write = Callable[[Translation, "re.Match[str]", Instruction], str]
_RULES: list[tuple[re.Pattern[str], _Write]] = []


@functools.cache
def _match(name: str) -> tuple[_Write, re.Match[str]] | None:
    for pattern, write in _RULES:
        found = pattern.fullmatch(name)
        if found:
            return write, found
    return None


def _rule(pattern: str) -> Callable[[_Write], _Write]:
    def add(write: _Write) -> _Write:
        _RULES.append((re.compile(pattern), write))
        return write

    return add


def _computed(pattern: str, expression: str, into: str = "") -> None:
    """Add a rule for ``d = expression`` of type t, or ``into``: {a}, {b}, {c} are operands, {n} the last as u32."""

    @_rule(pattern)
    def write(code: Translation, found: re.Match[str], one: Instruction) -> str:
        kind = found["t"]
        given = {letter: code.value(operand, kind) for letter, operand in zip("abc", one.operands[1:], strict=False)}
        if "{n}" in expression:
            given["n"] = code.value(one.operands[-1], "u32")
        return code.assign(one.operands[0], into or kind, expression.format(t=_TYPES[kind], **given))


_computed(r"add(?:\.rn)?\.(?P<t>f32)", "{a} + {b}")
_computed(r"sub(?:\.rn)?\.(?P<t>f32)", "{a} - {b}")
_computed(r"mul(?:\.rn)?\.(?P<t>f32)", "{a} * {b}")
_computed(r"div\.rn\.(?P<t>f32)", "{a} / {b}")
_computed(r"rcp\.rn\.(?P<t>f32)", "1.0f / {a}")
_computed(r"fma\.rn\.(?P<t>f32)", "__builtin_fmaf({a}, {b}, {c})")
_computed(r"neg\.(?P<t>f32)", "-{a}")
_computed(r"abs\.(?P<t>f32)", "__builtin_fabsf({a})")
_computed(r"min\.(?P<t>f32)", "__builtin_fminf({a}, {b})")
_computed(r"max\.(?P<t>f32)", "__builtin_fmaxf({a}, {b})")
_computed(r"ex2\.approx\.ftz\.(?P<t>f32)", "exp2_approx({a})")
_computed(rf"add\.{_INTEGER}", "wrapped<{t}>((uint64_t){a} + (uint64_t){b})")
_computed(rf"sub\.{_INTEGER}", "wrapped<{t}>((uint64_t){a} - (uint64_t){b})")
_computed(rf"mul\.lo\.{_INTEGER}", "wrapped<{t}>((uint64_t){a} * (uint64_t){b})")
_computed(rf"mad\.lo\.{_INTEGER}", "wrapped<{t}>((uint64_t){a} * (uint64_t){b} + (uint64_t){c})")
_computed(rf"mul\.hi\.{_INTEGER}", "high<{t}>({a}, {b})")
_computed(rf"div\.{_INTEGER}", "({t})({a} / {b})")
_computed(rf"rem\.{_INTEGER}", "({t})({a} % {b})")
_computed(rf"min\.{_INTEGER}", "({a} < {b} ? {a} : {b})")
_computed(rf"max\.{_INTEGER}", "({a} > {b} ? {a} : {b})")
_computed(rf"neg\.{_INTEGER}", "wrapped<{t}>(-(uint64_t){a})")
_computed(r"abs\.(?P<t>s32|s64)", "wrapped<{t}>({a} < 0 ? -(uint64_t){a} : (uint64_t){a})")
_computed(rf"and\.{_INTEGER}", "({t})({a} & {b})")
_computed(rf"or\.{_INTEGER}", "({t})({a} | {b})")
_computed(rf"xor\.{_INTEGER}", "({t})({a} ^ {b})")
_computed(rf"not\.{_INTEGER}", "({t})~{a}")
_computed(r"and\.(?P<t>pred)", "bool({a} & {b})")
_computed(r"or\.(?P<t>pred)", "bool({a} | {b})")
_computed(r"xor\.(?P<t>pred)", "bool({a} ^ {b})")
_computed(r"not\.(?P<t>pred)", "!{a}")
_computed(rf"shl\.{_INTEGER}", "left<{t}>({a}, {n})")
_computed(rf"shr\.{_INTEGER}", "right<{t}>({a}, {n})")
_computed(r"shf\.l\.wrap\.(?P<t>b32)", "funnel_left({a}, {b}, {n} & 31)")
_computed(r"shf\.r\.wrap\.(?P<t>b32)", "funnel_right({a}, {b}, {n} & 31)")
_computed(r"bfe\.(?P<t>u32)", "field({a}, {b}, {c})")
_computed(r"prmt\.(?P<t>b32)", "permuted({a}, {b}, {c})")
_computed(r"popc\.(?P<t>b32)", "(uint32_t)__builtin_popcount({a})")
_computed(r"cvta\.to\.(?:global|local)\.(?P<t>u64)", "{a}")  # global and local addresses are generic ones
_computed(r"cvta\.(?:global|local)\.(?P<t>u64)", "{a}")
_computed(r"cvt\.rni\.f32\.(?P<t>f32)", "__builtin_rintf({a})")
_computed(r"cvt\.rn\.f16\.(?P<t>f32)", "(uint16_t)to_half({a})", "u16")
_computed(r"cvt\.rn\.f32\.(?P<t>[su](?:16|32|64))", "(float){a}", "f32")
for _kind in ("s32", "u32", "s64", "u64"):
    _computed(rf"cvt\.rzi\.{_kind}\.(?P<t>f32)", f"integer<{_TYPES[_kind]}>(__builtin_truncf({{a}}))", _kind)
    _computed(rf"cvt\.rni\.{_kind}\.(?P<t>f32)", f"integer<{_TYPES[_kind]}>(__builtin_rintf({{a}}))", _kind)


@_rule(r"cvt\.f32\.f16")
def _from_half(code: Translation, found: re.Match[str], one: Instruction) -> str:
    return code.assign(one.operands[0], "f32", f"from_half({code.value(one.operands[1], 'b16')})")


@_rule(r"cvt\.(?P<to>[su](?:8|16|32|64))\.(?P<t>[su](?:8|16|32|64))")
def _convert(code: Translation, found: re.Match[str], one: Instruction) -> str:
    # A register that is wider than the result is filled with its sign.
    to, kind = _register(one.operands[0]), _TYPES[found["to"]]
    wide = "int64_t" if found["to"][0] == "s" else "uint64_t"
    return f"{to} = (decltype({to}))({wide})({kind}){code.value(one.operands[1], found['t'])};"


@_rule(r"(?P<what>mul|mad)\.wide\.(?P<t>[su](?:16|32))")
def _wide(code: Translation, found: re.Match[str], one: Instruction) -> str:
    kind = f"{found['t'][0]}{2 * int(found['t'][1:])}"
    a, b = (f"({_TYPES[kind]}){code.value(operand, found['t'])}" for operand in one.operands[1:3])
    added = f" + (uint64_t){code.value(one.operands[3], kind)}" if found["what"] == "mad" else ""
    return code.assign(one.operands[0], kind, f"({_TYPES[kind]})((uint64_t)({a} * {b}){added})")


@_rule(r"bfi\.b(?P<bits>32|64)")
def _insert(code: Translation, found: re.Match[str], one: Instruction) -> str:
    kind = f"u{found['bits']}"
    a, b = (code.value(operand, kind) for operand in one.operands[1:3])
    start, size = (code.value(operand, "u32") for operand in one.operands[3:])
    return code.assign(one.operands[0], kind, f"with_field<{_TYPES[kind]}>({a}, {b}, {start}, {size})")


@_rule(r"lop3\.b32")
def _logic(code: Translation, found: re.Match[str], one: Instruction) -> str:
    values = ", ".join(code.value(operand, "u32") for operand in one.operands[1:])
    return code.assign(one.operands[0], "u32", f"logic({values})")


@_rule(r"mov\.(?P<t>pred|f32|[sub](?:16|32|64))")
def _move(code: Translation, found: re.Match[str], one: Instruction) -> str:
    to, source = one.operands
    if to.startswith("{"):
        parts, size = _parts(to), int(found["t"][1:])
        step = size // len(parts)
        value = code.value(source, f"u{size}")
        taken = " ".join(code.assign(part, f"u{step}", f"(uint{step}_t)(whole >> {number * step})")
                         for number, part in enumerate(parts))
        return f"{{ const uint64_t whole = {value}; {taken} }}"
    if source.startswith("{"):
        parts, size = _parts(source), int(found["t"][1:])
        step = size // len(parts)
        whole = " | ".join(f"(uint64_t){code.value(part, f'u{step}')} << {number * step}"
                           for number, part in enumerate(parts))
        return code.assign(to, f"u{size}", f"(uint{size}_t)({whole})")
    return code.assign(to, found["t"], code.value(source, found["t"]))


@_rule(r"selp\.(?P<t>f32|[sub](?:16|32|64))")
def _select(code: Translation, found: re.Match[str], one: Instruction) -> str:
    to, a, b, chosen = one.operands
    return code.assign(to, found["t"], f"{code.value(chosen, 'pred')} ? {code.value(a, found['t'])} : "
                                       f"{code.value(b, found['t'])}")


@_rule(r"setp\.(?P<how>\w{2,3}?)(?:\.(?P<with>and|or|xor))?\.(?P<t>f32|[sub](?:16|32|64))")
def _compare(code: Translation, found: re.Match[str], one: Instruction) -> str:
    how, kind = found["how"], found["t"]
    a, b = (code.value(operand, kind) for operand in one.operands[1:3])
    if kind == "f32" and how in _NEGATED:
        holds = f"!({a} {_NEGATED[how]} {b} && !unordered({a}, {b}))" if how == "equ" else f"!({a} {_NEGATED[how]} {b})"
    elif kind == "f32" and how in ("num", "nan"):
        holds = f"{'!' if how == 'num' else ''}unordered({a}, {b})"
    elif kind == "f32" and how == "neu":
        holds = f"{a} != {b}"
    elif kind == "f32" and how == "ne":
        holds = f"({a} != {b} && !unordered({a}, {b}))"
    elif how in _COMPARED:
        holds = f"{a} {_COMPARED[how]} {b}"
    else:
        raise PtxError(f"line {one.line}: the comparison {how}")
    if found["with"]:
        sign = {"and": "&", "or": "|", "xor": "^"}[found["with"]]
        holds = f"({holds}) {sign} {code.value(one.operands[3], 'pred')}"
    return code.assign(one.operands[0], "pred", f"bool({holds})")


@_rule(r"ld\.param(?:\.v(?P<n>[24]))?\.(?P<t>f32|[sub](?:8|16|32|64))")
def _parameter(code: Translation, found: re.Match[str], one: Instruction) -> str:
    size, kind = int(found["t"][1:]) // 8, _TYPES[found["t"]]
    parts = _parts(one.operands[0])
    taken = " ".join(f"{{ {kind} value; memcpy(&value, arguments.byte + at + {number * size}, {size}); "
                     f"{code.assign(part, found['t'], 'value')} }}" for number, part in enumerate(parts))
    return (f"{{ const uint64_t at = {code.address(one.operands[1], 'u64')}; "
            f"within(at + {size * len(parts)} <= sizeof arguments.byte, file, {one.line}); {taken} }}")


@_rule(r"(?P<what>ld|st)\.local(?:\.v(?P<n>[24]))?\.(?P<t>f32|[sub](?:16|32|64))")
def _own_memory(code: Translation, found: re.Match[str], one: Instruction) -> str:
    load = found["what"] == "ld"
    parts, kind = _parts(one.operands[not load]), _TYPES[found["t"]]
    where, size = code.address(one.operands[load], "u64"), int(found["t"][1:]) // 8
    each = [f"memcpy(&part, (char *)at + {number * size}, {size}); {code.assign(part, found['t'], 'part')}" if load else
            f"part = {code.value(part, found['t'])}; memcpy((char *)at + {number * size}, &part, {size});"
            for number, part in enumerate(parts)]
    return f"{{ const uint64_t at = {where}; {kind} part; {' '.join(each)} }}"


@_rule(r"(?P<what>ld|st)(?:\.volatile)?\.(?P<space>shared|global)(?:\.nc)?(?:\.v(?P<n>[24]))?"
       r"\.(?P<t>f32|[sub](?:16|32|64))")
def _memory(code: Translation, found: re.Match[str], one: Instruction) -> str:
    parts = _parts(one.operands[found["what"] == "st"])
    size, each = int(found["t"][1:]) // 8 * len(parts), int(found["t"][1:]) // 8
    where = code.address(one.operands[found["what"] == "ld"], "u64" if found["space"] == "global" else "s32")
    if found["space"] == "global":
        where = f"(void *)({where})"
    place = f"file, {one.line}"
    if size == 2:
        if found["what"] == "ld":
            return code.assign(parts[0], "u16", f"{found['space']}_half({where}, {place})")
        return f"{found['space']}_set_half({where}, {code.value(parts[0], 'b16')}, {place});"
    if size not in (4, 8, 16):
        raise PtxError(f"line {one.line}: an access of {size} bytes")
    if one.used != -1:
        return _partly(code, found, one, where)
    words = f"Words<{size // 4}> words"
    if found["what"] == "ld":
        load = f"{words} = {found['space']}_load<{size // 4}>({where}, {place});"
        if each == 4:
            return f"{{ {load} " + " ".join(code.assign(part, *_word(code, part, number))
                                            for number, part in enumerate(parts)) + " }"
        taken = " ".join(f"memcpy(&part, (char *)words.word + {number * each}, {each}); "
                         f"{code.assign(part, f'u{8 * each}', 'part')}" for number, part in enumerate(parts))
        return f"{{ {load} uint{8 * each}_t part; {taken} }}"
    given = " ".join(f"part = {code.value(part, f'b{8 * each}')}; "
                     f"memcpy((char *)words.word + {number * each}, &part, {each});"
                     for number, part in enumerate(parts))
    store = f"{found['space']}_store<{size // 4}>({where}, words, {place});"
    return f"{{ {words}; uint{8 * each}_t part; {given} {store} }}"


@_rule(r"(?:bar|barrier)\.sync(?:\.aligned)?")
def _barrier(code: Translation, found: re.Match[str], one: Instruction) -> str:
    if one.operands != ("0",):
        raise PtxError(f"line {one.line}: barrier {', '.join(one.operands)}")
    return f"barrier(file, {one.line});"


@_rule(r"bar\.warp\.sync")
def _warp_barrier(code: Translation, found: re.Match[str], one: Instruction) -> str:
    return (f"whole_warp({code.value(one.operands[0], 'u32')} == ~0u, file, {one.line}); "
            f"warp_barrier(file, {one.line});")


@_rule(r"shfl\.sync\.(?P<how>bfly|idx)\.b32")
def _shuffle(code: Translation, found: re.Match[str], one: Instruction) -> str:
    to, value, other, bounds, members = one.operands
    whole = f"whole_warp({code.value(bounds, 'u32')} == 31 && {code.value(members, 'u32')} == ~0u, file, {one.line});"
    function = "shuffle_xor" if found["how"] == "bfly" else "shuffle"
    result, _, valid = to.partition("|")
    also = f" {_register(valid)} = true;" if valid else ""
    taken = f"{function}({code.value(value, 'u32')}, {code.value(other, 's32')}, file, {one.line})"
    return f"{whole} {code.assign(result, 'u32', taken)}{also}"


@_rule(r"mma\.sync\.aligned\.m8n8k4\.(?P<a>row|col)\.(?P<b>row|col)\.f32\.f16\.f16\.f32")
def _multiply(code: Translation, found: re.Match[str], one: Instruction) -> str:
    d, a, b, c = map(_parts, one.operands)
    if (len(d), len(a), len(b), len(c)) != (8, 2, 2, 8):
        raise PtxError(f"line {one.line}: fragments of {one.operands}")
    sums = ", ".join(code.value(part, "f32") for part in c)
    left, right = (", ".join(code.value(part, "u32") for part in parts) for parts in (a, b))
    shape = f"{str(found['a'] == 'row').lower()}, {str(found['b'] == 'col').lower()}"
    back = " ".join(code.assign(part, "f32", f"c[{number}]") for number, part in enumerate(d))
    return (f"{{ float c[8] = {{{sums}}}; const unsigned a[2] = {{{left}}}, b[2] = {{{right}}}; "
            f"mma<{shape}>(c, a, b, file, {one.line}); {back} }}")


@_rule(r"bra(?:\.uni)?")
def _branch(code: Translation, found: re.Match[str], one: Instruction) -> str:
    return f"goto {_label(one.operands[0])};"


@_rule(r"ret")
def _return(code: Translation, found: re.Match[str], one: Instruction) -> str:
    return "return;"


def _partly(code: Translation, found: re.Match[str], one: Instruction, where: str) -> str:
    """Load what is used of a vector: the compiler may load past it what nobody has stored."""
    parts = _parts(one.operands[0])
    if found["what"] != "ld" or found["t"][1:] != "32" or found["space"] != "shared":
        raise PtxError(f"line {one.line}: bytes that are not used")
    return " ".join(f"{{ Words<1> words = shared_load<1>({where} + {4 * number}, file, {one.line}); "
                    f"{code.assign(part, *_word(code, part, 0))} }}"
                    for number, part in enumerate(parts) if one.used >> 4 * number & 15)


def _word(code: Translation, part: str, number: int) -> tuple[str, str]:
    """Write a loaded word as what its register is."""
    if code.registers.get(part) == "f32":
        return "f32", f"bits_to_float(words.word[{number}])"
    return "u32", f"words.word[{number}]"


def _parts(operand: str) -> Sequence[str]:
    return [part.strip() for part in operand[1:-1].split(",")] if operand.startswith("{") else [operand]
