"""What to do about a problem, by its code, where the place that found it knows nothing more precise.

Problems with certificates are in :mod:`certs.hints`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import certs.hints

_OTHER_PROXY = "see the log of the proxy at the other end"
_NODE_PROXY = "see the log of the node proxy; was it restarted?"

HINTS: Mapping[str, str] = MappingProxyType(
    {
        "admin_address": "write HOST:PORT, for example 127.0.0.1:15000",
        "agent_ended": "see the log of the agent",
        "bad_environment": "correct the variable or unset it; README.md lists them all",
        "bad_request": "are agent and command of the same version?",
        "command_stuck": "is the machine out of memory, or the kernel busy with its rules?",
        "connect_failed": "check the route to the address and the firewalls on it",
        "connection_reset": "see the log of the application that reset it",
        "dial_failed": "please report it with the log around it",
        "dns_empty": "check the name with a DNS client on this node",
        "dns_lookup": "check the name, and the resolver of this node",
        "dns_overload": "are the nameservers of this node silent? they have too many names to look up",
        "dns_server_failure": "see the log of the nameserver; does it serve this name, and may this node ask it?",
        "dns_stray_answers": "something sends forged answers, or the name server answers twice",
        "dump_file": "check the path; a dump is what GET /config_dump of the admin port answers",
        "dump_size": "is this the admin port of a proxy?",
        "engine_load": "is the package whole? python -c 'import PACKAGE' shows more",
        "h2_preface_timeout": "the other end may be overloaded, or no HBONE proxy",
        "internal_error": "a defect of the proxy: please report it, with the traceback in its log",
        "lab_analyze": "run 'waypoint analyze' on the directory yourself",
        "lab_capture": "the capture needs to be root, in the namespace it looks at",
        "lab_document": "correct the document at the place named",
        "lab_http": "see the logs in the directory of the lab",
        "lab_network": "end other labs; every network they take from is in use",
        "lab_no_answer": "see the logs in the directory of the lab",
        "lab_no_port": "every port that was tried is taken; end other labs",
        "lab_process_ended": "see its log in the directory of the lab",
        "lab_timeout": "the machine may be busy; see the logs in the directory of the lab",
        "namespace_taken": "two pods cannot share a namespace; withdraw the other one first",
        "namespace_unreadable": "see 'ip netns list'; the agent needs to be root",
        "namespace_unusable": "the proxy needs to be root with SYS_ADMIN and NET_ADMIN",
        "no_agent": "start 'ztun agent', or name its socket with --control",
        "no_healthy_upstream": "see the log for why the first attempt failed",
        "no_hostname": "create the Service or correct the name; only its own namespace may see a private one",
        "no_ip_for_service": "give the Service a clusterIP, or the waypoint the binding NONE",
        "no_namespace": "see 'ip netns list'",
        "no_port_for_services": "check ports and targetPort of the Service",
        "no_workload": "the caller's view of the mesh may be older than ours",
        "not_connect": "this port is for other proxies of the mesh; applications use their own address",
        "not_settled": "see the log of the agent",
        "peer_revoked": "issue a new certificate; 'certs inspect' shows serial numbers",
        "pool_overload": "the destination takes tunnels too slowly; add replicas or raise its stream limit",
        "proxy_header": "only the node proxy of this waypoint writes these headers",
        "proxy_header_flood": "is something other than the node proxy connecting to this port?",
        "proxy_header_missing": "only the node proxy of this waypoint connects to this port",
        "proxy_header_timeout": "only the node proxy of this waypoint connects to this port",
        "route_no_address": "give the Service a clusterIP, or dial a name that is one",
        "self_call": "ports 15001, 15006, 15008 and 15080 are the proxy's; dial the application's own",
        "socket_error": "see the system's log",
        "socks5_request": "the proxy takes SOCKS 5 with CONNECT and without authentication",
        "socks5_timeout": "is the client set up for SOCKS 5?",
        "state_unwritable": "check who may write to the directory of --state",
        "stream_refused": "the peer has as many streams as it allows; they are retried on another tunnel",
        "stream_reset": _OTHER_PROXY,
        "telemetry_servers": "see the log; the ports can be set with --admin-port and the like",
        "tls_handshake_timeout": "the client may be overloaded, or wait for the server to speak first in plain text",
        "tls_timeout": "the other end may be overloaded, or no HBONE proxy",
        "too_many_handshakes": "is this port open to others than proxies of the mesh?",
        "too_many_tunnels": "is the peer a proxy that keeps its tunnels?",
        "tunnel_closed": _OTHER_PROXY,
        "tunnel_lost": "the other proxy ended, or something between the two cut the connection",
        "unknown_source": "a forward is for clients of this machine, or of the pod it stands for",
        "unread": "its application has stopped to read",
        "zds_bad_identity": "correct namespace, name and service account of the pod",
        "zds_closed": _NODE_PROXY,
        "zds_descriptors": "the agent that sent it and this proxy do not fit together",
        "zds_late_keep": "the agent that sent it and this proxy do not fit together",
        "zds_no_workload_info": "the agent that sent it is too old",
        "zds_refused": _NODE_PROXY,
        "zds_second_snapshot": "the agent that sent it and this proxy do not fit together",
        "zds_timeout": _NODE_PROXY,
        "zds_version": "update the older of the two",
    }
)

SELF_EXPLANATORY = frozenset(
    {
        "closed_early",
        "destination_gone",
        "route_no_listener",
        "shutdown",
        "socks5_closed",
        "workload_gone",
        "zds_draining",
    }
)
"""Codes of what happens in the normal course of things: there is nothing to do."""


def hint_for(code: str) -> str:
    """The hint of a code, empty when there is none."""
    return HINTS.get(code) or certs.hints.hint_for(code)
