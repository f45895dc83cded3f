"""VirtualService of ``networking.istio.io`` (v1, v1beta1 and v1alpha3 share the schema).

Values that admission would refuse (a port out of range, a null destination) are accepted here on purpose: they get
their own code from the analysis, and the engines never let them widen a match.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from waypoint.resources.schema import (
    MAX_BLOCKS,
    MAX_LIST,
    MAX_RULES,
    Integer,
    Labels,
    Matching,
    Resource,
    Text,
    TextList,
    Whole,
)


class PortSelector(Resource):
    """``destination.port``."""

    number: Integer | None = None


class DestinationRef(Resource):
    """``destination``."""

    host: Text = ""
    subset: Text = ""
    port: PortSelector | None = None


class RouteDestination(Resource):
    """One weighted entry of ``route``."""

    destination: DestinationRef | None = None
    weight: Integer | None = None


class L4Match(Matching):
    """One block of ``tcp[].match``. The proto's ``sourceSubnet`` is implemented nowhere and therefore refused."""

    destination_subnets: TextList = ()
    port: Integer = 0
    source_labels: Labels = Field(default_factory=dict)
    gateways: TextList = ()
    source_namespace: Text = ""


class TlsMatch(L4Match):
    """One block of ``tls[].match``."""

    sni_hosts: TextList = ()


class TcpRule(Matching):
    """One entry of ``tcp``."""

    match: Annotated[tuple[L4Match | None, ...], Field(max_length=MAX_BLOCKS)] = ()
    route: Annotated[tuple[RouteDestination | None, ...], Field(max_length=MAX_LIST)] = ()


class TlsRule(Matching):
    """One entry of ``tls``."""

    match: Annotated[tuple[TlsMatch | None, ...], Field(max_length=MAX_BLOCKS)] = ()
    route: Annotated[tuple[RouteDestination | None, ...], Field(max_length=MAX_LIST)] = ()


class VirtualServiceSpec(Resource):
    """``spec``. The entries of ``http`` stay plain data: they are counted, and read only to suggest a fix."""

    hosts: TextList = ()
    gateways: TextList = ()
    export_to: TextList = ()
    http: Annotated[tuple[dict[str, Any], ...], Field(max_length=MAX_RULES)] = ()
    tls: Annotated[tuple[TlsRule, ...], Field(max_length=MAX_RULES)] = ()
    tcp: Annotated[tuple[TcpRule, ...], Field(max_length=MAX_RULES)] = ()


class VirtualServiceResource(Whole):
    """A VirtualService document."""

    spec: VirtualServiceSpec = VirtualServiceSpec()
