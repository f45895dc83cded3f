"""What a CA server and its clients say to each other: JSON over HTTPS.

``POST /v1/certificates`` with :class:`CertificateQuestion` gives :class:`CertificateAnswer`; ``GET
/v1/trust`` gives :class:`TrustAnswer`. Every other status carries :class:`Refusal`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from certs.authority import LEAF_LIFETIME, MAX_LEAF_LIFETIME, MIN_ASKED_LIFETIME
from certs.bundle import MAX_BUNDLE_BYTES, MAX_CRL_BYTES
from certs.request import MAX_REQUEST_BYTES
from certs.spiffe import MAX_URI_BYTES

CERTIFICATES_PATH = "/v1/certificates"
TRUST_PATH = "/v1/trust"
HEALTH_PATH = "/healthz"
MAX_QUESTION_BYTES = 2 * MAX_REQUEST_BYTES  # a request in JSON, its line breaks escaped
MAX_ANSWER_BYTES = MAX_BUNDLE_BYTES + 2 * MAX_CRL_BYTES  # bounded by what a bundle may hold


class CertificateQuestion(BaseModel):
    """Asks for a certificate. ``csr`` is PEM and names ``identity``; the lifetime may be shortened."""

    model_config = ConfigDict(extra="forbid")
    identity: Annotated[str, Field(max_length=MAX_URI_BYTES)]
    csr: Annotated[str, Field(max_length=MAX_REQUEST_BYTES)]
    lifetime_seconds: Annotated[
        int,
        Field(
            ge=int(MIN_ASKED_LIFETIME.total_seconds()),
            le=int(MAX_LEAF_LIFETIME.total_seconds()),
        ),
    ] = int(LEAF_LIFETIME.total_seconds())


class CertificateAnswer(BaseModel):
    """The chain in PEM, leaf first, without the root."""

    chain: Annotated[str, Field(max_length=MAX_BUNDLE_BYTES)]


class TrustAnswer(BaseModel):
    """Roots and revocation lists in PEM."""

    roots: Annotated[str, Field(max_length=MAX_BUNDLE_BYTES)]
    crls: Annotated[str, Field(max_length=2 * MAX_CRL_BYTES)] = ""


class Refusal(BaseModel):
    """Why not; ``code`` is stable."""

    code: Annotated[str, Field(max_length=64)]
    message: Annotated[str, Field(max_length=4096)]
    hint: Annotated[str, Field(max_length=4096)] = ""
