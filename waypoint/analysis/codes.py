"""Every code a finding can have: its severity and what it means. The one table that users look codes up in.

``IST`` codes are those of ``istioctl analyze``; the others are this project's. A code of severity ``error`` in the
sections about single objects is what the API server would refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ztun.mesh.document import Severity


@dataclass(frozen=True, slots=True)
class Code:
    """One code. ``strict`` findings become errors under ``--strict`` although they are not errors otherwise."""

    severity: Severity
    meaning: str
    strict: bool = False


def _table(severity: Severity, text: str, *, strict: bool = False) -> dict[str, Code]:
    found = {}
    for line in text.strip().splitlines():
        code, _, meaning = line.strip().partition(" ")
        found[code] = Code(severity, meaning.strip(), strict)
    return found


_ERRORS = """
SCHEMA a field is unknown, has the wrong type or exceeds a size limit
YAML the text is not acceptable YAML or JSON
FILE a file or directory cannot be read
VS-DELEGATE-L4 no hosts (a delegate) together with gateways, tcp or tls
VS-HOST-SYNTAX a host is no DNS name, wildcard or IP address
VS-HOST-WILD-MESH host * on a VirtualService that applies to the mesh
VS-HOST-DUP equal or overlapping hosts in one VirtualService
VS-NO-ROUTES no http, tcp or tls entry
VS-GW-SYNTAX a gateway name is malformed
VS-EXPORTTO exportTo is malformed or contradicts itself
TCP-MATCH-NULL a match block is null
TCP-SUBNET an element of destinationSubnets is neither an address nor a network
TCP-PORT a match port is out of range
TCP-LABELS a label key or value of sourceLabels is malformed
TCP-NO-ROUTE a tcp rule has no route
TLS-NO-MATCH a tls rule has no match block
TLS-NO-SNI a tls match block has no sniHosts
TLS-SNI-SYNTAX a server name is malformed
TLS-SNI-NOT-IN-HOSTS a server name is not covered by the hosts
TLS-NO-ROUTE a tls rule has no route
DST-MISSING a route entry has no destination
DST-HOST-SYNTAX a destination host is malformed
DST-SUBSET-NAME a subset name is malformed
DST-PORT-NUMBER a destination port has no number or is out of range
WT-NEGATIVE a weight is below 0
WT-TOTAL-ZERO several destinations, and all their weights are 0 or absent
DR-HOST the host of a DestinationRule is empty or malformed
DR-SUBSET-NAME a subset has no name, or a malformed one
DR-SUBSET-DUP a subset name occurs twice
DR-LABELS a label of a subset or selector is malformed
DR-SELECTOR-EXPORT workloadSelector together with exportTo other than "."
TP-EMPTY a trafficPolicy with nothing in it
TP-PORT-MISSING a portLevelSettings entry without port or without settings
TP-TUNNEL-PROXY tunnel or proxyProtocol is malformed, or both are set
CP-EMPTY connectionPool with neither tcp nor http
CP-NEGATIVE a negative count in connectionPool
DURATION a duration is malformed, below 1ms or finer than 1ms
OD-PERCENT a percentage of outlierDetection is outside 0..100
OD-SPLIT consecutiveLocalOriginFailures without splitExternalLocalOriginErrors
LB-MAGLEV the Maglev table size is not prime or too large
LB-HASH-COOKIE a cookie hash without name, or with a repeated attribute
LB-LOCALITY-ZONE localityLbSetting together with zoneAwareLbSetting
LB-LOCALITY localityLbSetting contradicts itself
LB-WARMUP warmup without duration, or with a value out of range
LB-CHOICE loadBalancer with both simple and consistentHash
TLS-CLIENT-CERTIFICATE tls mode MUTUAL without certificate and key
TLS-CLIENT-UNEXPECTED certificate fields that the tls mode does not use
TLS-CLIENT-SOURCE credentialName together with file names
TLS-CLIENT-VERIFY insecureSkipVerify together with a CA or names to verify
GW-NO-SERVER a Gateway without servers
GW-LABELS a label of the selector is malformed
GW-NAME the name of a Gateway is no label
GW-PORT-NUMBER a server port is out of range, or does not fit its bind
GW-PORT-NAME a server port without name
GW-PORT-NAME-DUP a server port name that occurs twice
GW-PROTOCOL an unknown server protocol
GW-HOST-MISSING a server without hosts
GW-HOST-SYNTAX a server host is malformed
GW-HOST-SHORT a server host without a dot
GW-HOST-PARTIAL-WILD a server host with a partial wildcard
GW-HOST-NS the namespace part of a server host is malformed
GW-TLS-MISSING a TLS or HTTPS server without tls
GW-TLS-UNEXPECTED tls on a server of another protocol
GW-TLS-MATERIAL a terminating server without, or with too many, certificate sources
GW-TLS-MODE an unknown tls mode
GW-TLS-CREDENTIAL a terminating server whose certificate, key or client CA cannot be used
GW-BIND bind is neither an address nor a unix path
GW-TARGETPORT targetPort on a server port
GW-TARGETPORT-TAKEN two server ports are the same port of the gateway's pod
GAPI-WAYPOINT-LISTENER a waypoint with anything but one HBONE listener on port 15008
GAPI-REFNOTPERMITTED a backend in another namespace without a ReferenceGrant
GAPI-INVALID-KIND a backend of a kind that is not known
GAPI-RULES a route without rule or backend, or with more than one rule
GW-MATCH-OUTSIDE a match block names a gateway that spec.gateways does not
GW-CONFLICT a server lost its port to another Gateway
PROTO-HTTP-ON-TCP http routes for a TCP port: they are ignored
DST-NOHOST a destination names an unknown host
DST-NOPORT a destination names a port that its service does not have
DST-NOSUBSET a destination names a subset that no applying DestinationRule defines
DST-NOENDPOINT a destination has no ready endpoint
AMB-NO-WAYPOINT ambient clients, rules for the service, and no waypoint that would apply them
IST0101 something that is referred to does not exist
IST0109 two VirtualServices for one host in the mesh
IST0112 a destination with several ports and no port selector
IST0145 two Gateways claim the same port and hosts
IST0173 a subset selects no pod
"""

_WARNINGS = """
KIND a security object of a kind that is not known
DUPLICATE an object replaced another one of the same name
VS-GW-LEGACY a gateway name in the old dotted form
VS-NOROUTE a rule without routes is skipped
TCP-NAMESPACE-SYNTAX sourceNamespace is no namespace name
TLS-SNI-IP a server name that is an IP address never occurs
DR-SELECTOR-EMPTY workloadSelector without labels
OD-DEPRECATED consecutiveErrors is deprecated
LB-FAILOVER-NO-OD failover without outlierDetection never triggers
TP-NO-EFFECT a setting that has no effect on raw TCP
GW-TLS-PASSTHROUGH certificate fields that PASSTHROUGH ignores
GW-REDIRECT httpsRedirect on a server that is not HTTP
GW-CIPHER a cipher suite that is unknown or repeated
IST0116 one set of pods behind several services with clashing ports
IST0128 client TLS without CA certificates
IST0129 client TLS of a port without CA certificates
IST0130 a rule that can never be reached
IST0132 no host of a VirtualService is among those of its Gateway
IST0134 a TCP ServiceEntry without addresses
IST0162 a Gateway port that the gateway's Service does not offer
IST0165 a reference to an object generated from the Gateway API
IST0166 a policy selects a waypoint, which reads only policies with targetRefs
IST0167 a policy is attached to a service without waypoint: nobody enforces it
IST0174 the host of a DestinationRule matches no service
GW-MATCH-SOURCE sourceLabels or sourceNamespace on a rule that a gateway uses
GW-MATCH-SUBNETS destinationSubnets on a rule that a gateway uses
GW-HTTP a server for HTTP, which a layer-4 gateway does not open
GW-NO-ROUTE a server that no VirtualService has a route for, so its port is not opened
GW-UNKNOWN the mesh has no pod and no Deployment of the name that a gateway was started with
GW-DUP-HOST a server lost a host to another one
GW-DUP-SNI a server name is already routed on this port
TCP-HOST-ROUTING two VirtualServices with different hosts on one raw TCP server
WP-NS a VirtualService in a namespace that a waypoint does not read
WP-LABELS-NEVER sourceLabels never match at Istio's waypoint
WP-NAMESPACE-NEVER sourceNamespace never matches at Istio's waypoint
WP-SUBNETS-IGNORED destinationSubnets is ignored, and so widened, at Istio's waypoint
PROTO-TCP-ON-HTTP tcp routes for an HTTP port: they are ignored
PROTO-TLS-ON-TCP tls routes for a TCP port: they are ignored
PROTO-TCP-ON-TLS tcp routes for a TLS port: they are ignored
SUBNET-NEVER destinationSubnets contains no address of the service
DUP-CIDR a network that an earlier rule already has
PORT-NOT-SERVICE a match port that is no service port
VIP-CONFLICT two services share an address and port
GAPI-CONFLICTED an older route is attached to the same place
GAPI-KIND-NOT-ALLOWED no listener accepts this kind of route
GAPI-NOT-ALLOWED-BY-LISTENERS no listener accepts routes of this namespace
GAPI-NO-MATCHING-HOSTNAME no hostname of the route fits the listener
MIXED-API a VirtualService and a Gateway API route for one service
DR-HIDDEN a subset exists only in a DestinationRule that another one hides
"""

_STRICT_WARNINGS = """
AMB-MATCH-SUBNETS destinationSubnets is not evaluated in ambient mode
AMB-MATCH-PORT port is not evaluated in ambient mode
AMB-MATCH-LABELS sourceLabels is not evaluated in ambient mode
AMB-MATCH-NAMESPACE sourceNamespace is not evaluated in ambient mode
AMB-RULE-DROPPED a rule of which every block is disabled in ambient mode
AMB-SUBSET a rule skipped because subsets are switched off
AMB-MIXED sidecar clients and ambient clients get different results
"""

_INFO = """
WT-SUM weights that do not add up to 100
WT-ZERO a weight of 0 among several
WT-OMITTED an absent weight among several
WT-SINGLE a weight on a single destination
IST0118 a service port without a declared protocol
IST0131 a match block that an earlier rule already has
AMB-TLS tls routes, which ambient mode does not use
AMB-DR-POLICY a trafficPolicy on a destination of ambient mode
HOSTBITS a network written with host bits
SUBNET-ORDER a longer prefix overrides an earlier rule
SUBNET-OUTSIDE-SERVICE destinationSubnets reaches outside the service's addresses
TLS-NO-SNI-MATCH a server name that fits no tls rule
HOP-MISMATCH a rule is bound to another hop than the client's
NS-DEFAULTED an object without namespace
VS-NAME-REUSE an object replaced another one with different rules
"""

CODES: Mapping[str, Code] = MappingProxyType(
    _table("error", _ERRORS)
    | _table("warning", _WARNINGS)
    | _table("warning", _STRICT_WARNINGS, strict=True)
    | _table("info", _INFO)
)
