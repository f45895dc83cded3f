"""What to do about a problem, by its code, where the place that found it knows nothing more precise."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_CA = "is the CA up, reachable, and meant for proxies? see its log"
_PEER_LOG = "see the log of the other end"
_REQUEST = (
    "the request must be made as 'certs' and the proxies make it: one SPIFFE URI, signed by its own key"
)
_PEM_CERTIFICATE = "it must hold text that begins with -----BEGIN CERTIFICATE-----"

HINTS: Mapping[str, str] = MappingProxyType(
    {
        "access_invalid": "an entry has a token or an identity, and in 'may' the SPIFFE identities it may ask for",
        "access_too_large": "is this the file that --access should name?",
        "access_unreadable": "correct the place named; lists begin with a dash, and spaces indent",
        "alert_access_denied": "the peer expects another identity at this address",
        "alert_bad_certificate": _PEER_LOG,
        "alert_certificate_required": "a tunnel needs a client certificate",
        "alert_certificate_unknown": _PEER_LOG,
        "alert_decrypt_error": "the key and the certificate of one end do not belong together; " + _PEER_LOG,
        "alert_handshake_failure": "both ends need TLS 1.3 with AES-GCM; " + _PEER_LOG,
        "alert_unsupported_certificate": "certificates of a mesh have ECDSA P-256 keys",
        "bundle_missing": _CA,
        "bundle_root_unreadable": "the file is damaged: fetch it again from the CA",
        "ca_answer_too_large": "is this the URL of a CA for proxies?",
        "ca_bad_certificate": _CA,
        "ca_certificate_unreadable": "put the right file back, or make another CA with 'certs init DIR'",
        "ca_credentials": "see CA_ROOT_CA, AUTH_TOKEN and ZTUN_CA_CERTIFICATE",
        "ca_failed": _CA,
        "ca_key_mismatch": "put the right files back, or make another CA with 'certs init DIR'",
        "ca_lifetime": "ask for a shorter lifetime",
        "ca_no_certificate": _CA,
        "ca_no_root": "make a CA with 'certs init DIR'",
        "ca_source": "write https://HOST:PORT",
        "ca_timeout": _CA,
        "ca_trust_domain": "ask the CA of that trust domain, or give the proxy this one with --trust-domain",
        "ca_wrong_key": _CA,
        "certificates_too_large": "is this the right file?",
        "certificates_unreadable": _PEM_CERTIFICATE,
        "crl_too_large": "is this the right file?",
        "crl_unreadable": "it must hold text that begins with -----BEGIN X509 CRL-----, or DER",
        "csr_identity": _REQUEST,
        "csr_identity_not_authorised": "see 'may' in the access file of the CA",
        "csr_signature": _REQUEST,
        "csr_too_large": _REQUEST,
        "csr_unreadable": _REQUEST,
        "directory_not_made": "check the path and who may write there",
        "file_not_read": "check the path and who may read it",
        "key_kind": "make an ECDSA P-256 key",
        "key_unreadable": "remove its passphrase: openssl pkey -in OLD -out NEW",
        "listen": "ports below 1024 need privileges, and the address must be of this machine",
        "peer_chain": "it must come from the CA of the mesh, with its intermediates, unchanged",
        "peer_identity_mismatch": "an address without an identity to expect cannot be dialled by tunnel",
        "peer_spiffe_grammar": "it must be spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT",
        "server_without_certificate": "it is asked for in the background; see the log",
        "tls_closed": _PEER_LOG,
        "tls_corrupted": "something between the two ends changes what passes",
        "tls_parameters": "both ends need TLS 1.3 with AES-GCM and a common curve such as P-256",
        "tls_protocol": _PEER_LOG,
        "tls_truncated": _PEER_LOG + "; a firewall between them may have cut the connection",
        "tls_version": "HBONE needs TLS 1.3",
    }
)

SELF_EXPLANATORY = frozenset({"identity_forgotten", "store_closed"})
"""Codes of what happens in the normal course of things: there is nothing to do."""


def hint_for(code: str) -> str:
    """The hint of a code, empty when there is none."""
    return HINTS.get(code, "")
