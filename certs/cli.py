"""The ``certs`` command: make a CA, issue certificates, serve, look at them, rotate, revoke.

Exit codes: 0 done, 1 it could not be done (one line says why), 2 the command line cannot be used. What a
command needs is imported when it runs, so that ``certs --help`` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from certs.errors import CertError
from certs.spiffe import DEFAULT_TRUST_DOMAIN, SpiffeError, SpiffeId

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT
WIDE_COLUMNS = 8192  # an identity has at most 2,048 characters, a path 4,096

app = typer.Typer(
    name="certs",
    help="Identities of a mesh: a certificate authority for SPIFFE certificates.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Output(StrEnum):
    """The form of a listing."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


def _identity(text: str) -> SpiffeId:
    try:
        return SpiffeId.parse(text)
    except SpiffeError as error:
        raise typer.BadParameter(str(error)) from None


def _trust_domain(text: str) -> str:
    try:
        return SpiffeId(text, "any", "any").trust_domain
    except SpiffeError as error:
        raise typer.BadParameter(str(error)) from None


def _duration(text: str) -> timedelta:
    """Read ``90s``, ``30m``, ``24h`` or ``7d``."""
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
    if unit is None or not text[:-1].isascii() or not text[:-1].isdigit() or len(text) > 9:
        raise typer.BadParameter(f"{text!r} is not a duration such as 90s, 30m, 24h or 7d")
    return timedelta(seconds=int(text[:-1]) * unit)


def _address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``, with brackets around an IPv6 address."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port[:6]) > 65535:
        raise typer.BadParameter(f"{text!r} is not HOST:PORT")
    return host, int(port)


CaOption = Annotated[Path, typer.Option("--ca", metavar="DIR", help="The CA directory.")]
LifetimeOption = Annotated[
    timedelta,
    typer.Option(
        "--lifetime", parser=_duration, metavar="DURATION", help="Of the certificate: 90s, 30m, 24h, 7d."
    ),
]


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the CA will live.")],
    trust_domain: Annotated[
        str,
        typer.Option(
            "--trust-domain", parser=_trust_domain, metavar="NAME", help="Of every identity it signs."
        ),
    ] = DEFAULT_TRUST_DOMAIN,
    intermediate: Annotated[
        bool,
        typer.Option(
            "--intermediate", help="Sign with an intermediate; the key of the root can then be put away."
        ),
    ] = False,
) -> None:
    """Make a certificate authority."""
    from certs.directory import ROOT_KEY, CaDirectory
    from certs.store import wall_clock

    CaDirectory(directory).create(trust_domain, now=wall_clock(), intermediate=intermediate)
    print(f"made a CA for {trust_domain} in {directory}")
    if intermediate:
        print(f"hint: move {directory / ROOT_KEY} to a safe place; only a rotation needs it")


@app.command()
def issue(
    identity: Annotated[
        SpiffeId,
        typer.Argument(
            parser=_identity, metavar="SPIFFE_ID", help="spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT"
        ),
    ],
    ca: CaOption,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the three files go.")],
    lifetime: LifetimeOption = "24h",  # type: ignore[assignment]  # typer parses the default too
) -> None:
    """Issue a certificate: cert-chain.pem, key.pem and root-cert.pem."""
    from certs.bundle import certificates_pem, crls_pem
    from certs.directory import CaDirectory
    from certs.disk import make_directory, write_file, write_key
    from certs.issuers import files
    from certs.request import build_request, new_key
    from certs.store import wall_clock

    authority = CaDirectory(ca).load()
    key = new_key()
    chain = authority.sign(build_request(key, identity), identity, now=wall_clock(), lifetime=lifetime)
    make_directory(out)
    write_key(out / files.KEY, key)
    write_file(out / files.ROOTS, certificates_pem(authority.roots), private=False)
    if authority.crls:
        write_file(out / files.CRL, crls_pem(authority.crls), private=False)
    write_file(out / files.CHAIN, certificates_pem(chain), private=False)
    print(f"{identity} until {chain[0].not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC in {out}")


@app.command()
def serve(
    ca: CaOption,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen.")
    ] = "127.0.0.1:15012",
    name: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="HOST", help="A name or address that clients dial; may be repeated."),
    ] = None,
    access: Annotated[
        Path | None,
        typer.Option("--access", metavar="FILE", help="Who may have which identities (YAML, mode 0600)."),
    ] = None,
) -> None:
    """Serve a CA over HTTPS to those that a token or a certificate vouches for."""
    import asyncio

    from certs.endpoint import listen_on
    from certs.memory import forbid_dumps
    from certs.server import CaServer, ServerSettings
    from certs.store import wall_clock

    host, port = _address(listen)
    names = name or [host]
    if any(each in ("", "0.0.0.0", "::") for each in names):
        raise typer.BadParameter("clients cannot dial that address; say with --name what they dial")
    forbid_dumps()
    server = CaServer(ServerSettings(ca, names, access, wall_clock))
    with listen_on(host, port) as listening:
        address, bound = listening.getsockname()[:2]
        print(f"serving {ca} on https://{f'[{address}]' if ':' in address else address}:{bound}", flush=True)
        if access is None:
            print("hint: without --access certificates can be renewed by their holders, and nothing else")
        asyncio.run(server.serve(listening))


@app.command()
def inspect(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="PEM files, or directories of them.")
    ],
    output: Annotated[Output, typer.Option("-o", "--output", help="The form of the listing.")] = Output.TABLE,
) -> None:
    """Show certificates: whose, from whom, until when."""
    from certs.inspection import inspect_paths
    from certs.store import wall_clock

    rows = inspect_paths(paths, now=wall_clock())
    if output is Output.JSON:
        import json

        print(json.dumps([row.as_dict() for row in rows], indent=2))
    elif output is Output.YAML:
        import yaml

        print(yaml.safe_dump([row.as_dict() for row in rows], sort_keys=False), end="")
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for title in ("STATE", "EXPIRES", "KIND", "IDENTITY", "SERIAL", "FILE"):
            table.add_column(title, no_wrap=True)
        for row in rows:
            expires = row.not_after.replace("T", " ").removesuffix("+00:00")
            table.add_row(row.state, expires, row.kind, row.identity, row.serial, row.file)
        # Wider than any row: a serial number that is cut off cannot be revoked.
        Console(markup=False, highlight=False, emoji=False, width=WIDE_COLUMNS).print(table)


@app.command()
def rotate(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The CA directory.")],
    retire: Annotated[bool, typer.Option("--retire", help="Stop trusting the earlier roots.")] = False,
) -> None:
    """Make a new root that signs from now on; the old one stays trusted until it is retired."""
    from certs.directory import CaDirectory
    from certs.store import wall_clock

    if retire:
        CaDirectory(directory).retire()
        print(f"{directory} trusts its current root only")
        return
    CaDirectory(directory).rotate(now=wall_clock())
    print(f"made a new root in {directory}; the old one stays trusted")
    print(f"hint: when all certificates have been renewed, run certs rotate --retire {directory}")


@app.command()
def revoke(
    certificate: Annotated[
        str, typer.Argument(metavar="CERTIFICATE", help="A PEM file, or a serial number in hexadecimal.")
    ],
    ca: CaOption,
) -> None:
    """Add a certificate to the revocation list, crl.pem."""
    from certs.bundle import parse_certificates
    from certs.directory import CRL, CaDirectory
    from certs.disk import read_file
    from certs.store import wall_clock

    path = Path(certificate)
    if path.is_file():
        leaf = parse_certificates(read_file(path), name=certificate)[0]
        serial, issuer = leaf.serial_number, leaf.issuer
    else:
        serial, issuer = _serial(certificate), None
    CaDirectory(ca).revoke(serial, issuer, now=wall_clock())
    print(f"revoked {serial:x} in {ca / CRL}")


def _serial(text: str) -> int:
    try:
        serial = int(text, 16)
    except ValueError:
        serial = 0
    # RFC 5280 section 4.1.2.2: positive, at most 20 octets.
    if not 0 < serial < 1 << 160:
        raise typer.BadParameter(f"{text!r} is neither a file nor a serial number in hexadecimal")
    return serial


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the ``certs`` executable; returns the exit code."""
    try:
        app(args=arguments, prog_name="certs")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_FAILURE
    except CertError as error:
        print(f"error: {error}" + (f" (hint: {error.hint})" if error.hint else ""), file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0
