"""Short names of Kubernetes services, spelled out as the search list of a pod's resolver would."""

from __future__ import annotations


def candidate_names(host: str, namespace: str, domain: str) -> tuple[str, ...]:
    """The names that ``host`` may stand for to a client in ``namespace``, the name itself first.

    ``echo`` is ``echo.<namespace>.svc.<domain>``; ``echo.foo`` is a service of namespace foo, or of a subdomain in
    the client's namespace; ``echo.foo.svc`` lacks the domain only. Source: ztunnel's DNS proxy.
    """
    name = host.lower().removesuffix(".")
    labels = name.split(".")
    expanded: tuple[str, ...] = ()
    if len(labels) == 1:
        expanded = (f"{name}.{namespace}.svc.{domain}",)
    elif len(labels) == 2:
        expanded = (f"{name}.svc.{domain}", f"{name}.{namespace}.svc.{domain}")
    elif len(labels) in (3, 4) and labels[-1] == "svc":
        expanded = (f"{name}.{domain}",)
    elif len(labels) == 3:
        expanded = (f"{name}.svc.{domain}",)
    return (name, *expanded)
