"""What a failed handshake means, in words: OpenSSL's verification numbers, its reasons and the peer's alerts.

Source: RFC 8446 section 6 (alerts); OpenSSL's X509_verify_cert_error_string(3).
"""

from __future__ import annotations

from OpenSSL import SSL

from certs.peer import TlsRejection

_CODES = SSL.X509VerificationCodes

_VERIFICATION = {
    _CODES.ERR_CERT_HAS_EXPIRED: (
        "peer_expired",
        "has expired",
        "check its renewal, and the clocks of both ends",
    ),
    _CODES.ERR_CERT_NOT_YET_VALID: (
        "peer_not_yet_valid",
        "is not yet valid",
        "check the clocks of both ends",
    ),
    _CODES.ERR_CERT_REVOKED: ("peer_revoked", "is revoked", "issue a new one"),
    _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: (
        "peer_self_signed",
        "is self-signed",
        "it must come from the CA of the mesh",
    ),
    _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN: (
        "peer_unknown_issuer",
        "comes from a root that is not trusted here",
        "both ends must trust the same roots",
    ),
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT: (
        "peer_unknown_issuer",
        "comes from an issuer that is not trusted here",
        "both ends must trust the same roots",
    ),
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: (
        "peer_unknown_issuer",
        "comes from an issuer that is not trusted here",
        "both ends must trust the same roots, and intermediates must be sent",
    ),
    _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: (
        "peer_unknown_issuer",
        "comes from an issuer that is not trusted here",
        "both ends must trust the same roots, and intermediates must be sent",
    ),
    _CODES.ERR_CERT_SIGNATURE_FAILURE: (
        "peer_chain",
        "is not signed by the issuer that it names",
        "another CA may use the same name",
    ),
    _CODES.ERR_INVALID_PURPOSE: (
        "peer_chain",
        "is not meant for this side of a connection",
        "it needs both serverAuth and clientAuth among its extended key usages",
    ),
    _CODES.ERR_INVALID_CA: ("peer_chain", "was signed by a certificate that is no CA", ""),
    _CODES.ERR_PATH_LENGTH_EXCEEDED: ("peer_chain", "has more intermediates than its CA allows", ""),
    _CODES.ERR_CERT_CHAIN_TOO_LONG: ("peer_chain", "has too long a chain", ""),
}

_ALERTS = {
    "certificate expired": (
        "certificate_expired",
        "certificate expired",
        "check our renewal, and both clocks",
    ),
    "certificate revoked": ("certificate_revoked", "certificate revoked", "issue a new one"),
    "unknown ca": ("unknown_ca", "it does not trust our CA", "both ends must trust the same roots"),
    "bad certificate": ("bad_certificate", "it cannot use it, or expects another identity", ""),
    "certificate unknown": ("certificate_unknown", "it cannot use it, or expects another identity", ""),
    "unsupported certificate": ("unsupported_certificate", "its kind is not supported", ""),
    "access denied": ("access_denied", "it expects another identity", ""),
    "decrypt error": ("decrypt_error", "a signature did not verify", ""),
    "certificate required": ("certificate_required", "we showed none", ""),
}

_OTHER_ALERTS = {
    "no application protocol": ("tls_alpn", "the peer does not speak HTTP/2 here", "is this an HBONE port?"),
    "protocol version": ("tls_version", "the peer refused our TLS version", "HBONE needs TLS 1.3"),
    "handshake failure": ("alert_handshake_failure", "the peer found no common TLS parameters", ""),
    "unrecognized name": ("alert_unrecognized_name", "the peer insists on a server name", "HBONE sends none"),
    "internal error": ("alert_internal_error", "the peer reports an internal error", "see its log"),
}

_REASONS = {
    "peer did not return a certificate": (
        "peer_no_certificate",
        "the peer showed no certificate",
        "a tunnel needs a client certificate",
    ),
    "no application protocol": ("tls_alpn", "the peer does not offer HTTP/2", "is it an HBONE client?"),
    "unsupported protocol": ("tls_version", "the peer does not speak TLS 1.3", ""),
    "wrong version number": ("tls_not_tls", "the peer does not speak TLS", "is this an HBONE port?"),
    "http request": ("tls_not_tls", "the peer sent a plain HTTP request", "this port speaks TLS"),
    "https proxy request": ("tls_not_tls", "the peer sent a plain CONNECT request", "this port speaks TLS"),
    "packet length too long": ("tls_not_tls", "the peer does not speak TLS", "is this an HBONE port?"),
    "record layer failure": ("tls_not_tls", "the peer does not speak TLS", "is this an HBONE port?"),
    "no shared cipher": ("tls_parameters", "no cipher suite in common", ""),
    "no suitable key share": ("tls_parameters", "no key exchange group in common", ""),
    "no suitable signature algorithm": ("tls_parameters", "no signature algorithm in common", ""),
    "decryption failed or bad record mac": ("tls_corrupted", "the bytes were changed on the way", ""),
    "unexpected message": ("tls_protocol", "the peer broke the TLS protocol", ""),
}


def verification_failure(number: int, depth: int) -> TlsRejection:
    """Say what OpenSSL's verification error ``number`` at ``depth`` (0 is the leaf) means."""
    code, what, hint = _VERIFICATION.get(number, ("peer_chain", "does not verify", f"X.509 error {number}"))
    subject = "the peer's certificate" if depth == 0 else "a CA certificate in the peer's chain"
    return TlsRejection(code, f"{subject} {what}", hint)


def describe_failure(error: Exception) -> TlsRejection:
    """Say what an error of a TLS connection means: a refusal by the peer, or something that is not TLS.

    A rejection of our own is known more precisely; see :func:`certs.context.handshake_failure`.
    """
    if isinstance(error, SSL.ZeroReturnError):
        return TlsRejection("tls_closed", "the peer ended the TLS session")
    if isinstance(error, SSL.SysCallError):
        return TlsRejection(
            "tls_truncated", "the peer closed the connection in the middle of the TLS session"
        )
    for reason in _reasons(error):
        _, alert, name = reason.partition(" alert ")
        if alert:
            if name in _ALERTS:
                suffix, why, hint = _ALERTS[name]
                return TlsRejection(f"alert_{suffix}", f"the peer refused our certificate: {why}", hint)
            if name in _OTHER_ALERTS:
                return TlsRejection(*_OTHER_ALERTS[name])
            return TlsRejection(
                f"alert_{name.replace(' ', '_')}", f"the peer ended the handshake: {name}", hint="see its log"
            )
        if reason in _REASONS:
            return TlsRejection(*_REASONS[reason])
    detail = "; ".join(_reasons(error))
    return TlsRejection("tls_protocol", f"the TLS session failed{': ' if detail else ''}{detail}")


def _reasons(error: Exception) -> list[str]:
    """Give the reasons on OpenSSL's error queue, most recent last, without its library and function names."""
    entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
    return [str(entry[2]) for entry in entries if isinstance(entry, tuple) and len(entry) == 3 and entry[2]]
