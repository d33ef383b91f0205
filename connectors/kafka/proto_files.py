"""Protobuf schemas of a registry → what a descriptor pool takes.

Asked for descriptors (`format=serialized`), Confluent's registry and Karapace tell them. Others know no such wish and
tell the text of the .proto file (seen: Apicurio 2.6): Google's compiler makes a descriptor of it.
"""

from __future__ import annotations

import base64
import binascii
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


def files(schema: Schema, named: Mapping[str, Schema]) -> list[bytes]:
    """Serialized `FileDescriptorProto`s, each behind what it imports; the schema's own is the last and is called
    `MESSAGE`. `named`: what it refers to, dependencies first. Raises `BadRecord` where a schema is no Protobuf."""
    told = {**{name: other.schema for name, other in named.items()}, MESSAGE: schema.schema}
    descriptors = {name: _descriptor(text) for name, text in told.items()}
    compiled = None in descriptors.values()
    found = (
        _compiled(told) if compiled else [_renamed(one, name) for name, one in descriptors.items() if one is not None]
    )
    return [*_well_known(), *found]


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


def _compiled(texts: Mapping[str, str]) -> list[bytes]:
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
    return [file.SerializeToString() for file in found if file.name not in known]


def _inside(name: str) -> PurePosixPath:
    """The name of an import, as a path that can't lead out of its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise BadRecord("malformed", f"the schema imports {name!r}, which is no name of a file")
    return path
