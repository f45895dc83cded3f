"""resolv.conf: read once, and again when it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztun.dns.nameservers import MAX_BYTES, ResolvConf

pytestmark = pytest.mark.unit


def test_what_is_used_of_it(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# comment\n; another\nsearch App.svc.cluster.local svc.cluster.local\n"
        "nameserver 192.0.2.1\nnameserver 2001:DB8:0:0::1\nnameserver 192.0.2.1\n"
        "nameserver 192.0.2.3\nnameserver 192.0.2.4\noptions ndots:5 timeout:1\n"
    )
    conf = ResolvConf(path)
    assert conf.nameservers() == (("192.0.2.1", 53), ("2001:db8::1", 53), ("192.0.2.3", 53))
    assert conf.search() == ("app.svc.cluster.local", "svc.cluster.local")


def test_a_domain_is_a_search_list_of_one(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("domain Corp.Example.\nnameserver 192.0.2.1\n")
    assert ResolvConf(path).search() == ("corp.example",)


def test_a_change_is_seen_and_a_bad_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    conf = ResolvConf(path)
    assert (conf.nameservers(), conf.search()) == ((), ())
    path.write_text("nameserver 192.0.2.1\n")
    assert conf.nameservers() == (("192.0.2.1", 53),)
    (tmp_path / "new").write_text("nameserver 192.0.2.2\nsearch a.example\n")
    (tmp_path / "new").replace(path)
    assert conf.nameservers() == (("192.0.2.2", 53),)
    for bad in ("", "nameserver elsewhere\n", "search b.example\nnameserver\n", "\0\xff"):
        path.write_bytes(bad.encode("latin-1"))
        assert conf.nameservers() == (("192.0.2.2", 53),)
        assert conf.search() == ("a.example",)
    path.unlink()
    assert conf.nameservers() == (("192.0.2.2", 53),)


@pytest.mark.parametrize(
    ("line", "search"),
    [
        ("nameserver bogus", ("a.example",)),
        ("nameserver", ("a.example",)),
        ("nameserver 192.0.2.256", ("a.example",)),
        ("nameserver fe80::1%eth0", ("a.example",)),
        ("search b.example bad..name", ("b.example",)),
        ("search " + "x" * 70, ()),
        ("domain bad..name", ()),
        ("search", ()),
    ],
)
def test_a_line_that_cannot_be_used_costs_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: str, search: tuple[str, ...]
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(f"search a.example\nnameserver 192.0.2.1\n{line}\nnameserver 192.0.2.2\n")
    conf = ResolvConf(path)
    assert conf.nameservers() == (("192.0.2.1", 53), ("192.0.2.2", 53))
    assert conf.search() == search
    (message,) = caplog.messages
    assert f"3 ('{line[:60]}')" in message
    assert "hint=" in message


def test_lines_that_say_nothing_here_are_no_mistakes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "; comment\n#nameserver bogus\noptions ndots:x edns0\nsortlist 130.155.160.0\n\n"
        "domain first.example\nsearch .\nnameserver 192.0.2.1#behind it\n  nameserver\t192.0.2.2 # x\n"
        "search last.example. \r\n"
    )
    conf = ResolvConf(path)
    assert conf.nameservers() == (("192.0.2.1", 53), ("192.0.2.2", 53))
    assert conf.search() == ("last.example",)
    assert caplog.messages == []


def test_more_than_is_read_of_it_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.1\n" + "nameserver x\n" * MAX_BYTES + "nameserver 192.0.2.2\n")
    assert ResolvConf(path).nameservers() == (("192.0.2.1", 53),)
    (message,) = caplog.messages
    assert len(message) < 1000


def test_without_a_search_list_the_domain_of_the_machine_is_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 192.0.2.1\n")
    for name, search in (("Node.Corp.example", ("corp.example",)), ("node", ())):
        monkeypatch.setattr("socket.gethostname", lambda name=name: name)
        assert ResolvConf(path).search() == search


@pytest.mark.parametrize("zone", ["fe80::1%eth0"])
def test_an_address_of_one_machine_only_is_left_out(tmp_path: Path, zone: str) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(f"nameserver {zone}\nnameserver 192.0.2.1\n")
    assert ResolvConf(path).nameservers() == (("192.0.2.1", 53),)


def test_a_resolver_of_the_node_itself_is_none_for_its_pods(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\n")
    assert ResolvConf(path, from_pods=True).nameservers() == (("192.0.2.1", 53),)
    assert len(ResolvConf(path).nameservers()) == 3
    path.write_text("nameserver 127.0.0.53\n")
    assert ResolvConf(path, from_pods=True).nameservers() == ()
