"""What does a payload hold? The manifest goes before its first byte and bounds all that follows."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import MANIFEST_TENSORS
from fedreid.names import Digest, is_digest
from fedreid.plan import Encoding
from fedreid.v1 import tensors_pb2
from fedreid.wire.encoding import is_payload_size, payload_bytes
from fedreid.wire.tensors import Layout, TensorSpec

_TO_WIRE: dict[Encoding, tensors_pb2.Encoding.ValueType] = {
    "fp32": tensors_pb2.ENCODING_FP32,
    "bf16": tensors_pb2.ENCODING_BF16,
    "int8_delta": tensors_pb2.ENCODING_INT8_DELTA,
    "int8_delta_zstd": tensors_pb2.ENCODING_INT8_DELTA_ZSTD,
}
_FROM_WIRE: dict[int, Encoding] = {value: name for name, value in _TO_WIRE.items()}

ENCODINGS: tuple[Encoding, ...] = tuple(_TO_WIRE)
"""Every encoding that this software can write and read."""

_KNOWN = 8  # layouts, of which a federation has one: every silo names the same in each round
_OF_EVERY_AGENT: tuple[Encoding, ...] = ("fp32", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Tensors, their encoding, and the size and digest of the payload."""

    layout: Layout
    encoding: Encoding
    byte_count: int
    payload_digest: Digest

    @property
    def prefix(self) -> bytes:
        """What makes an fp32 payload a canonical file where it lies; empty for the others."""
        return self.layout.header() if self.encoding == "fp32" else b""

    def to_wire(self) -> tensors_pb2.Manifest:
        """The protobuf message."""
        return tensors_pb2.Manifest(
            tensors=[
                tensors_pb2.TensorSpec(name=spec.name, shape=spec.shape)
                for spec in self.layout.specs
            ],
            encoding=_TO_WIRE[self.encoding],
            byte_count=self.byte_count,
            payload_digest=self.payload_digest,
        )

    @classmethod
    def from_wire(cls, message: tensors_pb2.Manifest) -> "Manifest":
        """The manifest in a message from outside, checked against itself.

        Raises:
            UpdateRefused: unknown encoding, names unsorted or twice, shapes out of bounds, no
                digest, or a byte count that shapes and encoding do not allow.
        """
        encoding = encoding_from_wire(message.encoding)
        if len(message.tensors) > MANIFEST_TENSORS:
            raise UpdateRefused(Refusal.MANIFEST, "The manifest names too many tensors")
        named = tensors_pb2.Manifest(tensors=message.tensors)
        layout = _layout_named(named.SerializeToString(deterministic=True))
        if not is_digest(message.payload_digest):
            raise UpdateRefused(Refusal.DIGEST, "The manifest's payload digest is no digest")
        if not is_payload_size(message.byte_count, layout, encoding):
            raise UpdateRefused(
                Refusal.BYTE_COUNT,
                f"The manifest states {message.byte_count} bytes; its tensors make "
                f"{payload_bytes(layout, encoding)}",
            )
        return cls(
            layout=layout,
            encoding=encoding,
            byte_count=message.byte_count,
            payload_digest=Digest(message.payload_digest),
        )


@functools.lru_cache(_KNOWN)
def _layout_named(manifest: bytes) -> Layout:
    """The layout of a serialised manifest's tensors; UpdateRefused if they make none."""
    message = tensors_pb2.Manifest.FromString(manifest)
    specs = tuple(TensorSpec(spec.name, tuple(spec.shape)) for spec in message.tensors)
    layout = Layout.of(specs)
    if layout.specs != specs:
        raise UpdateRefused(Refusal.TENSOR_NAMES, "The manifest's tensors are not sorted")
    return layout


def encoding_to_wire(encoding: Encoding) -> tensors_pb2.Encoding.ValueType:
    """The protobuf value of an encoding."""
    return _TO_WIRE[encoding]


def is_known_encoding(value: int) -> bool:
    """Whether this software can read the encoding of a protobuf value."""
    return value in _FROM_WIRE


def encodings_from_wire(values: Iterable[int]) -> tuple[Encoding, ...]:
    """The encodings that an agent can write and read; one that names none knows the first two."""
    known = tuple(_FROM_WIRE[value] for value in values if value in _FROM_WIRE)
    return known or _OF_EVERY_AGENT


def encoding_from_wire(value: int) -> Encoding:
    """The encoding of a protobuf value.

    Raises:
        UpdateRefused: this software does not know it.
    """
    if value not in _FROM_WIRE:
        raise UpdateRefused(
            Refusal.ENCODING,
            f"The encoding {value} is unknown",
            next_step="Upgrade the older of the two programs.",
        )
    return _FROM_WIRE[value]
