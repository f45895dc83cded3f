"""Gateway, TCPRoute, TLSRoute and ReferenceGrant of ``gateway.networking.k8s.io``, as far as layer 4 needs them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from waypoint.resources.schema import MAX_LIST, Integer, Labels, Lenient, Text, TextList, Whole

MAX_LISTENERS = 64  # Gateway API
MAX_PARENTS = 32  # Gateway API
MAX_BACKENDS = 16  # Gateway API
MAX_ROUTE_RULES = 16  # Gateway API allows one for TCPRoute and TLSRoute; more are diagnosed


class LabelSelector(Lenient):
    """A label selector; only ``matchLabels`` is evaluated."""

    match_labels: Labels = Field(default_factory=dict)
    match_expressions: Annotated[tuple[dict[str, object], ...], Field(max_length=MAX_LIST)] = ()


class RouteNamespaces(Lenient):
    """``allowedRoutes.namespaces``."""

    from_: Text = Field(default="Same", alias="from")
    selector: LabelSelector | None = None


class RouteKind(Lenient):
    """One entry of ``allowedRoutes.kinds``."""

    group: Text = "gateway.networking.k8s.io"
    kind: Text = ""


class AllowedRoutes(Lenient):
    """``allowedRoutes``."""

    namespaces: RouteNamespaces = RouteNamespaces()
    kinds: Annotated[tuple[RouteKind, ...], Field(max_length=MAX_LIST)] = ()


class CertificateRef(Lenient):
    """One entry of ``tls.certificateRefs``."""

    kind: Text = "Secret"
    name: Text = ""
    namespace: Text = ""


class ListenerTls(Lenient):
    """``listeners[].tls``."""

    mode: Text = "Terminate"
    certificate_refs: Annotated[tuple[CertificateRef, ...], Field(max_length=MAX_LISTENERS)] = ()


class ListenerSpec(Lenient):
    """One entry of ``listeners``."""

    name: Text = ""
    hostname: Text = ""
    port: Integer = 0
    protocol: Text = ""
    tls: ListenerTls | None = None
    allowed_routes: AllowedRoutes = AllowedRoutes()


class ApiGatewaySpec(Lenient):
    """``spec`` of a Gateway."""

    gateway_class_name: Text = ""
    listeners: Annotated[tuple[ListenerSpec, ...], Field(max_length=MAX_LISTENERS)] = ()


class ApiGatewayResource(Whole):
    """A Gateway document of the Gateway API."""

    spec: ApiGatewaySpec = ApiGatewaySpec()


class ParentRef(Lenient):
    """One entry of ``parentRefs``."""

    group: Text = "gateway.networking.k8s.io"
    kind: Text = "Gateway"
    namespace: Text = ""
    name: Text = ""
    section_name: Text = ""
    port: Integer | None = None


class BackendRef(Lenient):
    """One entry of ``backendRefs``; an absent weight is 1."""

    group: Text = ""
    kind: Text = "Service"
    namespace: Text = ""
    name: Text = ""
    port: Integer | None = None
    weight: Integer = 1


class RouteRule(Lenient):
    """The rule of a TCPRoute or TLSRoute."""

    backend_refs: Annotated[tuple[BackendRef, ...], Field(max_length=MAX_BACKENDS)] = ()


class ApiRouteSpec(Lenient):
    """``spec`` of a TCPRoute or TLSRoute; only the latter has ``hostnames``."""

    parent_refs: Annotated[tuple[ParentRef, ...], Field(max_length=MAX_PARENTS)] = ()
    hostnames: TextList = ()
    rules: Annotated[tuple[RouteRule, ...], Field(max_length=MAX_ROUTE_RULES)] = ()


class ApiRouteResource(Whole):
    """A TCPRoute or TLSRoute document."""

    spec: ApiRouteSpec = ApiRouteSpec()


class GrantFrom(Lenient):
    """One entry of ``from``."""

    group: Text = ""
    kind: Text = ""
    namespace: Text = ""


class GrantTo(Lenient):
    """One entry of ``to``; without a name, every object of the kind."""

    group: Text = ""
    kind: Text = ""
    name: Text = ""


class ReferenceGrantSpec(Lenient):
    """``spec`` of a ReferenceGrant."""

    from_: Annotated[tuple[GrantFrom, ...], Field(max_length=MAX_LIST, alias="from")] = ()
    to: Annotated[tuple[GrantTo, ...], Field(max_length=MAX_LIST)] = ()


class ReferenceGrantResource(Whole):
    """A ReferenceGrant document."""

    spec: ReferenceGrantSpec = ReferenceGrantSpec()
