"""Short names of Kubernetes services, spelled out as the search list of a pod's resolver would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that a client may mean. ``stripped`` is what it asked for less a search suffix; None without one."""

    name: str
    stripped: str | None = None


def candidate_names(host: str, namespace: str, domain: str) -> tuple[str, ...]:
    """The names that ``host`` may stand for to a client in ``namespace``, the name itself first.

    ``echo`` is ``echo.<namespace>.svc.<domain>``; ``echo.foo`` is a service of namespace foo, or a pod of a service in
    the client's namespace; ``echo.foo.svc`` lacks the domain only; ``pod.echo.foo`` and ``pod.echo.foo.svc`` are pods
    of a service. Source: ztunnel's DNS proxy.
    """
    name = _canonical(host)
    labels = name.split(".")
    is_svc = labels[-1] == "svc"
    expanded: tuple[str, ...] = ()
    if len(labels) == 1:
        expanded = (f"{name}.{namespace}.svc.{domain}",)
    elif len(labels) == 2:
        expanded = (f"{name}.svc.{domain}", f"{name}.{namespace}.svc.{domain}")
    elif len(labels) == 3:
        whole = (f"{name}.{domain}",) if is_svc else ()
        expanded = (*whole, f"{name}.svc.{domain}")
    elif len(labels) == 4 and is_svc:
        expanded = (f"{name}.{domain}",)
    return (name, *expanded)


def search_list(namespace: str, domain: str) -> tuple[str, ...]:
    """What Kubernetes writes behind ``search`` into the resolv.conf of a pod."""
    return (f"{namespace}.svc.{domain}", f"svc.{domain}", domain)


def aliases(host: str, namespace: str, domain: str, search: Iterable[str]) -> Iterator[Alias]:
    """Everything that a client may mean by ``host``, what is meant literally first.

    A resolver appends the suffixes of its search list to short names one after the other, so a name that ends in one
    of ``search`` may be a shorter one that the client typed.
    """
    seen: set[str] = set()
    name = _canonical(host)
    stripped: list[str | None] = [None]
    stripped += [name.removesuffix(f".{suffix}") for suffix in search if name.endswith(f".{suffix}")]
    for short in stripped:
        for candidate in candidate_names(name if short is None else short, namespace, domain):
            if candidate not in seen:
                seen.add(candidate)
                yield Alias(candidate, short)


def _canonical(host: str) -> str:
    return host.lower().removesuffix(".")
