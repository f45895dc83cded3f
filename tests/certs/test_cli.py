from __future__ import annotations

import json
import re
import signal
import ssl
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from certs.cli import main
from certs.directory import CaDirectory
from certs.disk import read_key
from certs.store import wall_clock

pytestmark = pytest.mark.unit

ID = "spiffe://cluster.local/ns/default/sa/client"


@pytest.fixture
def ca(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    directory = tmp_path / "ca"
    assert main(["init", str(directory)]) == 0
    capsys.readouterr()
    return directory


def issue(ca: Path, out: Path, *options: str) -> x509.Certificate:
    assert main(["issue", "--ca", str(ca), ID, "--out", str(out), *options]) == 0
    return x509.load_pem_x509_certificates((out / "cert-chain.pem").read_bytes())[0]


def test_issue_writes_three_files(ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    leaf = issue(ca, out, "--lifetime", "30m")
    assert sorted(path.name for path in out.iterdir()) == ["cert-chain.pem", "key.pem", "root-cert.pem"]
    assert stat.S_IMODE((out / "key.pem").stat().st_mode) == 0o600
    assert leaf.public_key() == read_key(out / "key.pem").public_key()
    assert 1790 < (leaf.not_valid_after_utc - wall_clock()).total_seconds() <= 1800
    leaf.verify_directly_issued_by(x509.load_pem_x509_certificate((out / "root-cert.pem").read_bytes()))
    assert ID in capsys.readouterr().out


def test_issue_again_replaces_the_files(ca: Path, tmp_path: Path) -> None:
    first, second = issue(ca, tmp_path / "out"), issue(ca, tmp_path / "out")
    assert first.serial_number != second.serial_number
    assert second.public_key() == read_key(tmp_path / "out" / "key.pem").public_key()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "Usage"),
        (["issue"], 2, "SPIFFE_ID"),
        (["issue", "--ca", "{ca}", "spiffe://x", "--out", "{out}"], 2, "expected spiffe://"),
        (["issue", "--ca", "{ca}", ID, "--out", "{out}", "--lifetime", "soon"], 2, "not a duration"),
        (["issue", "--ca", "{ca}", ID, "--out", "{out}", "--lifetime", "0s"], 1, "error: a lifetime"),
        (["issue", "--ca", "{ca}", ID, "--out", "{out}", "--lifetime", "91d"], 1, "error: a lifetime"),
        (["issue", "--ca", "{out}", ID, "--out", "{out}"], 1, "hint: run certs init"),
        (["issue", "--ca", "{ca}", ID.replace("cluster.local", "other"), "--out", "{out}"], 1, "signs for"),
        (["issue", "--ca", "{ca}", ID, "--out", "{ca}/ca-cert.pem/x"], 1, "error: "),
        (["init", "{ca}"], 1, "already holds a CA (hint: "),
        (["init", "{out}", "--trust-domain", "A"], 2, "lower-case"),
        (["init", "{ca}/ca-cert.pem"], 1, "error: "),
        (["inspect", "{out}"], 1, "no such file"),
        (["inspect", "{ca}/ca-key.pem"], 1, "no certificate in"),
        (["inspect", "{ca}", "-o", "xml"], 2, "xml"),
        (["rotate", "{out}"], 1, "error: "),
        (["revoke", "--ca", "{ca}", "nothing"], 2, "neither a file nor a serial"),
        (["revoke", "--ca", "{ca}", "-5"], 2, "No such option"),
        (["revoke", "--ca", "{ca}", "{ca}/ca-key.pem"], 1, "no readable PEM certificate"),
        (["serve", "--ca", "{ca}", "--listen", "nowhere"], 2, "not HOST:PORT"),
        (["serve", "--ca", "{ca}", "--listen", "127.0.0.1:99999999"], 2, "not HOST:PORT"),
        (["serve", "--ca", "{ca}", "--listen", "0.0.0.0:0"], 2, "--name"),
        (["serve", "--ca", "{out}", "--listen", "127.0.0.1:0"], 1, "hint: run certs init"),
        (["serve", "--ca", "{ca}", "--listen", "127.0.0.1:0", "--access", "{out}"], 1, "no such file"),
        (["serve", "--ca", "{ca}", "--listen", "192.0.2.1:1"], 1, "cannot listen on 192.0.2.1:1"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_mistakes_are_one_line_with_the_right_code(
    ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    filled = [argument.format(ca=ca, out=tmp_path / "out") for argument in arguments]
    assert main(filled) == code
    captured = capsys.readouterr()
    assert said in captured.out + captured.err
    assert "Traceback" not in captured.err
    if code == 1:
        assert captured.out == ""
        assert captured.err.count("\n") == 1


def test_inspect_has_three_forms(ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaf = issue(ca, tmp_path / "out")
    capsys.readouterr()
    paths = [str(tmp_path / "out"), str(ca)]
    assert main(["inspect", *paths, "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in rows] == ["workload", "root", "root", "root"]
    assert rows[0]["identity"] == ID
    assert rows[0]["serial"] == f"{leaf.serial_number:x}"
    assert rows[0]["state"] == "valid"
    assert 86_000 < rows[0]["expires_in_seconds"] <= 86_400
    assert main(["inspect", *paths, "-o", "yaml"]) == 0
    from_yaml = yaml.safe_load(capsys.readouterr().out)
    assert [row["serial"] for row in from_yaml] == [row["serial"] for row in rows]
    assert main(["inspect", *paths]) == 0
    table = capsys.readouterr().out
    assert table.startswith("STATE")
    assert ID in table
    assert f"{leaf.serial_number:x}" in table, "a serial number that is cut off cannot be revoked"


def test_revocation_shows_up(ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = issue(ca, tmp_path / "one"), issue(ca, tmp_path / "two")
    assert main(["revoke", "--ca", str(ca), str(tmp_path / "one" / "cert-chain.pem")]) == 0
    assert main(["revoke", "--ca", str(ca), f"{second.serial_number:x}"]) == 0
    capsys.readouterr()
    main(["inspect", str(tmp_path / "one"), str(tmp_path / "two"), str(ca / "crl.pem"), "-o", "json"])
    states = {row["serial"]: row["state"] for row in json.loads(capsys.readouterr().out)}
    assert states[f"{first.serial_number:x}"] == "revoked"
    assert states[f"{second.serial_number:x}"] == "revoked"
    third = issue(ca, tmp_path / "three")
    assert third.serial_number not in (first.serial_number, second.serial_number)
    assert (tmp_path / "three" / "crl.pem").read_bytes() == (ca / "crl.pem").read_bytes()


def test_number_of_before_a_rotation_is_revoked(
    ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaf = issue(ca, tmp_path / "one")
    assert main(["rotate", str(ca)]) == 0
    assert main(["revoke", "--ca", str(ca), f"{leaf.serial_number:x}"]) == 0
    assert f"revoked {leaf.serial_number:x}" in capsys.readouterr().out
    main(["inspect", str(tmp_path / "one" / "cert-chain.pem"), str(ca / "crl.pem"), "-o", "json"])
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["revoked"]


def test_rotate_and_retire(ca: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = CaDirectory(ca).load().certificate
    assert main(["rotate", str(ca)]) == 0
    assert "--retire" in capsys.readouterr().out
    leaf = issue(ca, tmp_path / "out")
    roots = x509.load_pem_x509_certificates((tmp_path / "out" / "root-cert.pem").read_bytes())
    assert len(roots) == 2
    assert old in roots
    leaf.verify_directly_issued_by(roots[0])
    assert main(["rotate", str(ca), "--retire"]) == 0
    assert CaDirectory(ca).load().roots == (roots[0],)


def test_init_with_an_intermediate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "ca"), "--intermediate", "--trust-domain", "example.org"]) == 0
    assert "root-key.pem" in capsys.readouterr().out
    assert CaDirectory(tmp_path / "ca").load().trust_domain == "example.org"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "certs", *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def test_module_is_the_command_and_heavy_imports_wait(tmp_path: Path) -> None:
    assert run("--help").returncode == 0
    refused = run("rotate", str(tmp_path))
    assert (refused.returncode, refused.stdout) == (1, "")
    heavy = ("rich.table", "httpx", "uvicorn", "OpenSSL")
    probe = f"import sys, certs.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.net
def test_serve_answers_and_ends_on_sigterm(ca: Path) -> None:
    command = [sys.executable, "-m", "certs", "serve", "--ca", str(ca), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            found = re.search(r"https://\S+", process.stdout.readline())
            assert found is not None
            context = ssl.create_default_context(cafile=str(ca / "root-cert.pem"))
            with urllib.request.urlopen(f"{found.group()}/healthz", context=context, timeout=20) as answer:
                assert answer.read() == b"ok\n"
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()
