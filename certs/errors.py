"""What can go wrong with certificates, each with a stable code and a hint for the person who reads it."""

from __future__ import annotations

from certs.hints import hint_for


class CertError(Exception):
    """Root of all errors here. ``code`` is stable across releases; ``hint`` says what to do next.

    Without a hint of its own an error has the one of its code (:mod:`certs.hints`).
    """

    def __init__(self, code: str, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint or hint_for(code)


class RequestError(CertError):
    """A certificate signing request does not prove what it must, or asks for more than was granted."""


class AuthorityError(CertError):
    """The certificate authority cannot be made, read or used."""


class BundleError(CertError):
    """Trusted roots or revocation lists cannot be used."""


class IssuerError(CertError):
    """No certificate could be had: the issuer is away, refused, or answered with something unusable."""
