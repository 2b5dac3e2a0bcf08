"""The provenance of a result: time, command, versions, commit, device."""

import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("ufm", "jax", "jaxlib", "numpy", "optax")


def session() -> dict[str, Any]:
    """The provenance of what this process computes, as a manifest stores it.

    started (UTC), command, versions (Python, packages), git (commit, dirty), platform, device.
    """
    device = jax.devices()[0]
    return {
        "started": now(),
        "command": _command(),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "git": _source(),
        "platform": device.platform,
        "device": device.device_kind,
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _command() -> str:
    """The command as typed, without the absolute path that Python puts first."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        head = ["python", "-m", spec.name.removesuffix(".__main__")]
    else:
        head = [os.path.basename(a) if os.path.isabs(a) else a for a in sys.argv[:1]]
    return shlex.join(head + sys.argv[1:])


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# Once a process: the code that runs is the code that was imported.
@functools.cache
def _source() -> dict[str, Any]:
    """The commit of the checkout of this file; dirty if any Python file there differs."""
    root = Path(__file__).resolve().parents[2]
    # An installed copy may be inside the checkout of another project: only its own counts.
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    changes = None if commit is None else _git(root, "status", "--porcelain", "--", "*.py")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(root: Path, *arguments: str) -> str | None:
    # Inside a git hook GIT_DIR points elsewhere; a query must not touch the index.
    clean = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    environment = clean | {"GIT_OPTIONAL_LOCKS": "0"}
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, timeout=2)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
