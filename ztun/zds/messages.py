"""The packets of ZDS: protobuf messages of the package ``istio.workload.zds``, one in each packet.

The proxy connects and sends :class:`Hello`; the agent sends requests, each answered by one :class:`Ack`. The
network namespace of an :class:`AddWorkload` travels beside the packet as one descriptor (SCM_RIGHTS). The message
types are declared here at run time, so there is no generated file. Source of names and numbers: ztunnel's zds.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from ztun.errors import ZdsError

MAX_MESSAGE_BYTES = 1024  # ztunnel's receive buffer; a longer packet is an error for it
VERSION_1 = 1  # enum Version: NOT_USED is 0, V1 is 1


@dataclass(frozen=True, slots=True)
class AddWorkload:
    """A pod to serve; idempotent for the same ``uid`` and namespace."""

    uid: str
    name: str
    namespace: str
    service_account: str


@dataclass(frozen=True, slots=True)
class KeepWorkload:
    """A pod whose namespace the agent cannot open any more and that is to outlive the snapshot."""

    uid: str


@dataclass(frozen=True, slots=True)
class DelWorkload:
    """A pod to stop serving at once."""

    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """Everything the agent knows was sent; what was not mentioned is gone."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The proxy's first packet."""

    version: int = VERSION_1


@dataclass(frozen=True, slots=True)
class Ack:
    """The answer to a request; an empty ``error`` is success."""

    error: str = ""


Request: TypeAlias = AddWorkload | KeepWorkload | DelWorkload | SnapshotSent

_PACKAGE = "istio.workload.zds"


def _classes() -> dict[str, Any]:
    file = FileDescriptorProto(name="ztun/zds.proto", package=_PACKAGE, syntax="proto3")
    version = file.enum_type.add(name="Version")
    version.value.add(name="NOT_USED", number=0)
    version.value.add(name="V1", number=VERSION_1)

    def message(name: str, *fields: tuple[str, int, str], oneof: str = "") -> None:
        declared = file.message_type.add(name=name)
        if oneof:
            declared.oneof_decl.add(name=oneof)
        for field, number, kind in fields:
            added = declared.field.add(name=field, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
            if kind == "string":
                added.type = FieldDescriptorProto.TYPE_STRING
            elif kind == "Version":
                added.type = FieldDescriptorProto.TYPE_ENUM
                added.type_name = f".{_PACKAGE}.{kind}"
            else:
                added.type = FieldDescriptorProto.TYPE_MESSAGE
                added.type_name = f".{_PACKAGE}.{kind}"
            if oneof:
                added.oneof_index = 0

    message("ZdsHello", ("version", 1, "Version"))
    message(
        "WorkloadInfo", ("name", 1, "string"), ("namespace", 2, "string"), ("service_account", 3, "string")
    )
    message("AddWorkload", ("uid", 1, "string"), ("workload_info", 2, "WorkloadInfo"))
    message("KeepWorkload", ("uid", 1, "string"))
    message("DelWorkload", ("uid", 2, "string"))
    message("SnapshotSent")
    message(
        "WorkloadRequest",
        ("add", 1, "AddWorkload"),
        ("del", 2, "DelWorkload"),
        ("snapshot_sent", 3, "SnapshotSent"),
        ("keep", 5, "KeepWorkload"),
        oneof="payload",
    )
    message("Ack", ("error", 1, "string"))
    message("WorkloadResponse", ("ack", 1, "Ack"), oneof="payload")
    pool = DescriptorPool()  # of our own: the same package may be loaded by others in this process
    pool.Add(file)
    names = [declared.name for declared in file.message_type]
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in names}


_CLASSES = _classes()


def encode_hello(version: int = VERSION_1) -> bytes:
    """Give the packet with which a proxy introduces itself."""
    return _packed(_CLASSES["ZdsHello"](version=version))


def decode_hello(data: bytes) -> Hello:
    """Read a proxy's first packet; raises :class:`ZdsError` ``zds_malformed``."""
    return Hello(int(_parsed("ZdsHello", data).version))


def encode_request(request: Request) -> bytes:
    """Give the packet of a request; raises :class:`ZdsError` ``zds_too_long`` for what no proxy would read."""
    message = _CLASSES["WorkloadRequest"]()
    if isinstance(request, AddWorkload):
        message.add.uid = request.uid
        message.add.workload_info.SetInParent()
        message.add.workload_info.name = request.name
        message.add.workload_info.namespace = request.namespace
        message.add.workload_info.service_account = request.service_account
    elif isinstance(request, KeepWorkload):
        message.keep.uid = request.uid
        message.keep.SetInParent()
    elif isinstance(request, DelWorkload):
        deleted = getattr(message, "del")
        deleted.uid = request.uid
        deleted.SetInParent()
    else:
        message.snapshot_sent.SetInParent()
    data = _packed(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise ZdsError(
            "zds_too_long",
            f"a request of {len(data)} bytes does not fit into a packet of {MAX_MESSAGE_BYTES}",
            hint="shorten the name, the namespace or the service account of the pod",
        )
    return data


def decode_request(data: bytes) -> Request:
    """Read an agent's packet.

    Raises :class:`ZdsError`: ``zds_malformed`` when it is no request, ``zds_no_workload_info`` when it adds a pod
    without saying which (a fault in the conversation rather than in the transport, as ztunnel sees it).
    """
    message = _parsed("WorkloadRequest", data)
    kind = message.WhichOneof("payload")
    if kind == "add":
        if not message.add.HasField("workload_info"):
            raise ZdsError("zds_no_workload_info", f"the pod {message.add.uid!r} was added without its name")
        info = message.add.workload_info
        return AddWorkload(message.add.uid, info.name, info.namespace, info.service_account)
    if kind == "keep":
        return KeepWorkload(message.keep.uid)
    if kind == "del":
        return DelWorkload(getattr(message, "del").uid)
    if kind == "snapshot_sent":
        return SnapshotSent()
    raise ZdsError("zds_malformed", "the packet holds no request that this version knows", hint=_HINT)


def read_request(data: bytes, *, descriptors: int, truncated: bool = False) -> Request:
    """Read an agent's packet together with what came beside it: one descriptor with an Add, none with all others.

    Raises :class:`ZdsError` as :func:`decode_request` does, and ``zds_truncated`` or ``zds_descriptors``.
    """
    if truncated or len(data) > MAX_MESSAGE_BYTES:
        raise ZdsError("zds_truncated", "received a message that does not fit into the buffer", hint=_HINT)
    request = decode_request(data)
    wanted = 1 if isinstance(request, AddWorkload) else 0
    if descriptors != wanted:
        kind = type(request).__name__
        raise ZdsError("zds_descriptors", f"{kind} came with {descriptors} descriptors instead of {wanted}")
    return request


def encode_ack(error: str = "") -> bytes:
    """Give the answer to a request: success, or what went wrong (cut to what a packet holds)."""
    message = _CLASSES["WorkloadResponse"]()
    message.ack.error = error.encode(errors="replace")[: MAX_MESSAGE_BYTES // 2].decode(errors="ignore")
    message.ack.SetInParent()
    return _packed(message)


def decode_ack(data: bytes) -> Ack:
    """Read a proxy's answer; raises :class:`ZdsError` ``zds_malformed``."""
    message = _parsed("WorkloadResponse", data)
    if message.WhichOneof("payload") != "ack":
        raise ZdsError("zds_malformed", "the packet holds no answer that this version knows", hint=_HINT)
    return Ack(message.ack.error)


_HINT = "is the other end of the socket an istio-cni, a ztunnel or a ztun?"


def _packed(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def _parsed(name: str, data: bytes) -> Any:
    try:
        return _CLASSES[name].FromString(data)
    except DecodeError as error:
        raise ZdsError("zds_malformed", f"the packet is no {name}: {error}", hint=_HINT) from error
