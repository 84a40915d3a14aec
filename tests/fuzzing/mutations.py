"""How does a good message become a bad one? By a seeded hand, so that each can be made again.

Bytes are flipped, cut, doubled and spliced; fields of protobuf messages, which such bytes rarely
reach, get the values that programs forget to think of.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_MOST_STEPS = 4
_PIECE_BYTES = 64
_MANY = 300
_INTEGERS = (
    0,
    1,
    2,
    127,
    128,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**63 - 1,
    2**64 - 1,
    -1,
    -(2**31),
)
_FLOATS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    2.0,
    5e-324,
    1e-30,
    1e30,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
)
_TEXTS = (
    "", "\0", " ", "..", "../../etc/passwd", "/dev/full", "a" * 63, "a" * 64, "A", "0" * 64,
    "f" * 63, "x" * 5_000, "漢" * 90, "\U0001f600", "w", "[/x]\x1b[31m", "%s%n", "nan", "pooled",
)  # fmt: skip
_INTEGER_TYPES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


class Mutator:
    """A hand that follows its seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def bytes_of(self, good: Sequence[bytes]) -> bytes:
        """One of the good byte strings, changed in a few places."""
        data = bytearray(self.random.choice(good))
        for _ in range(self.random.randint(1, _MOST_STEPS)):
            step: Callable[[bytearray, Sequence[bytes]], None] = self.random.choice(
                (self._flip, self._set, self._cut, self._insert, self._double, self._splice)
            )
            step(data, good)
        return bytes(data)

    def message_of(self, good: Sequence[Message]) -> bytes:
        """One of the good messages with some fields changed, and now and then its bytes too."""
        changed: Any = self.random.choice(good)
        message = type(changed)()
        message.CopyFrom(changed)
        for _ in range(self.random.randint(1, _MOST_STEPS)):
            self._change(message)
        data = message.SerializeToString()
        return self.bytes_of([data]) if self.random.random() < 0.3 else data

    def _change(self, message: Any) -> None:
        """Change one field of the message, or of one within it."""
        fields = message.DESCRIPTOR.fields
        if not fields:
            return
        field = self.random.choice(fields)
        if self.random.random() < 0.1:
            message.ClearField(field.name)
        elif field.is_repeated:
            self._change_repeated(getattr(message, field.name), field)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            self._change(getattr(message, field.name))
        else:
            setattr(message, field.name, self._value(field))

    def _change_repeated(self, values: Any, field: FieldDescriptor) -> None:
        is_message = field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE
        what = self.random.choice(("one", "twice", "gone", "order", "many", "all"))
        if what == "one" and values:
            place = self.random.randrange(len(values))
            if is_message:
                self._change(values[place])
            else:
                values[place] = self._value(field)
        elif what == "twice" and values:
            values.append(self.random.choice(values))
        elif what == "gone" and values:
            values.pop(self.random.randrange(len(values)))
        elif what == "order" and len(values) > 1:
            values.reverse()
        elif what == "many":
            values.extend([values[0] if values else self._new(field)] * _MANY)
        elif what == "all":
            del values[:]

    def _new(self, field: FieldDescriptor) -> Any:
        if field.message_type is not None:
            return GetMessageClass(field.message_type)()
        return self._value(field)

    def _value(self, field: FieldDescriptor) -> Any:
        if field.cpp_type in _INTEGER_TYPES:
            low, high = _INTEGER_TYPES[field.cpp_type]
            return min(
                max(self.random.choice((*_INTEGERS, self.random.getrandbits(40))), low), high
            )
        if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return self.random.choice(_FLOATS)
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return self.random.random() < 0.5
        if field.type == FieldDescriptor.TYPE_BYTES:
            return self.random.randbytes(self.random.randrange(_PIECE_BYTES))
        return self.random.choice(_TEXTS)

    def _place(self, data: bytearray) -> int:
        return self.random.randrange(len(data) + 1)

    def _flip(self, data: bytearray, good: Sequence[bytes]) -> None:
        if data:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)

    def _set(self, data: bytearray, good: Sequence[bytes]) -> None:
        if data:
            data[self.random.randrange(len(data))] = self.random.choice((0, 1, 0x7F, 0x80, 0xFF))

    def _cut(self, data: bytearray, good: Sequence[bytes]) -> None:
        place = self._place(data)
        del data[place : place + self.random.randint(1, _PIECE_BYTES)]

    def _insert(self, data: bytearray, good: Sequence[bytes]) -> None:
        place = self._place(data)
        data[place:place] = self.random.randbytes(self.random.randint(1, _PIECE_BYTES))

    def _double(self, data: bytearray, good: Sequence[bytes]) -> None:
        place = self._place(data)
        data[place:place] = data[place : place + self.random.randint(1, _PIECE_BYTES)]

    def _splice(self, data: bytearray, good: Sequence[bytes]) -> None:
        other = self.random.choice(good)
        place = self._place(data)
        data[place:] = other[self.random.randrange(len(other) + 1) :]
