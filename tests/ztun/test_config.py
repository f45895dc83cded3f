from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from certs.authority import LEAF_LIFETIME
from ztun.config import ProxySettings, settings_from
from ztun.errors import ConfigError

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
