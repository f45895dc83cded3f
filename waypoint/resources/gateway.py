"""Gateway of ``networking.istio.io``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from waypoint.resources.schema import MAX_LIST, Integer, Labels, Lenient, Resource, Text, TextList, Whole


class ServerPort(Resource):
    """``servers[].port``."""

    number: Integer = 0
    name: Text = ""
    protocol: Text = ""
    target_port: Integer | None = None


class ServerTlsSpec(Lenient):
    """``servers[].tls``."""

    https_redirect: bool = False
    mode: Text = "PASSTHROUGH"
    server_certificate: Text = ""
    private_key: Text = ""
    ca_certificates: Text = ""
    credential_name: Text = ""
    credential_names: TextList = ()
    tls_certificates: Annotated[tuple[dict[str, Text], ...], Field(max_length=MAX_LIST)] = ()
    ca_cert_credential_name: Text = ""
    subject_alt_names: TextList = ()
    cipher_suites: TextList = ()
    verify_certificate_spki: TextList = ()
    verify_certificate_hash: TextList = ()
    min_protocol_version: Text = ""
    max_protocol_version: Text = ""


class ServerSpec(Resource):
    """One entry of ``servers``."""

    port: ServerPort | None = None
    bind: Text = ""
    hosts: TextList = ()
    tls: ServerTlsSpec | None = None
    default_endpoint: Text = ""
    name: Text = ""


class GatewaySpec(Resource):
    """``spec``."""

    servers: Annotated[tuple[ServerSpec, ...], Field(max_length=MAX_LIST)] = ()
    selector: Labels = Field(default_factory=dict)


class GatewayResource(Whole):
    """A Gateway document of Istio."""

    spec: GatewaySpec = GatewaySpec()
