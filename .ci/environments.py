"""Virtual environments made from the files of `.ci/requirements`, and made anew when such a file has changed.

torch takes three quarters of a gigabyte, so the test environments share one: `base` holds it, and each thin
environment sees `base` through a line in a .pth file. Its own packages come first, so that numpy 1 and 2,
pydantic 1 and 2 stay apart.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / ".ci" / "requirements"
TORCH = "torch==2.13.0"
NODE = "Node.js 20.19 or newer and npm are not installed"
_base = threading.Lock()


class Failure(Exception):
    """Something a person has to act on; said in one sentence."""


def complete(folder: Path, requirements: str) -> Path:
    """Return the Python of an environment that stands alone and has torch.

    Args:
        folder: where it lies.
        requirements: a file of `.ci/requirements`.
    """
    python, digest = _python(folder), _digest(folder, requirements)
    if not _current(folder, digest):
        _begin(folder, "torch is large, this takes some minutes", with_pip=True)
        # torch first and alone: a package that asks for "any torch" must find the pinned one in place
        _pip(python, TORCH)
        _pip(python, "-r", str(REQUIREMENTS / requirements))
        _stamp(folder).write_text(digest, encoding="utf-8")
    return python


def thin(folder: Path, requirements: str, bare: str = "") -> Path:
    """Return the Python of an environment that shares the torch of `base`, which lies beside it.

    Args:
        folder: where it lies.
        requirements: a file of `.ci/requirements`.
        bare: another one, of packages that are installed without what they themselves require.
    """
    with _base:
        shared = complete(folder.with_name("base"), "base.txt")
    python = _python(folder)
    digest = _digest(folder, "base.txt", requirements, *([bare] if bare else []))
    if not _current(folder, digest):
        _begin(folder, "some minutes", with_pip=False)  # it sees the pip of the base
        (_packages(python) / "base.pth").write_text(f"{_packages(shared)}\n", encoding="utf-8")
        _pip(python, "-r", str(REQUIREMENTS / requirements))
        if bare:
            _pip(python, "--no-deps", "-r", str(REQUIREMENTS / bare))
        _stamp(folder).write_text(digest, encoding="utf-8")
    return python


def node() -> str | None:
    """Return this machine's Node.js, if it is new enough for our tools and has its package manager."""
    program = shutil.which("node")
    if program is None or shutil.which("npm") is None:
        return None
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"v(\d+)\.(\d+)\.", told)
    return program if found and (int(found[1]), int(found[2])) >= (20, 19) else None


def node_tools(folder: Path) -> Path:
    """Return a folder with the tools of `.ci/node` installed, as its lock file has them."""
    wanted = REQUIREMENTS.with_name("node")
    names = ("package.json", "package-lock.json", "eslint.config.js", ".npmrc")
    text = "".join((wanted / name).read_text(encoding="utf-8") for name in names)
    digest, stamp = hashlib.sha256(text.encode()).hexdigest(), _stamp(folder)
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == digest):
        if folder.exists():
            _own(folder)
        print(f"Preparing {folder.relative_to(ROOT)} (once; a minute) …", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in names:
            shutil.copyfile(wanted / name, folder / name)
        npm = shutil.which("npm") or "npm"
        run = subprocess.run(
            [npm, "ci", "--ignore-scripts"], cwd=folder, capture_output=True, text=True, check=False
        )
        if run.returncode:
            print(run.stdout + run.stderr, file=sys.stderr)
            message = "npm could not install the tools of .ci/node: see above; is there a network connection?"
            raise Failure(message)
        stamp.write_text(digest, encoding="utf-8")
    return folder


def _begin(folder: Path, how_long: str, with_pip: bool) -> None:
    if sys.version_info < (3, 11):
        message = f"this needs Python 3.11 or newer, and {sys.executable} is {sys.version.split()[0]}."
        raise Failure(message)
    _own(folder)
    print(f"Preparing {folder.relative_to(ROOT)} (once; {how_long}) …", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=with_pip)


def _own(folder: Path) -> None:
    """Refuse to replace what is another checkout's."""
    linked = next((path for path in (folder, *folder.parents) if path != ROOT and path.is_symlink()), None)
    if linked is not None and linked.is_relative_to(ROOT):
        message = (
            f"{linked.name} is a link to {linked.resolve()}, which was not made by this Python from the "
            f"requirements here, and is not ours to replace: remove the link, or renew it where it lies."
        )
        raise Failure(message)


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _stamp(folder: Path) -> Path:
    return folder / "requirements.stamp"


def _digest(folder: Path, *requirements: str) -> str:
    """Return what an environment is made from: the text of its files, this Python, and where it lies.

    Through a link that may be another checkout, whose environments serve this one where all else is alike.
    """
    place = folder.resolve().parents[len(folder.relative_to(ROOT).parts) - 1]
    text = "".join((REQUIREMENTS / name).read_text(encoding="utf-8") for name in requirements)
    return hashlib.sha256(f"{text}{sys.version}{place}".encode()).hexdigest()


def _current(folder: Path, digest: str) -> bool:
    python, stamp = _python(folder), _stamp(folder)
    if not (python.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == digest):
        return False
    probe = "import importlib.util as i, sys; sys.exit(i.find_spec('torch') is None)"
    return subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode == 0


def _packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(
        subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    )


def _pip(python: Path, *what: str) -> None:
    # modules are compiled when they are first imported: most of them never are
    options = ("--quiet", "--disable-pip-version-check", "--no-compile")
    run = subprocess.run(
        [python, "-m", "pip", "install", *options, *what], capture_output=True, text=True, check=False
    )
    if run.returncode:
        print(run.stdout + run.stderr, file=sys.stderr)
        message = f"pip could not install {' '.join(what)}: see above; is there a network connection?"
        raise Failure(message)
