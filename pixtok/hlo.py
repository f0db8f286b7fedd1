"""What a compiled program does, read from its text: FLOPs, bytes of memory, and bytes between devices.

`cost_analysis` of XLA counts the body of a loop once.  Here all that a loop calls counts as often as it turns: by
`known_trip_count` where the compiler left it (CPU, GPU), else by the constant that its condition compares with (TPU).
Of the branches of a conditional the costliest counts.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

_BYTES = {"pred": 1, "token": 0, "opaque": 0, "s4": 0.5, "u4": 0.5, "bf16": 2, "c64": 8, "c128": 16}
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\](\{[^{}]*\})?")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# They name buffers, or take no time of their own.
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done", "iota", "send", "recv"),
)
_BUFFERS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "GatherScatterIndicesBitpacked")


class Array(NamedTuple):
    """One array of a value's type."""

    dtype: str
    shape: tuple[int, ...]
    fast: bool
    """It lies in a TPU's vector memory, S(1), not in HBM."""

    @property
    def bytes(self) -> float:
        """Without the padding of its layout."""
        bits = re.match(r"[a-z]+(\d+)", self.dtype)
        return math.prod(self.shape) * _BYTES.get(self.dtype, int(bits[1]) / 8 if bits else 4)


def _arrays(text: str) -> list[Array]:
    return [
        Array(dtype, tuple(map(int, filter(None, sizes.split(",")))), "S(1)" in layout)
        for dtype, sizes, layout in _ARRAY.findall(text)
    ]


@dataclass
class _Op:
    name: str
    code: str
    type_: str
    operands: list[str]
    rest: str
    """Attributes, after the operands."""
    root: bool

    @cached_property
    def arrays(self) -> list[Array]:
        return _arrays(self.type_)

    def attribute(self, name: str) -> str | None:
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None

    def sizes(self, name: str) -> list[int]:
        found = re.search(rf"\b{name}=\{{([0-9,]*)\}}", self.rest)
        return [int(n) for n in found[1].split(",") if n] if found else []


def _balanced(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if not depth:
            return index
    return len(text) - 1


def _parse(line: str) -> _Op | None:
    line = line.strip()
    root = line.startswith("ROOT ")
    name, equals, body = line.removeprefix("ROOT ").partition(" = ")
    if not equals:
        return None
    if body.startswith("("):
        end = _balanced(body, 0) + 1
        type_, body = body[:end], body[end:].strip()
    else:
        type_, _, body = body.partition(" ")
    code, _, _ = body.partition("(")
    end = _balanced(body, len(code))
    inside = body[len(code) + 1 : end]
    operands = _NAME.findall(inside)
    if code in ("constant", "parameter"):
        operands = [inside]
    return _Op(name.lstrip("%"), code, type_, operands, body[end + 1 :], root)


class Collective(NamedTuple):
    """Bytes that each device hands to one collective, and the groups in which devices take part, by their places."""

    kind: str
    bytes: float
    """Of what one device puts in."""
    groups: tuple[tuple[int, ...], ...]
    """For a permutation, pairs of source and target."""
    channel: str | None = None
    """TPU: what begins, goes on beside products and ends in several fusions is one collective of one channel."""
    across: bool = False
    """TPU: what the hosts exchange between slices, after a part inside each; a group is one device of each slice."""

    def moved(self, place: Sequence[int]) -> tuple[float, float]:
        """Bytes that one device sends (near, far), the mean over devices; `place` is the slice or node of each.

        As rings do it, in two tiers where a group lies in several places.  With g members in each of k places, of x
        bytes (2 · those of an all-reduce; an all-gather's result) (g−1)/g · x go inside and (k−1)/k · x/g outside.
        """
        if self.kind == "collective-permute":
            far = sum(place[a] != place[b] for a, b in self.groups)
            share = self.bytes / max(1, len(place))
            return share * sum(a != b for a, b in self.groups) - share * far, share * far
        members = len(self.groups[0])
        k = len({place[device] for device in self.groups[0]})
        g = members / k
        whole = self.bytes * {"all-gather": members, "all-reduce": 2}.get(self.kind, 1)
        if self.across:
            return 0.0, whole * (members - 1) / members
        if self.kind == "all-to-all":
            return whole * (g - 1) / members, whole * (members - g) / members
        return whole * (g - 1) / g, whole / g * (k - 1) / k


@dataclass
class Cost:
    """Of one device and one run of a program."""

    flops: float = 0.0
    """Of matrix products and convolutions, and what Pallas kernels say of themselves."""
    kernel_flops: float = 0.0
    """Of those, the kernels'."""
    bytes: float = 0.0
    """To and from memory: operands and results of all that is no part of a fusion."""
    collectives: defaultdict[Collective, float] = field(default_factory=lambda: defaultdict(float))
    """How often each runs."""
    unknown_loops: int = 0
    """Loops of which no trip count was found, since it is data; they count once."""

    def add(self, other: "Cost", times: float = 1) -> None:
        """Add what runs so many times."""
        self.flops += times * other.flops
        self.kernel_flops += times * other.kernel_flops
        self.bytes += times * other.bytes
        self.unknown_loops += other.unknown_loops
        for collective, count in other.collectives.items():
            self.collectives[collective] += count * times

    def moved(self, place: Sequence[int]) -> dict[str, tuple[float, float]]:
        """Bytes that a device sends (near, far), by kind of collective; `place` is the slice or node of each device."""
        sent: dict[str, tuple[float, float]] = dict.fromkeys(KINDS, (0.0, 0.0))
        for collective, count in self.collectives.items():
            near, far = collective.moved(place)
            before = sent[collective.kind]
            sent[collective.kind] = before[0] + count * near, before[1] + count * far
        return sent


class Module:
    """The text of a compiled program."""

    def __init__(self, text: str, devices: int) -> None:
        """`devices` is their number, for collectives that name no groups."""
        self._devices = devices
        self._computations: dict[str, dict[str, _Op]] = {}
        self._costs: dict[tuple[str, bool], Cost] = {}
        self._entry, current = "", {}
        for line in _COMMENT.sub("", text).splitlines():
            if line[:1] not in (" ", "}", "") and (head := _HEAD.match(line)):
                current = self._computations[head[2]] = {}
                if head[1]:
                    self._entry = head[2]
            elif op := _parse(line):
                current[op.name] = op
        self._root = {
            name: next((op for op in ops.values() if op.root), None) for name, ops in self._computations.items()
        }

    def cost(self) -> Cost:
        """Of the whole program."""
        return self._cost(self._entry, fused=False)

    def _cost(self, name: str, fused: bool) -> Cost:
        if (name, fused) not in self._costs:
            total, seen = Cost(), set[str]()
            for op in self._computations[name].values():
                part = self._part(op, name, fused)
                again = {item for item in part.collectives if item.channel in seen} if op.code == "fusion" else set()
                for item in again:
                    del part.collectives[item]
                seen |= {item.channel for item in part.collectives if item.channel is not None}
                total.add(part)
            self._costs[name, fused] = total
        return self._costs[name, fused]

    def _part(self, op: _Op, where: str, fused: bool) -> Cost:
        """Of one operation and all that it calls."""
        part, code = Cost(), op.code.removesuffix("-start")
        if code == "while":
            trips = self._trips(op, where)
            part.unknown_loops += trips is None
            part.add(self._cost(str(op.attribute("body")), fused), 1 if trips is None else trips)
        elif code == "conditional":
            inside = [self._cost(branch, fused) for branch in self._branches(op)]
            part.add(max(inside, key=lambda cost: (cost.flops, cost.bytes)))
        elif code in ("fusion", "call", "async"):
            called = op.attribute("calls") or op.attribute("to_apply")
            part.add(self._cost(str(called), fused or code == "fusion"))
        elif code in KINDS:
            part.collectives[self._collective(op, code, where)] += 1
        elif code == "send" and (kind := re.search(r'_megascale_transfer_type="(\w+)"', op.rest)):
            slices = re.search(r'_megascale_target="\{([\d,]+)\}', op.rest)
            group = tuple(_numbers(slices[1])) if slices else (0, 1)
            name = kind[1].lower().replace("_", "-")
            sent = self._of(where, op.operands[0]).arrays[0].bytes
            part.collectives[Collective(name, sent, (group,), op.attribute("channel_id"), across=True)] += 1
        elif code == "dot":
            part.flops = self._dot(op, where)
        elif code == "convolution":
            part.flops = self._convolution(op, where)
        elif code == "custom-call":
            part.flops, kernel = self._custom(op, where)
            part.kernel_flops = part.flops * kernel
        if not fused:
            part.bytes += self._touched(op, where)
        return part

    def _of(self, where: str, name: str) -> _Op:
        return self._computations[where][name]

    def _input(self, op: _Op, where: str) -> float:
        return sum(array.bytes for name in op.operands for array in self._of(where, name).arrays)

    def _branches(self, op: _Op) -> list[str]:
        listed = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
        if listed:
            return _NAME.findall(listed[1])
        return [name for key in ("true_computation", "false_computation") if (name := op.attribute(key))]

    def _trips(self, op: _Op, where: str) -> int | None:
        if known := re.search(r'"known_trip_count":\{"n":"?(\d+)', op.rest):
            return int(known[1])
        condition = str(op.attribute("condition"))
        test = self._root.get(condition)
        if test is None or test.code != "compare" or test.attribute("direction") not in ("LT", "GT"):
            return None
        one, two = (self._through(condition, name) for name in test.operands)
        index, end = (one, two) if test.attribute("direction") == "LT" else (two, one)
        if index is None or end is None or index.code != "get-tuple-element" or end.code != "constant":
            return None
        start = self._start(op, where, int(index.attribute("index") or 0))
        return None if start is None else int(end.operands[0]) - start

    def _start(self, loop: _Op, where: str, index: int) -> int | None:
        """The value that a loop's counter begins with."""
        carried = self._through(where, loop.operands[0])
        if carried is None or carried.code != "tuple":
            return None
        value = self._through(where, carried.operands[index])
        if value is not None and value.code == "constant" and re.fullmatch(r"-?\d+", value.operands[0]):
            return int(value.operands[0])
        return None

    def _through(self, where: str, name: str) -> _Op | None:
        """What makes a value, behind copies of it."""
        op = self._computations[where].get(name)
        while op is not None and op.code in ("copy", "bitcast", "copy-start", "copy-done", "convert"):
            op = self._computations[where].get(op.operands[0])
        return op

    def _dot(self, op: _Op, where: str) -> float:
        left = self._of(where, op.operands[0]).arrays[0].shape
        inner = math.prod(left[axis] for axis in op.sizes("lhs_contracting_dims"))
        return 2.0 * math.prod(op.arrays[0].shape) * inner

    def _convolution(self, op: _Op, where: str) -> float:
        """Products that are not of padding: so XLA writes matrix products for TPU."""
        left, right = (self._of(where, name).arrays[0].shape for name in op.operands[:2])
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest)
        if not labels:
            return 0.0
        lhs, rhs, out = labels.groups()
        window = dict(re.findall(r"(\w+)=([\w\-]+)", (re.search(r"window=\{([^}]*)\}", op.rest) or ["", ""])[1]))
        groups = int(op.attribute("batch_group_count") or 1)
        pairs = 1
        for axis in (letter for letter in out if letter.isdigit()):
            n = int(axis)

            def given(name: str, default: str, n: int = n) -> str:
                return window[name].split("x")[n] if name in window else default

            low = int(given("pad", "0_0").split("_")[0])
            stride, spread, apart = (int(given(name, "1")) for name in ("stride", "lhs_dilate", "rhs_dilate"))
            size, kernel = left[lhs.index(axis)], right[rhs.index(axis)]
            result = op.arrays[0].shape[out.index(axis)]
            at = np.arange(result)[:, None] * stride + np.arange(kernel)[None] * apart - low
            pairs *= int(((at >= 0) & (at % spread == 0) & (at < (size - 1) * spread + 1)).sum())
        features = right[rhs.index("i")] * right[rhs.index("o")]
        return 2.0 * features * left[lhs.index("b")] / groups * pairs

    def _custom(self, op: _Op, where: str) -> tuple[float, bool]:
        """(FLOPs, whether a Pallas kernel says so) of a custom call."""
        if estimate := re.search(r'"cost_estimate":(\{[^{}]*\})', op.rest):
            return float(json.loads(estimate[1]).get("flops", 0)), True
        if "gemm" in op.rest or "matmul" in op.rest:
            inner = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', op.rest)
            left = self._of(where, op.operands[0]).arrays[0].shape
            axes = [int(n) for n in re.findall(r"\d+", inner[1])] if inner else []
            return 2.0 * math.prod(op.arrays[0].shape) * math.prod(left[axis] for axis in axes), False
        return 0.0, False

    def _collective(self, op: _Op, kind: str, where: str) -> Collective:
        moved, groups = self._input(op, where), _groups(op.rest, self._devices)
        # TPU: a reduce-scatter is a fusion that keeps one slice of an all-reduce.
        if kind == "all-reduce" and where.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        return Collective(kind, moved, groups, op.attribute("channel_id"))

    def _touched(self, op: _Op, where: str) -> float:
        """Bytes of memory that an operation reads and writes."""
        if op.code in _FREE or op.code.endswith("-done") or op.code.removesuffix("-start") in KINDS:
            return 0.0
        if op.code == "custom-call" and any(name in op.rest for name in _BUFFERS):
            return 0.0
        slow = [self._slow(self._of(where, name)) for name in op.operands if name in self._computations[where]]
        result = self._slow(op)
        if op.code.endswith("-start"):  # from one memory to another: operand and result are parts of its type
            return sum(slow) + max(0.0, result - sum(slow))
        if op.code in ("dynamic-slice", "slice", "gather"):
            return 2 * result
        if op.code == "dynamic-update-slice":
            return 2 * slow[1]
        called = op.attribute("calls") if op.code == "fusion" else None
        if called is None:
            return sum(slow) + result
        return self._read(called, slow) + self._written(called, result)

    @staticmethod
    def _slow(op: _Op) -> float:
        return sum(array.bytes for array in op.arrays if not array.fast)

    def _read(self, called: str, operands: list[float]) -> float:
        """Bytes that a fusion reads: of an operand of which it only takes slices, those."""
        ops, total = self._computations[called], 0.0
        users: dict[str, list[_Op]] = {}
        for op in ops.values():
            for name in op.operands:
                users.setdefault(name, []).append(op)
        for op in ops.values():
            if op.code != "parameter":
                continue
            whole, used = operands[int(op.operands[0])], users.get(op.name, [])
            if not whole:
                continue
            part = 0.0
            for user in used:
                if user.code in ("dynamic-slice", "gather", "slice") and user.operands[0] == op.name:
                    part += sum(array.bytes for array in user.arrays)
                elif user.code != "dynamic-update-slice" or user.operands[0] != op.name:
                    part = whole  # all of it
                    break
            total += min(whole, part)
        return total

    def _written(self, called: str, whole: float) -> float:
        """Bytes that a fusion writes: where it changes a slice of what it was given, that slice."""
        root = self._root[called]
        while root is not None and root.code == "bitcast":
            root = self._computations[called].get(root.operands[0])
        if root is None or root.code != "dynamic-update-slice":
            return whole
        return min(whole, sum(array.bytes for array in self._of(called, root.operands[1]).arrays))


def _groups(text: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """Groups of devices of a collective, in any of the ways in which HLO writes them; of a permutation, its pairs."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        return _listed(pairs[1])
    found = re.search(r"replica_groups=", text)
    rest = text[found.end() :] if found else ""
    if mesh := re.match(r"mesh\[(.*?)\](?:, device_ids=\(([^{}]*)\))? \{([^}]*)\}", rest):
        return _along(re.findall(r"([\w.]+)'?=(\d+)", mesh[1]), mesh[2], mesh[3])
    if iota := re.match(r"\[([\d,]+)\]<=(\S+\d\]?\)?)", rest):
        return tuple(map(tuple, _order(iota[2]).reshape(_numbers(iota[1])).tolist()))
    if rest.startswith("{{"):
        return _listed(rest[1 : rest.index("}}")])
    return (tuple(range(devices)),)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _listed(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(_numbers(group)) for group in re.findall(r"\d[\d,]*", text))


def _order(text: str) -> np.ndarray:
    """`[2,4]T(1,0)`: 0 … 7 as a 2 × 4 grid, transposed, flat; or a plain list."""
    if not text.startswith("["):
        return np.array(_numbers(text))
    dims, _, turned = text.partition("T")
    grid = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return (grid.transpose(_numbers(turned)) if turned else grid).ravel()


def _along(shape: list[tuple[str, str]], ids: str | None, axes: str) -> tuple[tuple[int, ...], ...]:
    """Groups along some axes of a grid of devices, or along a part of one: `'y':(2)4`, 4 after 2 outer ones."""
    parts = {name: (int(outer), int(own)) for name, outer, own in re.findall(r"([\w.]+)'?:\((\d+)\)(\d+)", axes)}
    wanted = set(re.findall(r"[a-zA-Z_][\w.]*", axes))
    sizes, inside = [], []
    for name, size in ((name, int(text)) for name, text in shape):
        outer, own = parts.get(name, (1, size))
        if name in wanted:
            inside.append(len(sizes) + 1)
        sizes += [outer, own, size // outer // own]
    grid = (np.arange(math.prod(sizes)) if ids is None else _order(ids)).reshape(sizes)
    outside = [axis for axis in range(len(sizes)) if axis not in inside]
    members = math.prod(sizes[axis] for axis in inside)
    return tuple(map(tuple, grid.transpose([*outside, *inside]).reshape(-1, members).tolist()))
