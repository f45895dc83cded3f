"""The image that the containers run: made of this tree, without a registry where there is none.

A base image is what the machine has (``python:3.12-slim``), else a Debian that debootstrap makes, else what can be
pulled. It is kept, and so are the layers of the build: only what has changed is built again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from contextlib import closing
from pathlib import Path

import docker
from docker.errors import BuildError, DockerException, ImageNotFound

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "ztun-e2e:latest"
OFFICIAL = "python:3.12-slim"
PACKAGES = ("python3", "python3-venv", "iproute2", "nftables", "ca-certificates", "inetutils-telnet")
SUITE = "bookworm"
NEEDLESS = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
)
CONTEXT = (
    "certs",
    "ztun",
    "waypoint",
    "compose/examples",
    "compose/ready",
    "compose/Dockerfile",
    ".dockerignore",
)
CONTEXT_FILES = ("pyproject.toml", "README.md", "LICENSE")
GLIBC = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")  # Debian 12 has 2.36
DAEMON_SECONDS = 10
DEBOOTSTRAP_SECONDS = 600.0
DOWNLOAD_SECONDS = 300.0


class NoBaseImage(RuntimeError):
    """Nothing to build on can be had on this machine."""


def why_not() -> str:
    """Why there can be no containers here; empty when there can. Asks the daemon."""
    place = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        if place.startswith("unix://"):
            # The client leaves its socket open when nobody listens, which a strict test run calls an error.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(place.removeprefix("unix://"))
        with closing(docker.from_env(timeout=DAEMON_SECONDS)) as client:
            client.ping()
    except (OSError, DockerException) as error:
        return f"no docker daemon answers at {place} ({error})"
    return ""


def build_image(client: docker.DockerClient) -> str:
    """The name of the image, built from ``compose/Dockerfile``.

    Raises :class:`NoBaseImage`, and ``RuntimeError`` with what went wrong.
    """
    base = base_image(client)
    with tempfile.TemporaryDirectory() as directory:
        context = Path(directory)
        for name in (*CONTEXT, *CONTEXT_FILES):
            source, target = ROOT / name, context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)
        shutil.copytree(wheels(python_of(client, base)), context / "compose/wheels")
        try:
            client.images.build(
                path=directory,
                dockerfile="compose/Dockerfile",
                buildargs={"BASE": base},
                tag=IMAGE,
                rm=True,
                forcerm=True,
            )
        except BuildError as error:
            log = "".join(str(line.get("stream", "")) for line in error.build_log)
            raise RuntimeError(f"the image cannot be built: {error}\n{log[-4000:]}") from error
    return IMAGE


def base_image(client: docker.DockerClient) -> str:
    """An image with Python to start from."""
    recipe = " ".join(("2", SUITE, *PACKAGES, *NEEDLESS))
    own = f"ztun-e2e-base:{SUITE}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    for name in (own, OFFICIAL):
        try:
            client.images.get(name)
        except ImageNotFound:
            continue
        return name
    if shutil.which("debootstrap") and os.geteuid() == 0:
        make_debian(client, own)
        return own
    try:
        client.images.pull(*OFFICIAL.split(":"))
    except DockerException as error:
        raise NoBaseImage(
            f"no base image: {OFFICIAL} cannot be pulled ({error}), and debootstrap needs to be installed and root"
        ) from error
    return OFFICIAL


def make_debian(client: docker.DockerClient, name: str) -> None:
    """Make a small Debian from its packages; takes about a minute."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "root"
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DEBOOTSTRAP_SECONDS)
        if done.returncode != 0:
            raise RuntimeError(f"debootstrap: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        for place in NEEDLESS:
            for entry in (root / place).iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
        archive = Path(directory) / "root.tar"
        subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
        repository, _, tag = name.partition(":")
        client.api.import_image_from_file(str(archive), repository=repository, tag=tag)


def python_of(client: docker.DockerClient, base: str) -> str:
    """The version of the Python in an image, such as ``3.11``."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    output = client.containers.run(base, ["python3", "-c", program], remove=True, network_mode="none")
    return str(output.decode().strip())


def wheels(python: str) -> Path:
    """A directory with the wheels of everything the image needs, for that Python; downloaded once."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    # Markers are about the machine that downloads; the only one there is asks for Linux, which the image has.
    requirements = [one.partition(";")[0].replace(" ", "") for one in needed]
    key = hashlib.sha256(" ".join((python, platform.machine(), *requirements)).encode()).hexdigest()[:12]
    target = ROOT / "build" / "e2e" / f"wheels-{key}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        draft = Path(directory) / "wheels"
        abi = f"cp{python.replace('.', '')}"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--only-binary=:all:",
            "--dest",
            str(draft),
        ]
        command += ["--python-version", python, "--implementation", "cp"]
        for one in (abi, "abi3", "none"):
            command += ["--abi", one]
        for one in GLIBC:
            command += ["--platform", f"{one}_{platform.machine()}"]
        command += ["--platform", "any", *requirements]
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
        if done.returncode != 0:
            raise RuntimeError(f"pip download: {done.stderr[-4000:]}")
        draft.rename(target)
    return target
