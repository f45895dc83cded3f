"""The Kubernetes kinds a mesh is read from, as far as they are used.

``kubectl get -o yaml`` output loads as it is: fields that are not used here are ignored.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ztun.resources.schema import AccountName, Labels, Lenient, Name, Object, OptionalIp, Port, Text


class Namespace(Object):
    """Its labels are what counts."""


class Node(Object):
    """Its topology labels are what counts."""


class ContainerPort(Lenient):
    """A port that a container declares; a service may refer to it by name."""

    container_port: Port = Field(alias="containerPort")
    name: Text | None = None
    protocol: Text | None = None


class Container(Lenient):
    """A container of a pod."""

    name: Text = ""
    ports: list[ContainerPort] | None = None


class PodSpec(Lenient):
    """``spec`` of a pod."""

    node_name: Text | None = Field(default=None, alias="nodeName")
    service_account_name: AccountName | None = Field(default=None, alias="serviceAccountName")
    host_network: bool | None = Field(default=None, alias="hostNetwork")
    containers: list[Container] | None = None
    init_containers: list[Container] | None = Field(default=None, alias="initContainers")


class PodIp(Lenient):
    """One of a pod's addresses."""

    ip: OptionalIp = ""


class Condition(Lenient):
    """A condition of a status."""

    type: Text
    status: Text


class PodStatus(Lenient):
    """``status`` of a pod."""

    phase: Text | None = None
    pod_ip: OptionalIp = Field(default="", alias="podIP")
    pod_ips: list[PodIp] | None = Field(default=None, alias="podIPs")
    conditions: list[Condition] | None = None


class Pod(Object):
    """A pod. One without ``status`` counts as running and ready."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class ServicePortSpec(Lenient):
    """A port of a Service; ``targetPort`` is a number or the name of a container port."""

    port: Port
    name: Text | None = None
    protocol: Text | None = None
    app_protocol: Text | None = Field(default=None, alias="appProtocol")
    target_port: Port | Name | None = Field(default=None, alias="targetPort")


class ServiceSpec(Lenient):
    """``spec`` of a Service."""

    type: Text | None = None
    cluster_ip: Text | None = Field(default=None, alias="clusterIP")
    cluster_ips: list[Text] | None = Field(default=None, alias="clusterIPs")
    external_name: Text | None = Field(default=None, alias="externalName")
    selector: Labels | None = None
    ports: list[ServicePortSpec] | None = None
    ip_families: list[Literal["IPv4", "IPv6"]] | None = Field(default=None, alias="ipFamilies")
    publish_not_ready_addresses: bool | None = Field(default=None, alias="publishNotReadyAddresses")
    internal_traffic_policy: Text | None = Field(default=None, alias="internalTrafficPolicy")
    traffic_distribution: Text | None = Field(default=None, alias="trafficDistribution")


class Service(Object):
    """A Service: ClusterIP, headless or ExternalName."""

    spec: ServiceSpec


class TargetReference(Lenient):
    """The object behind an endpoint."""

    kind: Text | None = None
    name: Text | None = None


class SliceConditions(Lenient):
    """Missing ``ready`` counts as ready, as the API says."""

    ready: bool | None = None


class SliceEndpoint(Lenient):
    """Addresses of one endpoint."""

    addresses: list[Text] = Field(default_factory=list)
    conditions: SliceConditions | None = None
    target_ref: TargetReference | None = Field(default=None, alias="targetRef")
    node_name: Text | None = Field(default=None, alias="nodeName")
    zone: Text | None = None


class SlicePort(Lenient):
    """A port all endpoints of a slice have; the name joins it with a port of the Service."""

    name: Text | None = None
    port: Port | None = None
    protocol: Text | None = None


class EndpointSlice(Object):
    """Endpoints of a Service that has no selector, or outside the cluster."""

    address_type: Text | None = Field(default=None, alias="addressType")
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None


class Selector(Lenient):
    """A label selector; expressions are not used for waypoints and refused rather than ignored."""

    match_labels: Labels | None = Field(default=None, alias="matchLabels")
    match_expressions: None = Field(default=None, alias="matchExpressions")


class RouteNamespaces(Lenient):
    """Which namespaces may attach to a listener."""

    from_: Literal["All", "Same", "Selector", "None"] = Field(default="Same", alias="from")
    selector: Selector | None = None


class AllowedRoutes(Lenient):
    """``allowedRoutes`` of a listener."""

    namespaces: RouteNamespaces = RouteNamespaces()


class Listener(Lenient):
    """A listener of a Gateway API Gateway."""

    name: Text = ""
    port: Port
    protocol: Text
    allowed_routes: AllowedRoutes = Field(default=AllowedRoutes(), alias="allowedRoutes")


class GatewaySpec(Lenient):
    """``spec`` of a Gateway API Gateway."""

    gateway_class_name: Name = Field(alias="gatewayClassName")
    listeners: list[Listener] = Field(default_factory=list)


class KubernetesGateway(Object):
    """A Gateway API Gateway; class ``istio-waypoint`` makes it a waypoint."""

    spec: GatewaySpec
