"""PeerAuthentication to DENY policies on connections without an identity.

The most specific mode counts: of a selector, then of the namespace, then of the mesh; UNSET takes that of the
next wider scope, and without any plaintext is accepted. Of two on one level the oldest counts, then the first
by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ztun.mesh.document import Document
from ztun.mesh.model import (
    Authorization,
    Match,
    PolicyAction,
    PolicyScope,
    Rule,
    StringMatch,
    StringMatchKind,
)
from ztun.resources.drafts import DraftIndex
from ztun.resources.policies import readable_labels
from ztun.resources.schema import Metadata
from ztun.resources.security import (
    Mode,
    MutualTls,
    PeerAuthentication,
    PeerAuthenticationSpec,
    WorkloadSelector,
)
from ztun.resources.settings import MeshSettings

STATIC_STRICT = "istio_converted_static_strict"
CONVERTED_PREFIX = "converted_peer_authentication_"
_NO_IDENTITY = Match(not_principals=(StringMatch(StringMatchKind.PRESENCE),))


def closed_authentication(document: Document) -> PeerAuthentication:
    """What stands in for one that is not valid: STRICT, for what it selects or else its namespace."""
    raw = document.data.get("spec")
    labels = readable_labels(raw if isinstance(raw, dict) else {})
    # Not validated: the labels may be what is wrong, and then they select nothing that exists.
    selector = WorkloadSelector.model_construct(match_labels=dict(labels)) if labels else None
    spec = PeerAuthenticationSpec.model_construct(
        selector=selector, mtls=MutualTls(mode="STRICT"), port_level_mtls={}
    )
    return PeerAuthentication.model_construct(metadata=Metadata(), spec=spec)


@dataclass(frozen=True, slots=True)
class _Modes:
    """The mode of a workload and of those ports that differ from it."""

    mode: Mode
    ports: Mapping[int, Mode]
    source: Document | None

    def rules(self) -> tuple[Rule, ...]:
        """What denies plaintext, ORed; nothing when plaintext is accepted everywhere."""
        strict = tuple(sorted(port for port, mode in self.ports.items() if mode == "STRICT"))
        lax = tuple(sorted(port for port, mode in self.ports.items() if mode != "STRICT"))
        if self.mode == "STRICT":
            exempt: Rule = ((Match(not_destination_ports=lax),),) if lax else ()
            return ((*exempt, (_NO_IDENTITY,)),)
        return (((Match(destination_ports=strict),), (_NO_IDENTITY,)),) if strict else ()


def is_converted(policy: Authorization) -> bool:
    """Whether a policy comes from a PeerAuthentication; gateways, whose clients have no identity, skip those."""
    return policy.name == STATIC_STRICT or policy.name.startswith(CONVERTED_PREFIX)


def attach_peer_authentication(
    found: Iterable[tuple[Document, PeerAuthentication]], drafts: DraftIndex, settings: MeshSettings
) -> list[Authorization]:
    """Add to each workload the policy that its modes amount to; returns the policies."""
    by_age = sorted(found, key=lambda one: (one[0].created or "9999", one[0].namespace, one[0].name))
    general: dict[str, Mode] = {}
    selected: list[tuple[Document, PeerAuthentication]] = []
    for document, model in by_age:
        if _labels(model):
            selected.append((document, model))
        else:
            general.setdefault(document.namespace, model.spec.mtls.mode)
    mesh_mode = _first_set(general.get(settings.root_namespace, "UNSET"), "PERMISSIVE")
    specific: dict[str, _Modes] = {}
    for document, model in selected:
        inherited = _first_set(general.get(document.namespace, "UNSET"), mesh_mode)
        mode = _first_set(model.spec.mtls.mode, inherited)
        ports: dict[int, Mode] = {
            int(port): tls.mode for port, tls in model.spec.port_level_mtls.items() if tls.mode != "UNSET"
        }
        for draft in drafts.select(document.namespace, _labels(model)):
            specific.setdefault(draft.base.uid, _Modes(mode, ports, document))
    policies: dict[str, Authorization] = {}
    for draft in drafts:
        namespace = draft.base.namespace
        modes = specific.get(draft.base.uid)
        if modes is None:
            modes = _Modes(_first_set(general.get(namespace, "UNSET"), mesh_mode), {}, None)
        rules = modes.rules()
        if rules:
            policy = _policy(modes, rules, settings)
            policies[policy.key] = policy
            draft.policies.append(policy.key)
    return list(policies.values())


def _labels(model: PeerAuthentication) -> Mapping[str, str]:
    return model.spec.selector.match_labels if model.spec.selector is not None else {}


def _first_set(mode: Mode, wider: Mode) -> Mode:
    return wider if mode == "UNSET" else mode


def _policy(modes: _Modes, rules: tuple[Rule, ...], settings: MeshSettings) -> Authorization:
    if modes.ports and modes.source is not None:
        name = f"{CONVERTED_PREFIX}{modes.source.name}"
        namespace = modes.source.namespace
    else:
        name, namespace = STATIC_STRICT, settings.root_namespace
    return Authorization(name, namespace, PolicyScope.WORKLOAD_SELECTOR, PolicyAction.DENY, rules)
