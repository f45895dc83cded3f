"""AuthorizationPolicy and PeerAuthentication.

Every field of their ``spec`` is known here, and the form of every value is checked: a policy with anything in it that
cannot be read is not valid, for a part that is left out could widen it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, Field, model_validator

from ztun.resources.schema import Labels, Name, Object, Port, Strict, Text, refuse

MAX_ITEMS = 16384  # of any list in a policy; about what fits into an object of the API server (1.5 MiB)

Items: TypeAlias = Annotated[list[Name], Field(min_length=1, max_length=MAX_ITEMS)]


def check_pattern(text: str) -> str:
    """``*``, ``prefix*``, ``*suffix`` or plain text; anything else would silently never match."""
    if "*" in text[1:-1] or (len(text) > 1 and text[0] == text[-1] == "*"):
        raise refuse(f"{text!r}: '*' may stand only at the start or only at the end")
    if text.startswith("spiffe://"):
        raise refuse(f"{text!r}: principals are written without scheme", "leave out spiffe://")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise refuse(f"{text!r} has a character that no identity has")
    return text


def check_block(text: str) -> str:
    """An IP address or network; bits of the host part are allowed, as in Istio."""
    try:
        network = ipaddress.ip_network(text, strict=False)
        if "%" in text:
            raise ValueError("an IPv6 zone has no meaning on another machine")
    except ValueError as error:
        raise refuse(f"{text!r} is not an IP address or network", "for example 10.0.0.0/8") from error
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise refuse(f"{text!r}: write IPv4 networks as IPv4")
    return text


def check_account(text: str) -> str:
    """``name`` or ``namespace/name``, without wildcards."""
    if not re.fullmatch(r"(?:[a-z0-9-]+/)?[A-Za-z0-9._-]+", text, re.ASCII):
        raise refuse(f"{text!r} is not a service account", "write NAME or NAMESPACE/NAME, without '*'")
    return text


def check_port(value: int | str) -> int:
    """A port as number or as text, which is how Istio prints it."""
    if isinstance(value, int):
        return value
    if not re.fullmatch(r"[1-9][0-9]{0,4}", value, re.ASCII) or int(value) > 65535:
        raise refuse(f"{value!r} is not a port from 1 to 65535")
    return int(value)


_Bounds = Field(min_length=1, max_length=MAX_ITEMS)
Patterns: TypeAlias = Annotated[list[Annotated[Name, AfterValidator(check_pattern)]], _Bounds]
Blocks: TypeAlias = Annotated[list[Annotated[Name, AfterValidator(check_block)]], _Bounds]
Accounts: TypeAlias = Annotated[list[Annotated[Name, AfterValidator(check_account)]], _Bounds]
PolicyPorts: TypeAlias = Annotated[list[Annotated[Port | Name, AfterValidator(check_port)]], _Bounds]
Values: TypeAlias = Annotated[list[Port | Name], _Bounds]
Condition = TypeVar("Condition", bound=Strict)


class WorkloadSelector(Strict):
    """``selector`` of a policy: labels that pods must have."""

    match_labels: Labels = Field(default_factory=dict, alias="matchLabels")


class PolicyTarget(Strict):
    """What a policy is attached to."""

    group: Text = ""
    kind: Name
    name: Name
    namespace: Text | None = None


class Source(Strict):
    """``from[].source``: conditions on the caller, ANDed; the values of each are ORed."""

    principals: Patterns = Field(default_factory=list)
    not_principals: Patterns = Field(default_factory=list, alias="notPrincipals")
    request_principals: Items = Field(default_factory=list, alias="requestPrincipals")
    not_request_principals: Items = Field(default_factory=list, alias="notRequestPrincipals")
    namespaces: Patterns = Field(default_factory=list)
    not_namespaces: Patterns = Field(default_factory=list, alias="notNamespaces")
    ip_blocks: Blocks = Field(default_factory=list, alias="ipBlocks")
    not_ip_blocks: Blocks = Field(default_factory=list, alias="notIpBlocks")
    remote_ip_blocks: Blocks = Field(default_factory=list, alias="remoteIpBlocks")
    not_remote_ip_blocks: Blocks = Field(default_factory=list, alias="notRemoteIpBlocks")
    service_accounts: Accounts = Field(default_factory=list, alias="serviceAccounts")
    not_service_accounts: Accounts = Field(default_factory=list, alias="notServiceAccounts")

    @model_validator(mode="after")
    def _says_something(self) -> Source:
        return _require_condition(self, "source")


class Operation(Strict):
    """``to[].operation``: conditions on what is asked for."""

    hosts: Items = Field(default_factory=list)
    not_hosts: Items = Field(default_factory=list, alias="notHosts")
    ports: PolicyPorts = Field(default_factory=list)
    not_ports: PolicyPorts = Field(default_factory=list, alias="notPorts")
    methods: Items = Field(default_factory=list)
    not_methods: Items = Field(default_factory=list, alias="notMethods")
    paths: Items = Field(default_factory=list)
    not_paths: Items = Field(default_factory=list, alias="notPaths")

    @model_validator(mode="after")
    def _says_something(self) -> Operation:
        return _require_condition(self, "operation")


class From(Strict):
    """An entry of ``from``."""

    source: Source


class To(Strict):
    """An entry of ``to``."""

    operation: Operation


CONDITION_KEYS: Mapping[str, Callable[[Any], object]] = {
    "source.ip": check_block,
    "source.namespace": check_pattern,
    "source.principal": check_pattern,
    "source.serviceAccount": check_account,
    "destination.ip": check_block,
    "destination.port": check_port,
}
"""What a layer-4 proxy can decide, and the form of the values."""
HTTP_CONDITION_KEYS = ("request.", "remote.ip", "connection.sni", "experimental.envoy.filters.")


class When(Strict):
    """An entry of ``when``: a condition by key."""

    key: Name
    values: Values = Field(default_factory=list)
    not_values: Values = Field(default_factory=list, alias="notValues")

    @model_validator(mode="after")
    def _says_something(self) -> When:
        if not self.values and not self.not_values:
            raise refuse("needs values or notValues", "a condition without values says nothing")
        check = CONDITION_KEYS.get(self.key)
        if check is None and not self.key.startswith(HTTP_CONDITION_KEYS):
            raise refuse(f"the key {self.key!r} is unknown", f"known are: {', '.join(CONDITION_KEYS)}")
        for value in [*self.values, *self.not_values]:
            if check is check_port:
                check_port(value)
            elif check is not None:
                check(str(value))
        return self


class PolicyRule(Strict):
    """One rule; an absent part matches everything, an empty one is refused because it is easily a slip."""

    from_: Annotated[list[From], Field(min_length=1, max_length=MAX_ITEMS)] = Field(
        default_factory=list, alias="from"
    )
    to: Annotated[list[To], Field(min_length=1, max_length=MAX_ITEMS)] = Field(default_factory=list)
    when: Annotated[list[When], Field(min_length=1, max_length=MAX_ITEMS)] = Field(default_factory=list)


class Provider(Strict):
    """The external authorizer of a CUSTOM policy."""

    name: Name


class AuthorizationPolicySpec(Strict):
    """``spec`` of an AuthorizationPolicy."""

    selector: WorkloadSelector | None = None
    target_ref: PolicyTarget | None = Field(default=None, alias="targetRef")
    target_refs: Annotated[list[PolicyTarget], Field(max_length=16)] = Field(
        default_factory=list, alias="targetRefs"
    )
    action: Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"] = "ALLOW"
    provider: Provider | None = None
    rules: Annotated[list[PolicyRule], Field(max_length=MAX_ITEMS)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_attachment(self) -> AuthorizationPolicySpec:
        ways = (self.selector is not None, self.target_ref is not None, bool(self.target_refs))
        if sum(ways) > 1:
            raise refuse("only one of selector, targetRef and targetRefs may be set", "remove the others")
        return self

    @property
    def targets(self) -> list[PolicyTarget]:
        """``targetRef`` and ``targetRefs`` in one list."""
        return [self.target_ref] if self.target_ref is not None else self.target_refs


class AuthorizationPolicy(Object):
    """Who may connect to what. Without ``spec`` it allows nothing."""

    spec: AuthorizationPolicySpec = AuthorizationPolicySpec()


Mode: TypeAlias = Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]


class MutualTls(Strict):
    """A mode; absent means that of the next wider scope."""

    mode: Mode = "UNSET"


class PeerAuthenticationSpec(Strict):
    """``spec`` of a PeerAuthentication."""

    selector: WorkloadSelector | None = None
    mtls: MutualTls = MutualTls()
    port_level_mtls: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}$")], MutualTls] = Field(
        default_factory=dict, alias="portLevelMtls"
    )

    @model_validator(mode="after")
    def _ports_need_a_selector(self) -> PeerAuthenticationSpec:
        if any(int(port) > 65535 for port in self.port_level_mtls):
            raise refuse("a port of portLevelMtls is above 65535")
        if self.port_level_mtls and not (self.selector and self.selector.match_labels):
            raise refuse(
                "portLevelMtls needs a selector", "ports belong to workloads: name them by their labels"
            )
        return self


class PeerAuthentication(Object):
    """Whether plaintext is taken."""

    spec: PeerAuthenticationSpec = PeerAuthenticationSpec()


def _require_condition(model: Condition, name: str) -> Condition:
    if not model.model_fields_set:
        raise refuse(f"{name} is empty", "a condition without fields says nothing; remove it or fill it in")
    return model
