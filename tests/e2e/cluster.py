"""Several nodes as containers on a docker network: started, broken, repaired, and removed without a trace."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import yaml
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from docker.types import EndpointConfig, IPAMConfig, IPAMPool
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from certs.directory import CaDirectory
from certs.spiffe import DEFAULT_TRUST_DOMAIN
from tests.e2e.left_overs import OWNER, OWNER_LABEL
from tests.e2e.mesh import NODES, SERVICE_PORT, WAYPOINT, Addresses, documents
from ztun.lab.dialer import dial
from ztun.lab.process import LabError

BLOCKS = range(214, 230)  # 10.x.0.0/16, the first that no other network of the daemon has
READY_SECONDS = 180.0  # a cold interpreter in a new container on a busy machine takes a third of it
POLL_SECONDS = 0.1
STOP_SECONDS = 20  # more than the drain deadline below
DRAIN_SECONDS = 10
TALK_SECONDS = 120.0  # for an answer: a TCP that was cut off tries again after twice as long each time
PYTHON = "/opt/ztun/bin/python"
CA_PORT = 15012
NEXT_PORTS = {"admin": 15100, "metrics": 15120, "readiness": 15121}


def until(condition: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
    """Poll, since nothing tells of another container's state; fails with the words of what did not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not {what} within {seconds:.0f} s"
        time.sleep(POLL_SECONDS)


class Connection:
    """A TCP connection that a pod has made."""

    def __init__(self, connected: socket.socket) -> None:
        connected.settimeout(TALK_SECONDS)
        self._socket = connected
        self._lines = connected.makefile("rb")

    def ask(self, word: str) -> str:
        """The answer to a line; empty when the connection ended instead."""
        self.say(word)
        return self.hear()

    def say(self, word: str) -> None:
        """Send a line and do not wait."""
        self._socket.sendall(f"{word}\n".encode())

    def hear(self) -> str:
        """The next line, without its end; empty when there is none because the connection has ended."""
        try:
            return self._lines.readline().decode().rstrip("\n")
        except ConnectionError:
            return ""

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Cluster:
    """The containers by name. Everything that it makes carries a label, and ends with ``close``."""

    def __init__(self, image: str, directory: Path) -> None:
        self.image = image
        self.directory = directory
        self.client = docker.from_env()
        self.containers: dict[str, DockerContainer] = {}
        self._undo = ExitStack()
        self._undo.callback(self.client.close)
        try:
            self.addresses, self.network = self._make_network()
            self._write()
        except BaseException:
            self._undo.close()
            raise

    def close(self) -> None:
        """Remove everything, the last first."""
        self._undo.close()

    # -- roles -------------------------------------------------------------------------------------------------

    def ca(self) -> None:
        """The CA, without anything to give to those that have no token."""
        user = f"{os.getuid()}:{os.getgid()}"  # who owns the directory, and nobody else may read it
        command = ["certs", "serve", "--ca", "/ca/authority", "--access", "/ca/access.yaml", "--name", "ca"]
        command += ["--listen", f"0.0.0.0:{CA_PORT}"]
        volumes = [(str(self.directory / "ca"), "/ca", "ro")]
        self._run(
            "ca",
            command,
            self.addresses.ca,
            volumes=volumes,
            user=user,
            healthcheck=_health("--connect", str(CA_PORT)),
        )

    def node(self, name: str) -> None:
        """A machine with its pods and its agent."""
        command = [PYTHON, "-m", "ztun.lab.machine", "--node", name, "--config", "/etc/ztun"]
        command += [
            "--pods",
            self.addresses.pods(name),
            "--dialers",
            "/run/clients",
            "--uds",
            "/run/ztun/zds.sock",
        ]
        self._run(
            name,
            command,
            self.addresses.node(name),
            volumes=[
                self._mesh(),
                self._shared(name),
                (str(self.directory / "clients"), "/run/clients", "rw"),
            ],
            user="0:0",
            cap_add=["NET_ADMIN", "SYS_ADMIN"],
            security_opt=["no-new-privileges:true", "apparmor=unconfined"],
            tmpfs={"/run": "", "/etc/netns": ""},
            sysctls={"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.proxy_arp": "1"},
            healthcheck={"test": ["NONE"]},
        )

    def node_proxy(self, node: str, *, beside: bool = False, **environment: str) -> str:
        """The proxy of a node; gives its name, ``proxy-a`` for ``node-a``, and another if one is ``beside`` it."""
        name = node.replace("node", "proxy") + ("-next" if beside else "")
        command = ["ztun", "proxy", "--node", node, "--config", "/etc/ztun", "--ca", f"https://ca:{CA_PORT}"]
        if beside:  # both are in the network of their node, where a port can be had once
            for kind, port in NEXT_PORTS.items():
                command += [f"--{kind}-port", str(port)]
        environment = {
            "INPOD_ENABLED": "true",
            "INPOD_UDS": "/run/ztun/zds.sock",
            "ENABLE_ORIG_SRC": "true",
            "LOG_FORMAT": "json",
            "CONNECTION_TERMINATION_DEADLINE": f"{DRAIN_SECONDS}s",
            **environment,
        }
        self._run(
            name,
            command,
            "",
            volumes=[self._mesh(), self._shared(node), self._credentials()],
            environment={**_CA, **environment},
            user="0:0",
            cap_add=["NET_ADMIN", "SYS_ADMIN"],
            network_mode=f"container:{self.container(node).id}",
            healthcheck=_health(str(NEXT_PORTS["readiness"])) if beside else _health(),
        )
        return name

    def waypoint(self) -> None:
        """The waypoint of the service ``guided``."""
        command = ["waypoint", "run", "--name", WAYPOINT, "--namespace", "default", "--config", "/etc/ztun"]
        command += ["--ca", f"https://ca:{CA_PORT}"]
        environment = {**_CA, "LOG_FORMAT": "json", "CONNECTION_TERMINATION_DEADLINE": "1s"}
        volumes = [self._mesh(), self._credentials()]
        self._run(WAYPOINT, command, self.addresses.waypoint, volumes=volumes, environment=environment)

    # -- breaking and repairing ----------------------------------------------------------------------------------

    def container(self, name: str) -> Container:
        """The running container."""
        return self.containers[name].get_wrapped_container()

    def until_healthy(self, *names: str) -> None:
        """Wait for the health checks of the image."""
        for name in names:
            until(lambda name=name: self._health(name) == "healthy", f"{name} healthy")  # type: ignore[misc]

    def until_served(self, client: str) -> None:
        """Wait until a client pod can call the echo server of node-b, or node-a, through the mesh."""
        until(lambda: bool(self.try_to_call(client, "echo")), f"{client} able to call through the mesh")

    def disconnect(self, name: str) -> None:
        """Pull the cable of a node."""
        self.network.disconnect(self.container(name).id)

    def connect(self, name: str) -> None:
        """Put it back, with the address it had."""
        self.network.connect(self.container(name).id, ipv4_address=self.addresses.node(name))

    def remove(self, name: str) -> None:
        """Remove a container that is no longer needed."""
        self.containers.pop(name).stop()

    @contextmanager
    def call(self, client: str, service: str) -> Iterator[Connection]:
        """A connection of a client pod to a service, by name. Raises ``ConnectionError``, :class:`LabError`."""
        path = self.directory / "clients" / f"{client}.sock"
        with Connection(dial(path, f"{service}.default.svc.cluster.local", SERVICE_PORT)) as connection:
            yield connection

    def try_to_call(self, client: str, service: str, word: str = "test") -> str:
        """The answer of a service to one line; empty when there was none."""
        try:
            with self.call(client, service) as connection:
                return connection.ask(word)
        except (OSError, LabError):
            return ""

    def logs(self, name: str, lines: int | str = "all") -> str:
        """What a container has written."""
        return str(self.container(name).logs(tail=lines).decode(errors="replace"))

    def execute(self, name: str, *command: str) -> tuple[int, str]:
        """Run a command in a container; gives its exit status and what it wrote."""
        result = self.container(name).exec_run(list(command))
        return int(result.exit_code or 0), result.output.decode(errors="replace")

    # -- inside --------------------------------------------------------------------------------------------------

    def _run(
        self,
        name: str,
        command: list[str],
        ip: str,
        *,
        volumes: Sequence[tuple[str, str, str]],
        **options: Any,
    ) -> None:
        container = DockerContainer(self.image, volumes=list(volumes))
        container.with_command(command)
        container.with_envs(**options.pop("environment", {}))
        container.tmpfs = options.pop("tmpfs", {})
        if ip:
            endpoint = EndpointConfig(self.client.api._version, aliases=[name], ipv4_address=ip)
            options |= {"network": self.network.name, "networking_config": {self.network.name: endpoint}}
        container.with_kwargs(
            **{
                "hostname": name if ip else None,
                "labels": {OWNER_LABEL: OWNER},
                "read_only": True,
                "init": True,
                "cap_drop": ["ALL"],
                "security_opt": ["no-new-privileges:true"],
                **options,
            }
        )
        self.containers[name] = container
        self._undo.callback(self._forget, name, container)
        container.start()

    def _forget(self, name: str, container: DockerContainer) -> None:
        if self.containers.get(name) is container:
            del self.containers[name]
            try:
                container.stop()
            except NotFound:
                return

    def _health(self, name: str) -> str:
        container = self.container(name)
        container.reload()
        assert container.status == "running", f"{name} ended\n{self.logs(name, 40)}"
        return str(container.attrs["State"]["Health"]["Status"])

    def _make_network(self) -> tuple[Addresses, Any]:
        for block in BLOCKS:
            addresses = Addresses(block)
            pool = IPAMPool(subnet=addresses.subnet, iprange=addresses.reserve, gateway=addresses.gateway)
            options = {"ipam": IPAMConfig(pool_configs=[pool]), "labels": {OWNER_LABEL: OWNER}}
            network = Network(docker_network_kw=options)
            try:
                network.create()
            except APIError as error:
                if "overlap" not in str(error):
                    raise
                continue
            self._undo.callback(network.remove)
            return addresses, self.client.networks.get(network.id)
        raise RuntimeError(f"10.{BLOCKS[0]}.0.0/16 to 10.{BLOCKS[-1]}.0.0/16 are all taken by other networks")

    def _write(self) -> None:
        """The mesh, the CA, and a token that may have everything: who may have what is not what is tested here."""
        for name in ("mesh", "ca", "clients", "credentials", *(f"run-{node}" for node in NODES)):
            (self.directory / name).mkdir()
        (self.directory / "clients").chmod(0o1777)
        (self.directory / "mesh/mesh.yaml").write_text(yaml.safe_dump_all(documents(self.addresses)))
        CaDirectory(self.directory / "ca/authority").create(DEFAULT_TRUST_DOMAIN, now=datetime.now(UTC))
        token = secrets.token_hex(24)
        access = self.directory / "ca/access.yaml"
        access.touch(0o600)
        access.write_text(yaml.safe_dump({"tokens": [{"token": token, "may": ["spiffe://cluster.local/*"]}]}))
        (self.directory / "credentials/token").write_text(token)
        shutil.copy2(self.directory / "ca/authority/root-cert.pem", self.directory / "credentials")

    def _mesh(self) -> tuple[str, str, str]:
        return str(self.directory / "mesh"), "/etc/ztun", "ro"

    def _credentials(self) -> tuple[str, str, str]:
        return str(self.directory / "credentials"), "/var/lib/ztun/credentials", "ro"

    def _shared(self, node: str) -> tuple[str, str, str]:
        return str(self.directory / f"run-{node}"), "/run/ztun", "rw"


_CA = {
    "CA_ROOT_CA": "/var/lib/ztun/credentials/root-cert.pem",
    "AUTH_TOKEN": "/var/lib/ztun/credentials/token",
}


def _health(*arguments: str) -> dict[str, Any]:
    """The health check of the image, asked often; nanoseconds, as the daemon wants them."""
    return {
        "test": ["CMD", "ready", *arguments],
        "interval": 10**9,
        "timeout": 5 * 10**9,
        "start_period": 180 * 10**9,
    }
