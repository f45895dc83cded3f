"""``ztun version``: what a bug report needs to say."""

from __future__ import annotations

import typer


def versions() -> dict[str, str]:
    """Name and version of everything that touches a byte on the wire.

    Two OpenSSLs are named: the one that CPython's ``ssl`` is linked to and the one inside ``cryptography``,
    which carries the tunnels.
    """
    import platform
    import ssl
    from importlib.metadata import PackageNotFoundError, version

    from cryptography.hazmat.backends.openssl import backend

    from ztun import __version__

    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return {
        "ztun": __version__,
        "python": platform.python_version(),
        "openssl (ssl)": ssl.OPENSSL_VERSION,
        "openssl (cryptography)": backend.openssl_version_text(),
        "cryptography": installed("cryptography"),
        "pyopenssl": installed("pyopenssl"),
        "h2": installed("h2"),
        "uvloop": installed("uvloop"),
    }


def register(app: typer.Typer) -> None:
    """Add the command to the application."""

    @app.command("version", short_help="Print what a bug report needs to say.")
    def version_command() -> None:
        """Print the versions of ztun, Python, both OpenSSLs, h2 and uvloop."""
        table = versions()
        width = max(map(len, table))
        for name, value in table.items():
            typer.echo(f"{name:<{width}}  {value}")
