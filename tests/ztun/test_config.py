from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from certs.authority import LEAF_LIFETIME
from ztun.config import ProxySettings, settings_from
from ztun.dns.settings import DnsSettings
from ztun.errors import ConfigError
from ztun.zds.settings import InpodSettings, ProxyPod

pytestmark = pytest.mark.unit


def settings(environment: dict[str, str]) -> ProxySettings:
    return settings_from(environment, config_paths=(Path("mesh.yaml"),), node="node-a", ca="ca")


def test_certificates_live_as_long_as_ztunnels_unless_told_otherwise() -> None:
    assert settings({}).certificate_lifetime == LEAF_LIFETIME
    assert settings({"SECRET_TTL": "1h30m"}).certificate_lifetime == timedelta(minutes=90)


@pytest.mark.parametrize("text", ["9s", "2161h", "soon", "-1h"])
def test_a_lifetime_that_no_ca_would_give_is_refused_at_start(text: str) -> None:
    with pytest.raises(ConfigError, match="SECRET_TTL") as raised:
        settings({"SECRET_TTL": text})
    assert raised.value.code == "bad_environment"


def test_in_pod_mode_has_ztunnels_defaults() -> None:
    for name, value in (("INPOD_ENABLED", "true"), ("PROXY_MODE", "shared")):
        found = settings({name: value})
        assert found.inpod == InpodSettings(
            Path("/var/run/ztunnel/ztunnel.sock"), port_reuse=True, itself=None
        )
        assert (found.sockets.mark, found.capture) == (1337, False)
    plain = settings({})
    assert (plain.inpod, plain.sockets.mark, plain.keep_source, plain.ipv6) == (None, None, None, True)


def test_in_pod_settings_are_ztunnels_variables() -> None:
    found = settings(
        {
            "INPOD_ENABLED": "true",
            "INPOD_UDS": "/run/zds.sock",
            "INPOD_PORT_REUSE": "false",
            "PACKET_MARK": "0x53a",
            "ENABLE_ORIG_SRC": "false",
            "IPV6_ENABLED": "false",
            "POD_NAME": "ztunnel-x",
            "POD_NAMESPACE": "istio-system",
            "SERVICE_ACCOUNT": "ztunnel",
            "TRUST_DOMAIN": "td",
        }
    )
    itself = ProxyPod("ztunnel-x", "istio-system", "ztunnel", "td")
    assert found.inpod == InpodSettings(Path("/run/zds.sock"), port_reuse=False, itself=itself)
    assert (found.sockets.mark, found.keep_source, found.ipv6) == (0x53A, False, False)


def test_dedicated_mode_captures_its_own_namespace() -> None:
    found = settings({"PROXY_MODE": "dedicated"})
    assert (found.inpod, found.capture, found.sockets.mark) == (None, True, None)


@pytest.mark.parametrize(
    "environment",
    [
        {"INPOD_ENABLED": "true", "ZTUN_CAPTURE": "true"},
        {"INPOD_ENABLED": "true", "PROXY_MODE": "dedicated"},
        {"PROXY_MODE": "both"},
        {"INPOD_ENABLED": "true", "PACKET_MARK": "many"},
    ],
)
def test_modes_that_do_not_go_together_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        settings(environment)


def test_captured_pods_have_a_dns_proxy_unless_it_is_switched_off() -> None:
    assert settings({}).dns is None
    for captured in ({"INPOD_ENABLED": "true"}, {"ZTUN_CAPTURE": "true"}, {"PROXY_MODE": "dedicated"}):
        assert settings(captured).dns == DnsSettings()
        for value in ("false", "no", "TRUE"):
            assert settings({**captured, "ISTIO_META_DNS_CAPTURE": value}).dns is None


def test_dns_settings_are_ztunnels_variables() -> None:
    found = settings(
        {
            "PROXY_MODE": "shared",
            "ISTIO_META_DNS_CAPTURE": "true",
            "ISTIO_META_DNS_PROXY_ADDR": "localhost:5353",
            "PREFERED_SERVICE_NAMESPACE": "shared-services",
            "ZTUN_RESOLV_CONF": "/etc/ztun/resolv.conf",
        }
    )
    assert found.dns == DnsSettings(
        ("127.0.0.1", "::1"), 5353, Path("/etc/ztun/resolv.conf"), "shared-services"
    )
    for text, ips in (("127.0.0.1:15053", ("127.0.0.1",)), ("[::1]:15053", ("::1",))):
        dns = settings({"PROXY_MODE": "shared", "ISTIO_META_DNS_PROXY_ADDR": text}).dns
        assert dns is not None
        assert (dns.ips, dns.port) == (ips, 15053)
    for text in ("localhost", "elsewhere:15053", "127.0.0.1:0", ":15053"):
        with pytest.raises(ConfigError, match="ISTIO_META_DNS_PROXY_ADDR"):
            settings({"PROXY_MODE": "shared", "ISTIO_META_DNS_PROXY_ADDR": text})
