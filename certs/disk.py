"""Files of certificates and keys: written whole or not at all, and private from the first byte."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from certs.errors import CertError
from certs.unreadable import UNREADABLE

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
MAX_KEY_BYTES = 64 * 1024  # an RSA-8192 key in PEM is about 6 kB
MAX_FILE_BYTES = 16 * 1024 * 1024  # the largest revocation list that is read


def write_file(path: Path, data: bytes, *, private: bool) -> None:
    """Replace a file in one step; its mode is set when it is made. Raises :class:`CertError`."""
    mode = PRIVATE_MODE if private else PUBLIC_MODE
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CertError("file_not_written", f"{path}: {_why(error)}", hint="check the directory") from None


def read_file(path: Path) -> bytes:
    """Read a file of bounded size. Raises :class:`CertError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CertError("file_not_read", f"{path}: {_why(error)}") from None
    if len(data) > MAX_FILE_BYTES:
        raise CertError("file_not_read", f"{path}: longer than {MAX_FILE_BYTES} bytes")
    return data


def write_key(path: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
    """Write a private key as PKCS #8 PEM, readable by its owner only."""
    data = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_file(path, data, private=True)


def read_key(path: Path) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    """Read an unencrypted PEM private key, ECDSA or RSA. Raises :class:`CertError`."""
    data = read_file(path)
    try:
        if len(data) > MAX_KEY_BYTES:
            raise ValueError
        key = serialization.load_pem_private_key(data, password=None)
    except UNREADABLE:
        raise CertError("key_unreadable", f"{path}: not an unencrypted PEM private key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise CertError("key_kind", f"{path}: neither an ECDSA nor an RSA key")
    return key


def make_directory(path: Path) -> None:
    """Make a directory for its owner only, unless it is there. Raises :class:`CertError`."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CertError("directory_not_made", f"{path}: {_why(error)}") from None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes from changing the directory meanwhile. Raises :class:`CertError`."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise CertError("file_not_read", f"{directory}: {_why(error)}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
