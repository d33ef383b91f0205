"""Protobuf schemas of a registry → what a descriptor pool takes.

Asked for descriptors (`format=serialized`), Confluent's registry and Karapace tell them. Others know no such wish and
tell the text of the .proto file (seen: Apicurio 2.6): Google's compiler makes a descriptor of it.
"""

from __future__ import annotations

import base64
import binascii
import functools
import importlib
import importlib.resources
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from penstock.connectors.kafka.registry import Schema
from penstock.engine.errors import BadRecord

MESSAGE = "penstock.record.proto"
"""What the schema of a record is called: by no name that its references are likely to have."""
_WELL_KNOWN = (
    "any", "source_context", "type", "api", "descriptor", "duration", "empty", "field_mask", "struct", "timestamp",
    "wrappers",
)  # fmt: skip
"""Each behind what it imports."""
_GOOGLE = "google/protobuf"
_BUILT_IN = {
    "confluent/meta.proto": """
        package confluent;
        import "google/protobuf/descriptor.proto";
        message Meta { string doc = 1; map<string, string> params = 2; repeated string tags = 3; }
        extend google.protobuf.FileOptions { Meta file_meta = 1088; }
        extend google.protobuf.MessageOptions { Meta message_meta = 1088; }
        extend google.protobuf.FieldOptions { Meta field_meta = 1088; }
        extend google.protobuf.EnumOptions { Meta enum_meta = 1088; }
        extend google.protobuf.EnumValueOptions { Meta enum_value_meta = 1088; }""",
    "confluent/type/decimal.proto": """
        package confluent.type;
        message Decimal { bytes value = 1; uint32 precision = 2; int32 scale = 3; }""",
    "google/type/date.proto": """
        package google.type;
        message Date { int32 year = 1; int32 month = 2; int32 day = 3; }""",
    "google/type/timeofday.proto": """
        package google.type;
        message TimeOfDay { int32 hours = 1; int32 minutes = 2; int32 seconds = 3; int32 nanos = 4; }""",
}
"""What Kafka Connect and ksqlDB write imports of, and no registry tells: Confluent's clients bring these along.
https://github.com/confluentinc/schema-registry/tree/master/protobuf-types"""


def files(schema: Schema, named: Mapping[str, Schema]) -> list[bytes]:
    """Serialized `FileDescriptorProto`s, each behind what it imports; the schema's own is the last and is called
    `MESSAGE`. `named`: what it refers to, dependencies first. Raises `BadRecord` where a schema is no Protobuf."""
    told = {**{name: other.schema for name, other in named.items()}, MESSAGE: schema.schema}
    descriptors = {name: _descriptor(text) for name, text in told.items()}
    if None in descriptors.values():
        return [*_well_known(), *_compiled({**_built_in_texts(), **told}).values()]
    built_in = [one for name, one in _built_in().items() if name not in told]
    return [*_well_known(), *built_in, *(_renamed(one, name) for name, one in descriptors.items() if one is not None)]


@functools.cache
def _built_in() -> dict[str, bytes]:
    imports = "".join(f'import "{name}"; ' for name in _BUILT_IN)
    found = _compiled({**_built_in_texts(), MESSAGE: f'syntax = "proto3"; {imports}'})
    return {name: one for name, one in found.items() if name != MESSAGE}


def _built_in_texts() -> dict[str, str]:
    return {name: f'syntax = "proto3"; {text}' for name, text in _BUILT_IN.items()}


def _well_known() -> Iterable[bytes]:
    for name in _WELL_KNOWN:
        yield importlib.import_module(f"google.protobuf.{name}_pb2").DESCRIPTOR.serialized_pb


def _descriptor(text: str) -> bytes | None:
    """None: it is the text of a .proto file, which always has characters that base64 has not."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _renamed(descriptor: bytes, name: str) -> bytes:
    """Under the name by which others import it: a registry may call it anything."""
    from google.protobuf import descriptor_pb2

    file = descriptor_pb2.FileDescriptorProto.FromString(descriptor)
    file.name = name
    return file.SerializeToString()


def _compiled(texts: Mapping[str, str]) -> dict[str, bytes]:
    """What `MESSAGE` is and imports, by name, each behind what it imports itself."""
    from google.protobuf import descriptor_pb2
    from grpc_tools import protoc

    google = importlib.resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory(prefix="penstock-proto-") as folder:
        for name, text in texts.items():
            path = Path(folder, _inside(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        out = Path(folder, "descriptors")
        command = ["protoc", f"-I{folder}", f"-I{google}", "--include_imports", f"--descriptor_set_out={out}", MESSAGE]
        if protoc.main(command) != 0:
            raise BadRecord("malformed", "the registry's schema is no Protobuf that protoc can read (its log says why)")
        found = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    known = {f"{_GOOGLE}/{name}.proto" for name in _WELL_KNOWN}
    return {file.name: file.SerializeToString() for file in found if file.name not in known}


def _inside(name: str) -> PurePosixPath:
    """The name of an import, as a path that can't lead out of its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise BadRecord("malformed", f"the schema imports {name!r}, which is no name of a file")
    return path
