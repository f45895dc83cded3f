"""``ztun agent``, and the commands that talk to a running one: ``enroll``, ``unenroll``, ``enrolled``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ztun.agent.places import DEFAULT_CONTROL, DEFAULT_STATE, DEFAULT_UDS
from ztun.cli.ask import Output, OutputOption, show
from ztun.cli.options import LogFormat, LogLevel

if TYPE_CHECKING:
    from ztun.cli.listing import Listing

ControlOption = Annotated[
    Path, typer.Option("--control", metavar="PATH", help="Control socket of the agent.")
]
StateOption = Annotated[
    Path,
    typer.Option(
        "--state",
        metavar="DIR",
        help="Directory that keeps what was done, until the machine is started again.",
    ),
]
DnsOption = Annotated[bool, typer.Option("--dns/--no-dns", help="Whether DNS queries go to the proxy.")]
SelfOption = Annotated[
    bool,
    typer.Option("--self", help="This command's own network namespace, for a proxy in it; needs no agent."),
]
NetnsArgument = Annotated[
    str,
    typer.Argument(metavar="[NETNS]", help="Name as in 'ip netns list', or path.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""

    @app.command("agent")
    def agent(
        directory: Annotated[
            Path | None,
            typer.Option(
                metavar="PATH",
                help="Directory (or file) with Pod documents, followed while it changes. A pod's namespace is "
                "named as the pod, or by the annotation ztun.io/netns.",
                show_default=False,
            ),
        ] = None,
        node: Annotated[
            str, typer.Option(help="Leave out Pods that name another node.", show_default=False)
        ] = "",
        uds: Annotated[
            Path, typer.Option(metavar="PATH", help="Socket for the node proxy (INPOD_UDS).")
        ] = DEFAULT_UDS,
        control: ControlOption = DEFAULT_CONTROL,
        state: StateOption = DEFAULT_STATE,
        dns: DnsOption = True,
        log_format: LogFormat = None,
        log_level: LogLevel = None,
    ) -> None:
        """Put pods that are network namespaces into the mesh, and tell the node proxy of them.

        Needs root, and the commands nft, ip and nsenter. The proxy is started with INPOD_ENABLED=true and
        INPOD_UDS. When the agent ends the pods stay captured; 'ztun unenroll --all' undoes everything.
        """
        from ztun.agent.process import AgentSettings, run
        from ztun.cli.options import usage_checked
        from ztun.config import log_choices

        chosen_format, chosen_level = usage_checked(lambda: log_choices(log_format, log_level))
        settings = AgentSettings(directory, node, uds, control, state, dns, chosen_format, chosen_level)
        raise typer.Exit(run(settings))

    @app.command("enroll")
    def enroll(
        netns: NetnsArgument = "",
        pod: Annotated[
            str, typer.Option(metavar="NAMESPACE/NAME", help="Which pod it is.", show_default=False)
        ] = "",
        service_account: Annotated[
            str, typer.Option(metavar="NAME", help="Whose identity it has.")
        ] = "default",
        dns: DnsOption = True,
        own: SelfOption = False,
        proxy_uid: Annotated[
            int | None,
            typer.Option(
                metavar="UID",
                min=1,
                help="With --self: the user that the proxy runs as, which is not captured.",
                show_default="nobody",
            ),
        ] = None,
        control: ControlOption = DEFAULT_CONTROL,
        state: StateOption = DEFAULT_STATE,
    ) -> None:
        """Put a network namespace into the mesh as a pod, and wait until a proxy serves it.

        By the running agent; with --self without one, for a workload that has a proxy to itself.
        """
        if own:
            _exactly(not netns and not pod, "--self takes neither a namespace nor --pod")
            from ztun.agent.rules import CaptureOptions
            from ztun.agent.without_agent import enroll_self

            asyncio.run(enroll_self(state, CaptureOptions(dns=dns, proxy_uid=proxy_uid)))
            print("captured; the proxy here needs ZTUN_CAPTURE=true and PACKET_MARK=1337")
            return
        _exactly(
            proxy_uid is None, "--proxy-uid goes with --self: a node proxy is not in the pods' namespaces"
        )
        _exactly(bool(netns) and bool(pod), "name the namespace and --pod, or give --self")
        from ztun.agent.enrolments import parse_pod
        from ztun.cli.options import usage_checked

        namespace, name = usage_checked(lambda: parse_pod(pod))
        question = {
            "command": "enroll",
            "netns": _absolute(netns),
            "pod": name,
            "namespace": namespace,
            "account": service_account,
            "dns": dns,
        }
        answer = _ask(control, question)
        print(f"{answer['namespace']}/{answer['pod']} is in the mesh ({answer['netns']})")

    @app.command("unenroll")
    def unenroll(
        netns: NetnsArgument = "",
        everybody: Annotated[
            bool, typer.Option("--all", help="Every namespace, also when the agent has ended.")
        ] = False,
        own: SelfOption = False,
        control: ControlOption = DEFAULT_CONTROL,
        state: StateOption = DEFAULT_STATE,
    ) -> None:
        """Take a network namespace out of the mesh and undo everything that was done to it."""
        chosen = [bool(netns), everybody, own].count(True)
        _exactly(chosen == 1, "name one namespace, or give --all or --self")
        if own:
            from ztun.agent.without_agent import unenroll_self
            from ztun.cli.outcome import EXIT_FAILURE, complain

            if not asyncio.run(unenroll_self(state)):
                complain("this network namespace was not captured", "with another --state, perhaps?")
                raise typer.Exit(EXIT_FAILURE)
            print("no longer captured")
            return
        if everybody:
            for one in _unenroll_all(control, state):
                print(f"{one} is out of the mesh")
            return
        for one in _ask(control, {"command": "unenroll", "netns": _absolute(netns)})["withdrawn"]:
            print(f"{one['namespace']}/{one['pod']} is out of the mesh")

    @app.command("enrolled")
    def enrolled(output: OutputOption = Output.TABLE, control: ControlOption = DEFAULT_CONTROL) -> None:
        """List the namespaces that a running agent has put into the mesh."""
        show(_listing(_ask(control, {"command": "list"})), output)


def _exactly(condition: bool, message: str) -> None:
    if not condition:
        raise typer.BadParameter(message)


def _absolute(netns: str) -> str:
    from ztun.agent.places import namespace_path
    from ztun.cli.options import usage_checked

    return str(usage_checked(lambda: namespace_path(str(Path(netns).absolute()) if "/" in netns else netns)))


def _ask(control: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    from ztun.agent.control import ask

    return ask(control, question)


def _unenroll_all(control: Path, state: Path) -> list[str]:
    """By the agent, or without it when it has ended."""
    from ztun.agent.control import ALL_SECONDS, ask
    from ztun.agent.without_agent import unenroll_all
    from ztun.errors import ConnectError

    try:
        answer = ask(control, {"command": "unenroll-all"}, seconds=ALL_SECONDS)
    except ConnectError as error:
        if error.code != "no_agent":
            raise
        return [str(one.pod) for one in asyncio.run(unenroll_all(state))]
    return [f"{one['namespace']}/{one['pod']}" for one in answer["withdrawn"]]


def _listing(answer: Mapping[str, Any]) -> Listing:
    from ztun.cli.listing import Listing

    columns = {
        "NAMESPACE": "namespace",
        "POD NAME": "pod",
        "SERVICE ACCOUNT": "serviceAccount",
        "NETNS": "netns",
        "ORIGIN": "origin",
        "STATE": "state",
        "PROBLEM": "problem",
    }
    items = answer["enrolments"]
    rows = tuple(tuple(str(item[key]) for key in columns.values()) for item in items)
    return Listing(tuple(columns), rows, tuple(items))
