"""Certificates of a gateway's servers: where they come from, which clients they admit, and what is no secret."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.peers.web_certificates import WebAuthority, WebCertificate
from tests.waypoint.conftest import documents_of
from tests.waypoint.gateway.edge import gateway, secret, server
from waypoint.engines.ambient import AmbientEngine
from waypoint.gateway.admitted import admitted_clients
from waypoint.gateway.credentials import Credentials, Material
from waypoint.gateway.server_context import limit, read_certificates, read_key, server_context
from waypoint.routes.listeners import BoundServer
from waypoint.routes.model import GatewayConfig
from ztun.errors import ConfigError
from ztun.mesh.snapshot import Snapshot, build_snapshot

pytestmark = pytest.mark.unit

WEB = WebAuthority()
CHAIN, KEY, CA, CRL = "the chain", "the key", "the CA", "the list"


def snapshot(*documents: dict[str, Any]) -> Snapshot:
    return build_snapshot(workloads=(), services=(), policies=(), documents=documents_of(documents))


def find(tls: dict[str, Any], *secrets: dict[str, Any]) -> Material:
    state = snapshot(gateway("ingress", server(443, "TLS", tls=tls)), *secrets)
    (config,) = AmbientEngine().router(state).index.gateways
    assert isinstance(config, GatewayConfig)
    bound = BoundServer(config, config.servers[0], config.servers[0].hosts)
    return Credentials(state, "istio-system").find(bound)


@pytest.mark.parametrize(
    "values",
    [
        {"tls_crt": CHAIN, "tls_key": KEY, "ca_crt": CA, "ca_crl": CRL},
        {"cert": CHAIN, "key": KEY, "cacert": CA, "crl": CRL},
    ],
)
def test_both_forms_of_secrets_are_read(values: dict[str, str]) -> None:
    tls = {"mode": "MUTUAL", "credentialName": "shop"}
    assert find(tls, secret("shop", **values)) == Material(b"the chain", b"the key", b"the CA", b"the list")


def test_plain_text_values_are_read_too() -> None:
    plain = secret("shop")
    plain["stringData"] = {"tls.crt": CHAIN, "tls.key": KEY}
    assert find({"mode": "SIMPLE", "credentialName": "shop"}, plain) == Material(b"the chain", b"the key")


def test_clients_are_not_verified_by_a_ca_that_nobody_asked_for() -> None:
    found = find(
        {"mode": "SIMPLE", "credentialName": "shop"}, secret("shop", tls_crt=CHAIN, tls_key=KEY, ca_crt=CA)
    )
    assert not found.authorities


def test_a_separate_ca_comes_before_that_of_the_certificate() -> None:
    found = find(
        {"mode": "MUTUAL", "credentialName": "shop"},
        secret("shop", tls_crt=CHAIN, tls_key=KEY, ca_crt="another"),
        secret("shop-cacert", cacert=CA),
    )
    assert found.authorities == b"the CA"


@pytest.mark.parametrize(
    ("tls", "secrets", "code"),
    [
        ({"mode": "SIMPLE", "credentialName": "shop"}, [], "no_secret"),
        (
            {"mode": "SIMPLE", "credentialName": "shop"},
            [secret("shop", "default", tls_crt=CHAIN, tls_key=KEY)],
            "no_secret",
        ),
        ({"mode": "SIMPLE", "credentialName": "shop"}, [secret("shop", tls_key=KEY)], "secret_incomplete"),
        ({"mode": "SIMPLE", "credentialName": "shop"}, [secret("shop", tls_crt=CHAIN)], "secret_incomplete"),
        (
            {"mode": "MUTUAL", "credentialName": "shop"},
            [secret("shop", tls_crt=CHAIN, tls_key=KEY)],
            "no_client_ca",
        ),
        ({"mode": "SIMPLE"}, [], "no_credential"),
        ({"mode": "SIMPLE", "serverCertificate": "/nowhere"}, [], "no_credential"),
        (
            {"mode": "SIMPLE", "serverCertificate": "/nowhere", "privateKey": "/nowhere"},
            [],
            "file_unreadable",
        ),
    ],
)
def test_what_is_missing_is_said(tls: dict[str, Any], secrets: list[dict[str, Any]], code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find(tls, *secrets)
    assert caught.value.code == code


def test_a_value_that_is_no_base64_is_named_but_not_shown() -> None:
    broken = secret("shop", tls_crt=CHAIN)
    broken["data"]["tls.key"] = "PLAINLY"
    with pytest.raises(ConfigError) as caught:
        find({"mode": "SIMPLE", "credentialName": "shop"}, broken)
    assert "tls.key" in str(caught.value)
    assert "PLAINLY" not in str(caught.value)


def test_files_are_read_and_remembered(tmp_path: Path) -> None:
    for name in ("crt", "key", "ca"):
        (tmp_path / name).write_text(name)
    files = {"serverCertificate": "crt", "privateKey": "key", "caCertificates": "ca"}
    tls = {"mode": "MUTUAL", **{key: str(tmp_path / name) for key, name in files.items()}}
    assert find(tls) == Material(b"crt", b"key", b"ca")


def test_a_key_is_never_in_a_representation() -> None:
    assert KEY not in repr(Material(b"chain", KEY.encode()))


@pytest.mark.parametrize(("namespace", "found"), [("", "shop"), ("istio-system", "shop"), ("other", "")])
def test_a_secret_of_another_namespace_is_not_taken_for_one_of_the_same_name(
    namespace: str, found: str
) -> None:
    reference = {"name": "shop", **({"namespace": namespace} if namespace else {})}
    listener = {"name": "tls", "port": 443, "protocol": "TLS", "tls": {"certificateRefs": [reference]}}
    document = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "ingress", "namespace": "istio-system"},
        "spec": {"gatewayClassName": "istio", "listeners": [listener]},
    }
    (config,) = AmbientEngine().router(snapshot(document)).index.gateways
    tls = config.servers[0].tls
    assert tls is not None
    assert tls.credential_name == found


# -- contexts ---------------------------------------------------------------------------------------------------


def context(made: WebCertificate, key: str | None = None) -> Any:
    return server_context(
        read_certificates(made.chain.encode(), "the certificate"), read_key((key or made.key).encode())
    )


def test_a_key_of_another_certificate_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        context(WEB.issue("a"), WEB.issue("a").key)
    assert caught.value.code == "key_mismatch"


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (("TLSV9", "", ()), "tls_version"),
        (("TLSV1_3", "TLSV1_2", ()), "tls_version"),
        (("", "TLSV1_0", ()), "tls_version"),
        (("", "", ("NONSENSE",)), "tls_ciphers"),
        (("", "", ("not ascii \N{SNOWMAN}",)), "tls_ciphers"),
    ],
)
def test_limits_that_leave_nothing_are_refused(limits: tuple[str, str, tuple[str, ...]], code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        limit(context(WEB.issue("a")), *limits)
    assert caught.value.code == code


# -- clients ----------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate() -> Callable[..., x509.Certificate]:
    return lambda *names: x509.load_pem_x509_certificate(WEB.issue(*names).chain.encode())


def key_hash(certificate: x509.Certificate) -> str:
    der = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


def test_any_of_the_names_is_enough(certificate: Callable[..., x509.Certificate]) -> None:
    admitted = admitted_clients(["A.example.com", "spiffe://x/Y", "10.0.0.1"], [], [])
    for name in ("a.example.com", "spiffe://x/Y", "10.0.0.1"):
        assert admitted.admits(certificate("other.example.com", name))
    for name in ("b.example.com", "spiffe://x/y", "10.0.0.2"):
        assert not admitted.admits(certificate(name))


def test_a_key_or_a_hash_is_enough_and_names_count_besides(
    certificate: Callable[..., x509.Certificate],
) -> None:
    one, two, three = certificate("a"), certificate("a"), certificate("a")
    digest = hashlib.sha256(two.public_bytes(Encoding.DER)).hexdigest()
    with_colons = ":".join(digest[at : at + 2] for at in range(0, len(digest), 2)).upper()
    admitted = admitted_clients([], [key_hash(one)], [with_colons])
    assert [admitted.admits(each) for each in (one, two, three)] == [True, True, False]
    assert not admitted_clients(["b"], [key_hash(one)], []).admits(one)


def test_without_a_list_everybody_is_admitted(certificate: Callable[..., x509.Certificate]) -> None:
    admitted = admitted_clients([], [], [])
    assert not admitted.restricted
    assert admitted.admits(certificate("anybody"))
