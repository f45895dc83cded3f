"""ServiceEntry and WorkloadEntry.

Every field of their ``spec`` is known here, so a misspelt one is an error and never silently without effect.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ztun.mesh.address import is_hostname
from ztun.mesh.model import canonical_ip
from ztun.resources.schema import (
    AccountName,
    Labels,
    Lenient,
    Name,
    Object,
    Port,
    Strict,
    Text,
    refuse,
)

MAX_ITEMS = 1024  # hosts, addresses and ports of one entry; more belong into several
MAX_ENDPOINTS = 65536  # listed in one entry; what fits into an object of the API server


def _address(text: str) -> str:
    if text.startswith("unix://"):
        raise refuse("unix domain sockets are not supported", "give the workload an IP address")
    try:
        return canonical_ip(text) if text else ""
    except ValueError as error:
        if not is_hostname(text):
            raise refuse(f"{text!r} is neither an IP address nor a hostname") from error
    return text.lower()


class EntryFields(Strict):
    """A WorkloadEntry's spec, also the form of an endpoint in a ServiceEntry."""

    address: Annotated[Text, AfterValidator(_address)] = ""
    ports: dict[Name, Port] = Field(default_factory=dict)
    labels: Labels = Field(default_factory=dict)
    network: Text = ""
    locality: Text = ""
    weight: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    service_account: AccountName = Field(default="", alias="serviceAccount")


class WorkloadEntry(Object):
    """A workload outside Kubernetes."""

    spec: EntryFields


class EntryPort(Strict):
    """A port of a ServiceEntry."""

    number: Port
    name: Name
    protocol: Text = ""
    target_port: Port | None = Field(default=None, alias="targetPort")


class EntrySelector(Strict):
    """``workloadSelector`` of a ServiceEntry."""

    labels: Labels


class ServiceEntrySpec(Strict):
    """``spec`` of a ServiceEntry."""

    hosts: Annotated[list[Name], Field(min_length=1, max_length=256)]
    addresses: Annotated[list[Name], Field(max_length=MAX_ITEMS)] = Field(default_factory=list)
    ports: Annotated[list[EntryPort], Field(max_length=MAX_ITEMS)] = Field(default_factory=list)
    location: Literal["MESH_EXTERNAL", "MESH_INTERNAL"] = "MESH_EXTERNAL"
    resolution: Literal["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"] = "NONE"
    endpoints: Annotated[list[EntryFields], Field(max_length=MAX_ENDPOINTS)] = Field(default_factory=list)
    workload_selector: EntrySelector | None = Field(default=None, alias="workloadSelector")
    export_to: list[Name] = Field(default_factory=list, alias="exportTo")
    subject_alt_names: list[Name] = Field(default_factory=list, alias="subjectAltNames")


class EntryAddress(Lenient):
    """An address that istiod allocated for a host."""

    value: Text | None = None
    host: Text | None = None


class EntryStatus(Lenient):
    """``status`` of a ServiceEntry."""

    addresses: list[EntryAddress] | None = None


class ServiceEntry(Object):
    """Hosts that are not Services."""

    spec: ServiceEntrySpec
    status: EntryStatus = EntryStatus()
