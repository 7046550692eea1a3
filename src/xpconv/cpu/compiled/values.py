"""What kernels compute with: LLVM's types, values with operators, variables, and what threads share.

Every value is a `Value`; addresses are 64-bit integers, in bytes. Variables live in memory until LLVM's first passes
make registers of them, so that loops need no phi nodes here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llvmlite import ir

if TYPE_CHECKING:
    from xpconv.cpu.compiled.ir import Kernel

I64 = ir.IntType(64)
I32 = ir.IntType(32)
BYTE = ir.IntType(8)
VOID = ir.VoidType()
POINTER = ir.PointerType()
FLOATS = {"float32": ir.FloatType(), "float64": ir.DoubleType()}


def vector(element: ir.Type, lanes: int) -> ir.Type:
    """So many elements in a register; one is a plain element."""
    return ir.VectorType(element, lanes) if lanes > 1 else element


def size_of(kind: ir.Type) -> int:
    """Bytes of an element of the type."""
    return {"float": 4, "double": 8, "i64": 8, "i32": 4, "i8": 1}[str(getattr(kind, "element", kind))]


class Value:
    """A number or a vector of them; Python's operators emit LLVM's."""

    def __init__(self, kernel: Kernel, raw: ir.Value) -> None:
        self.kernel, self.raw = kernel, raw

    @property
    def type(self) -> ir.Type:
        """LLVM's."""
        return self.raw.type

    @property
    def floating(self) -> bool:
        """Whether it is made of floats."""
        return isinstance(self._element, (ir.FloatType, ir.DoubleType))

    @property
    def _element(self) -> ir.Type:
        return self.type.element if isinstance(self.type, ir.VectorType) else self.type

    def _other(self, other: Operand) -> ir.Value:
        return other.raw if isinstance(other, Value) else self.kernel.constant(other, self.type).raw

    def _emit(self, integer: str, floating: str, other: Operand, swap: bool = False) -> Value:
        operands = (self.raw, self._other(other))
        emit = getattr(self.kernel.builder, floating if self.floating else integer)
        return Value(self.kernel, emit(*(operands[::-1] if swap else operands)))

    def __add__(self, other: Operand) -> Value:
        if not self.floating and other == 0:
            return self
        return self._emit("add", "fadd", other)

    __radd__ = __add__

    def __sub__(self, other: Operand) -> Value:
        return self._emit("sub", "fsub", other)

    def __rsub__(self, other: Operand) -> Value:
        return self._emit("sub", "fsub", other, swap=True)

    def __mul__(self, other: Operand) -> Value:
        return self._emit("mul", "fmul", other)

    __rmul__ = __mul__

    def __neg__(self) -> Value:
        return Value(self.kernel, (self.kernel.builder.fneg if self.floating else self.kernel.builder.neg)(self.raw))

    def __floordiv__(self, other: Operand) -> Value:
        """Of non-negative integers."""
        return self._emit("sdiv", "fdiv", other)

    def __mod__(self, other: Operand) -> Value:
        """Of non-negative integers."""
        return self._emit("srem", "frem", other)

    def __rshift__(self, other: Operand) -> Value:
        """Of integers, zeros from above."""
        return self._emit("lshr", "lshr", other)

    def __and__(self, other: Operand) -> Value:
        return self._emit("and_", "and_", other)

    def __or__(self, other: Operand) -> Value:
        return self._emit("or_", "or_", other)

    def __xor__(self, other: Operand) -> Value:
        return self._emit("xor", "xor", other)

    def __lt__(self, other: Operand) -> Value:
        return self._compare("<", other)

    def __le__(self, other: Operand) -> Value:
        return self._compare("<=", other)

    def __gt__(self, other: Operand) -> Value:
        return self._compare(">", other)

    def __ge__(self, other: Operand) -> Value:
        return self._compare(">=", other)

    def equals(self, other: Operand) -> Value:
        """Elementwise; `==` stays Python's own."""
        return self._compare("==", other)

    def _compare(self, sign: str, other: Operand) -> Value:
        compare = self.kernel.builder.fcmp_ordered if self.floating else self.kernel.builder.icmp_signed
        return Value(self.kernel, compare(sign, self.raw, self._other(other)))

    def within(self, stop: Value) -> Value:
        """Where an integer is at least 0 and below `stop`: one comparison, without signs."""
        return Value(self.kernel, self.kernel.builder.icmp_unsigned("<", self.raw, stop.raw))

    def is_nan(self) -> Value:
        """Where it is not a number."""
        return Value(self.kernel, self.kernel.builder.fcmp_unordered("uno", self.raw, self.raw))

    def where(self, yes: Value, no: Value) -> Value:
        """`yes` where this condition holds, else `no`."""
        return Value(self.kernel, self.kernel.builder.select(self.raw, yes.raw, no.raw))


Operand = Value | int | float


class Variable:
    """A value that changes."""

    def __init__(self, kernel: Kernel, initial: Value) -> None:
        self._kernel = kernel
        self._place = kernel.reserve(initial.type)
        self.set(initial)

    def get(self) -> Value:
        """The value now."""
        return Value(self._kernel, self._kernel.builder.load(self._place, typ=self._place.allocated_type))

    def set(self, value: Value) -> None:
        """From here on."""
        self._kernel.builder.store(value.raw, self._place)


class Shared:
    """A 64-bit integer in memory that other threads read and write too."""

    def __init__(self, kernel: Kernel, address: Value) -> None:
        self._kernel = kernel
        self._place = kernel.builder.inttoptr(address.raw, I64.as_pointer())  # atomics want a pointer with a type

    def get(self) -> Value:
        """The value now, and what was written before it."""
        return Value(self._kernel, self._kernel.builder.load_atomic(self._place, "acquire", 8))

    def set(self, value: Operand) -> None:
        """For other threads to read, after all that was written before it."""
        self._kernel.builder.store_atomic(self._kernel.value(value).raw, self._place, "release", 8)

    def add(self, number: Operand) -> None:
        """To what other threads add to."""
        self._kernel.builder.atomic_rmw("add", self._place, self._kernel.value(number).raw, "acq_rel")

    def exchanged_if(self, expected: Value, new: Value) -> Value:
        """Whether the value was as expected and is now the new one."""
        pair = self._kernel.builder.cmpxchg(self._place, expected.raw, new.raw, "acq_rel", "acquire")
        return Value(self._kernel, self._kernel.builder.extract_value(pair, 1))
