"""A small language for kernels over LLVM: integers and vectors with operators, loops, conditions, loads and stores.

A `Kernel` is one function of 64-bit integers under construction, of the types and values in `values.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from llvmlite import ir

from xpconv.cpu.compiled.processor import machine
from xpconv.cpu.compiled.values import BYTE, I32, I64, POINTER, VOID, Operand, Value, Variable, size_of, vector
from xpconv.cpu.lines import LINE


class Kernel:
    """One function under construction: 64-bit integers in, nothing or one integer out."""

    def __init__(self, module: ir.Module, name: str, arguments: Sequence[str], *, returns: bool = False) -> None:
        kind = ir.FunctionType(I64 if returns else VOID, [I64] * len(arguments))
        self.function = ir.Function(module, kind, name)
        self.function.attributes.add("nounwind")
        for argument, known_as in zip(self.function.args, arguments, strict=True):
            argument.name = known_as
        self.arguments = [Value(self, argument) for argument in self.function.args]
        entry = self.function.append_basic_block("entry")
        start = self.function.append_basic_block("start")
        self._entry = ir.IRBuilder(entry)
        self._entry.position_before(self._entry.branch(start))
        self.builder = ir.IRBuilder(start)

    # --- Values -------------------------------------------------------------------------------------------------------

    def constant(self, number: float, kind: ir.Type = I64) -> Value:
        """A number of that type, in every lane."""
        if isinstance(kind, ir.VectorType):
            return Value(
                self, ir.Constant(kind, [ir.Constant(kind.element, _plain(number, kind.element))] * kind.count)
            )
        return Value(self, ir.Constant(kind, _plain(number, kind)))

    def value(self, operand: Operand) -> Value:
        """An operand, which may be a number, as a value."""
        return operand if isinstance(operand, Value) else self.constant(operand)

    def variable(self, initial: Operand) -> Variable:
        """A value that changes."""
        return Variable(self, self.value(initial))

    def reserve(self, kind: ir.Type, count: int = 1) -> Any:
        """Memory on the stack of the whole function."""
        place = self._entry.alloca(kind, count if count > 1 else None)
        place.align = LINE
        return place

    def memory(self, kind: ir.Type, count: int) -> Value:
        """The address of so many values on the stack, which the compiler keeps there."""
        return Value(self, self.builder.ptrtoint(self.reserve(kind, count), I64))

    def minimum(self, first: Value, second: Operand) -> Value:
        """The smaller integer."""
        second = self.value(second)
        return (first < second).where(first, second)

    def after(self, number: Value, vectors: Sequence[Value]) -> Value:
        """The same integer, which to LLVM depends on vectors: what is made of it is placed after what makes them."""
        kind = ir.FunctionType(I64, [I64, *(values.type for values in vectors)])
        register = "v" if self.builder.module.triple.startswith("x86_64") else "w"
        constraint = ",".join(["=r", "0", *(register for _ in vectors)])
        nothing = self.builder.asm(kind, "", constraint, [number.raw, *(values.raw for values in vectors)], False)
        return Value(self, nothing)

    def at_least(self, first: Value, second: Operand) -> Value:
        """The larger integer."""
        second = self.value(second)
        return (first < second).where(second, first)

    def fma(self, first: Value, second: Value, third: Value) -> Value:
        """``first * second + third``, rounded once."""
        return self._intrinsic("llvm.fma", (first, second, third))

    def splat(self, number: Value, lanes: int) -> Value:
        """One number in every lane."""
        if lanes == 1:
            return number
        kind = vector(number.type, lanes)
        undefined = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(undefined, number.raw, ir.Constant(I32, 0))
        return Value(self, self.builder.shuffle_vector(one, undefined, _lanes([0] * lanes)))

    def shuffled(self, values: Value, order: Sequence[int]) -> Value:
        """A vector of the lanes of another, as many as are named."""
        undefined = ir.Constant(values.type, ir.Undefined)
        return Value(self, self.builder.shuffle_vector(values.raw, undefined, _lanes(order)))

    def interleaved(self, first: Value, second: Value) -> tuple[Value, Value]:
        """``first[0], second[0], first[1], ...`` of two vectors, as two vectors."""
        lanes = first.type.count
        order = [lane + half * lanes for lane in range(lanes) for half in (0, 1)]
        halves = (order[:lanes], order[lanes:])
        low, high = (self.builder.shuffle_vector(first.raw, second.raw, _lanes(half)) for half in halves)
        return Value(self, low), Value(self, high)

    def same_bits(self, value: Value, kind: ir.Type) -> Value:
        """The bits of a vector as one of another type."""
        return Value(self, self.builder.bitcast(value.raw, kind))

    def deinterleaved(self, first: Value, second: Value) -> tuple[Value, Value]:
        """The lanes of two vectors, one after the other, of even numbers and of odd ones."""
        lanes = first.type.count
        order = [list(range(half, 2 * lanes, 2)) for half in (0, 1)]
        even, odd = (self.builder.shuffle_vector(first.raw, second.raw, _lanes(half)) for half in order)
        return Value(self, even), Value(self, odd)

    def maximum(self, first: Value, second: Value) -> Value:
        """The larger float, and a NaN where there is one."""
        return self._intrinsic("llvm.maximum", (first, second), flags=("nsz",))  # of zeros either

    def narrowed(self, number: Value, bits: int) -> Value:
        """An integer as one of so many bits, of which it needs no more."""
        return number if bits == I64.width else Value(self, self.builder.trunc(number.raw, ir.IntType(bits)))

    def floating(self, number: Value, element: ir.Type) -> Value:
        """An integer as a float."""
        return Value(self, self.builder.sitofp(number.raw, element))

    def widened(self, numbers: Value) -> Value:
        """A vector of integers as one of 64-bit integers."""
        kind = vector(I64, numbers.type.count)
        return numbers if numbers.type == kind else Value(self, self.builder.sext(numbers.raw, kind))

    def any_lane(self, mask: Value) -> Value:
        """Whether a condition holds in any lane."""
        if not isinstance(mask.type, ir.VectorType):
            return mask
        bits = self.same_bits(mask, ir.IntType(mask.type.count))
        return Value(self, self.builder.icmp_unsigned("!=", bits.raw, ir.Constant(bits.type, 0)))

    def lanes_below(self, count: Value, lanes: int) -> Value:
        """A mask: lane i holds where i < count, which is above -2 ** 31."""
        every = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))  # 32 bits take half the instructions of 64
        few = Value(self, self.builder.trunc(self.minimum(count, lanes).raw, I32))
        return Value(self, every) < self.splat(few, lanes)

    def lanes_within(self, first: Value, stop: Value, lanes: int) -> Value:
        """A mask: lane i holds where first + i is at least 0 and below `stop`."""
        every = ir.Constant(ir.VectorType(I32, lanes), list(range(lanes)))
        place = Value(self, every) + self.splat(Value(self, self.builder.trunc(first.raw, I32)), lanes)
        end = self.splat(Value(self, self.builder.trunc(stop.raw, I32)), lanes)
        return place.within(end)

    def _intrinsic(self, name: str, operands: Sequence[Value], flags: Sequence[str] = ()) -> Value:
        kind = operands[0].type
        suffix = {"float": "f32", "double": "f64"}[str(kind.element if isinstance(kind, ir.VectorType) else kind)]
        full = f"{name}.v{kind.count}{suffix}" if isinstance(kind, ir.VectorType) else f"{name}.{suffix}"
        function = self._declared(full, ir.FunctionType(kind, [kind] * len(operands)))
        return Value(self, self.builder.call(function, [operand.raw for operand in operands], fastmath=flags))

    def _declared(self, name: str, kind: ir.FunctionType) -> ir.Function:
        module = self.builder.module
        return module.globals.get(name) or ir.Function(module, kind, name)

    # --- Memory -------------------------------------------------------------------------------------------------------

    def load(self, address: Value, kind: ir.Type = I64, offset: Operand = 0) -> Value:
        """What lies there, of whatever alignment its elements have."""
        loaded = self.builder.load(self._pointer(address, offset), typ=kind)
        loaded.align = size_of(kind)
        return Value(self, loaded)

    def load_lanes(self, address: Value, kind: ir.Type, mask: Value, offset: Operand = 0) -> Value:
        """The lanes of the mask, zeros in the others; nothing beyond them is read."""
        load = self._declared(
            f"llvm.masked.load.{_suffix(kind)}.p0", ir.FunctionType(kind, [POINTER, mask.type, kind])
        )
        nothing = self.constant(0, kind)
        return Value(self, self.builder.call(load, [self._pointer(address, offset), mask.raw, nothing.raw]))

    def store(self, value: Value, address: Value, offset: Operand = 0) -> None:
        """Put it there."""
        stored = self.builder.store(value.raw, self._pointer(address, offset))
        stored.align = size_of(value.type)

    def stream(self, value: Value, address: Value, offset: Operand = 0) -> None:
        """Store a vector past the caches, to an address that is a multiple of its size; see `fence`."""
        stored = self.builder.store(value.raw, self._pointer(address, offset))
        stored.align = value.type.count * size_of(value.type)
        stored.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(I32, 1)]))

    def fence(self) -> None:
        """What was streamed is there before anything that is stored later."""
        if self.builder.module.triple.startswith("x86_64"):
            self.builder.call(self._declared("llvm.x86.sse.sfence", ir.FunctionType(VOID, [])), [])

    def store_lanes(self, value: Value, address: Value, mask: Value, offset: Operand = 0) -> None:
        """The lanes of the mask, which are the first ones; nothing beyond them is written."""
        here = machine()
        if here is None or here.stores_lanes:
            kind, pointer = value.type, self._pointer(address, offset)
            store = self._declared(
                f"llvm.masked.store.{_suffix(kind)}.p0", ir.FunctionType(VOID, [kind, POINTER, mask.type])
            )
            self.builder.call(store, [value.raw, pointer, mask.raw])
            return
        lanes = value.type.count
        bits = Value(self, self.builder.zext(self.same_bits(mask, ir.IntType(lanes)).raw, I64))
        with self.either(bits.equals((1 << lanes) - 1)) as (all_of_them, some):
            with all_of_them:
                self.store(value, address, offset)
            with some:
                self._store_first(value, address + offset, bits)

    def _store_first(self, value: Value, address: Value, bits: Value) -> None:
        """The first lanes, as bits tell: half of a vector, then half of the half that is left over, and so on."""
        half, size = value.type.count // 2, size_of(value.type)
        while half:
            low, high = (self.shuffled(value, range(first, first + half)) for first in (0, half))
            whole = (bits & (1 << (half - 1))) > 0
            with self.when(whole):
                self.store(low, address)
            address = address + whole.where(self.constant(half * size), self.constant(0))
            value, bits, half = whole.where(high, low), whole.where(bits >> half, bits), half // 2

    def prefetch(self, address: Value, *, level: int = 1, written: bool = False) -> None:
        """Ask for the cache line of an address, which need not be one, soon to be read or `written`: into the cache of
        that level.

        The first holds what is read in a moment. What is read a row of an image later has pushed out what is read now.
        """
        kind = ir.FunctionType(VOID, [POINTER, I32, I32, I32])
        words = [ir.Constant(I32, word) for word in (int(written), 4 - level, 1)]  # so near, as data
        self.builder.call(self._declared("llvm.prefetch.p0", kind), [self._pointer(address, 0), *words])

    def _pointer(self, address: Value, offset: Operand) -> ir.Value:
        pointer = self.builder.inttoptr(address.raw, POINTER)
        if isinstance(offset, int) and offset == 0:
            return pointer
        return self.builder.gep(pointer, [self.value(offset).raw], source_etype=BYTE)

    def given(self, address: Value, names: Sequence[str]) -> SimpleNamespace:
        """The integers of an array, by name."""
        return SimpleNamespace(**{name: self.load(address, offset=8 * i) for i, name in enumerate(names)})

    # --- Control ------------------------------------------------------------------------------------------------------

    @contextmanager
    def loop(self, stop: Operand, start: Operand = 0, step: Operand = 1) -> Iterator[Value]:
        """For each index from `start` to before `stop`; none where they meet."""
        stop, step, index = self.value(stop), self.value(step), self.variable(start)
        head, body, end = (self.function.append_basic_block(name) for name in ("head", "body", "end"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        now = index.get()
        self.builder.cbranch((now < stop).raw, body, end)
        self.builder.position_at_end(body)
        yield now
        index.set(now + step)
        self.builder.branch(head)
        self.builder.position_at_end(end)

    @contextmanager
    def while_(self, condition: Any) -> Iterator[None]:
        """As long as the condition, made anew each time, holds."""
        head, body, end = (self.function.append_basic_block(name) for name in ("while", "do", "done"))
        self.builder.branch(head)
        self.builder.position_at_end(head)
        self.builder.cbranch(condition().raw, body, end)
        self.builder.position_at_end(body)
        yield
        self.builder.branch(head)
        self.builder.position_at_end(end)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Only where the condition holds."""
        with self.builder.if_then(condition.raw):
            yield

    @contextmanager
    def either(self, condition: Value) -> Iterator[tuple[Any, Any]]:
        """Two contexts: for where the condition holds, and for where it does not."""
        with self.builder.if_else(condition.raw) as (yes, no):
            yield yes, no

    def call(self, other: Kernel, *arguments: Operand) -> Value:
        """Another kernel: what it returns, if it does."""
        return Value(self, self.builder.call(other.function, [self.value(argument).raw for argument in arguments]))

    def call_address(self, address: Value, *arguments: Operand) -> None:
        """The kernel at an address."""
        values = [self.value(argument).raw for argument in arguments]
        kind = ir.FunctionType(VOID, [I64] * len(values)).as_pointer()
        self.builder.call(self.builder.inttoptr(address.raw, kind), values)

    def pause(self) -> None:
        """Tell the processor that this thread only waits."""
        triple = self.builder.module.triple
        if triple.startswith("x86_64"):
            self.builder.call(self._declared("llvm.x86.sse2.pause", ir.FunctionType(VOID, [])), [])
        elif triple.startswith(("aarch64", "arm64")):  # not as assembly, for which LLVM wants a parser, or aborts
            self.builder.call(self._declared("llvm.aarch64.isb", ir.FunctionType(VOID, [I32])), [ir.Constant(I32, 15)])

    def finish(self, result: Operand | None = None) -> None:
        """Return."""
        if result is None:
            self.builder.ret_void()
        else:
            self.builder.ret(self.value(result).raw)


def _plain(number: float, kind: ir.Type) -> float:
    return int(number) if isinstance(kind, ir.IntType) else float(number)


def _suffix(kind: ir.Type) -> str:
    element = {"float": "f32", "double": "f64", "i64": "i64"}[str(kind.element)]
    return f"v{kind.count}{element}"


def _lanes(numbers: Sequence[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(I32, len(numbers)), list(numbers))
