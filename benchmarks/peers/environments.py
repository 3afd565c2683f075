"""The peers, and for each a virtual environment of its own."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

_HERE = Path(__file__).parent
_INSTALLING_SECONDS = 3600.0


class Peer(NamedTuple):
    """A peer, and what its environment is made from."""

    name: str
    module: str  # has its rounds; what it measures is imported in there only
    requirements: Path  # name==version lines
    packages: tuple[str, ...]  # whose versions are told
    pythons: tuple[str, ...] = ("3.11", "3.12")  # that it installs on, best first
    pip: tuple[str, ...] = ()  # further options of pip


def _peer(
    name: str, *packages: str, folder: str = "peers", **others: tuple[str, ...]
) -> Peer:
    stem = name.lower()
    module = f"benchmarks.{folder}.{stem}"
    return Peer(name, module, _HERE / f"{stem}.txt", (*packages, "numpy"), **others)


# It asks for a jaxlib that PyPI no longer has, so its list is complete.
_TFF: Any = {"pythons": ("3.11",), "pip": ("--no-deps",)}

PEERS = {
    peer.name.lower(): peer
    for peer in (
        _peer("FedJAX", "fedjax", "jax"),
        _peer("ByzFL", "byzfl", "torch", "jax"),
        _peer("Flower", "flwr", "jax"),
        _peer("TFF", "tensorflow-federated", "tensorflow-cpu", "jax", **_TFF),
    )
}

# Those that train, from the same environments and more.
_training = partial(_peer, folder="training.peers")
TRAINERS = {
    peer.name.lower(): peer
    for peer in (
        _training("PyTorch", "torch"),
        _training("pfl", "pfl", "torch"),
        _training("FedJAX", "fedjax", "jax"),
        _training("Flower", "flwr", "ray", "torch"),
        _training("BlazeFL", "blazefl", "torch", pythons=("3.12", "3.13")),
        _training("TFF", "tensorflow-federated", "tensorflow-cpu", **_TFF),
    )
}


class CannotRun(Exception):
    """Says in a line why a peer is left out."""


def find_python(peer: Peer, given: str | None = None) -> str:
    """An interpreter on which the peer installs; `given` is the only one looked at.

    Raises:
        CannotRun: if there is none.
    """
    for python in [given] if given else _candidates(peer.pythons):
        if _version(python) in peer.pythons:
            return python
    where = f"which {given} is not" if given else "not found; see --python"
    raise CannotRun(f"needs Python {' or '.join(peer.pythons)}, {where}")


def make_environment(peer: Peer, python: str, folder: Path) -> Path:
    """Installs a peer in `folder`, unless that was done; returns its interpreter.

    Raises:
        CannotRun: if pip fails.
    """
    installed, done = folder / "bin" / "python", folder / "installed.txt"
    wanted = f"# {python}\n{peer.requirements.read_text()}"
    if not done.exists() or done.read_text() != wanted:
        print(f"Installing {peer.name} in {folder}.", flush=True)
        _run(python, "-m", "venv", "--clear", folder)
        quiet = ("--quiet", "--disable-pip-version-check", "--progress-bar", "off")
        pip = (installed, "-m", "pip", "install", *quiet, *peer.pip)
        _run(*pip, "-r", peer.requirements)
        done.write_text(wanted)
    return installed


def versions(peer: Peer, installed: Path) -> str:
    """What runs in an environment."""
    code = (
        "import platform, sys; from importlib.metadata import version;"
        "print('Python', platform.python_version(), end='');"
        "[print(f', {name} {version(name)}', end='') for name in sys.argv[1:]]"
    )
    return _run(installed, "-c", code, *peer.packages)


def _candidates(versions: tuple[str, ...]) -> list[str]:
    found = []
    for version in versions:
        found.append(shutil.which(f"python{version}"))
        pyenv = (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python")
        found.extend(map(str, sorted(pyenv)))
    return [python for python in [*found, sys.executable] if python]


def _version(python: str) -> str | None:
    """Such as 3.11; none if it does not run, as pyenv's shims may not."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        return _run(python, "-c", code)
    except CannotRun:
        return None


def _run(*command: str | Path) -> str:
    """What a command prints.

    Raises:
        CannotRun: with the last line of its error, if it fails.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_INSTALLING_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotRun(str(error)) from error
    if done.returncode:
        raise CannotRun(last_error(done.stderr) or f"{command[0]} failed")
    return done.stdout.strip()


def last_error(text: str) -> str:
    """The last line that says it is an error, or the last line, at most 200 letters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines
    return errors[-1][:200] if errors else ""
