"""What an installed WebUI can, told by its tree: which options its command line knows, what it calculates in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

# where WebUIs declare options of their command line
PLACES = (
    "modules/cmd_args.py",
    "modules/paths_internal.py",
    "modules_forge/*.py",
    "backend/args.py",
    "ldm_patched/modules/args_parser.py",
    "extensions-builtin/*/preload.py",
)
# nothing is installed or fetched, and nobody is asked
QUIET = (
    "--skip-torch-cuda-test",
    "--skip-install",
    "--skip-version-check",
    "--skip-prepare-environment",
    "--skip-python-version-check",
    "--no-download-sd-model",
    "--do-not-download-clip",
)
# the first whose first option is known, in the file that is named where one is; of the others those that are known
ON_CPU = (
    ("", ("--cpu", "--bf16-unet", "--bf16-text-enc", "--bf16-vae")),
    ("backend/args.py", ("--always-cpu",)),
    ("", ("--use-cpu all", "--no-half", "--precision full", "--always-cpu")),
)
_OPTION = re.compile(r"""["'](--[A-Za-z0-9][\w-]*)["']""")


@dataclass(frozen=True)
class Tree:
    """An installed WebUI.

    folder   its root
    options  file -> the options that it declares
    """

    folder: Path
    options: dict[str, frozenset[str]]

    @classmethod
    def of(cls, folder: Path) -> Tree:
        found = {}
        for place in PLACES:
            for path in sorted(folder.glob(place)):
                text = path.read_text(encoding="utf-8", errors="replace")
                found[path.relative_to(folder).as_posix()] = frozenset(_OPTION.findall(text))
        if not found:
            raise SystemExit(f"{folder} is no WebUI: no file there declares options of a command line")
        return cls(folder, found)

    @property
    def name(self) -> str:
        """For logs and screenshots; nothing is decided by it."""
        return re.sub(r"\W+", "-", self.folder.name)

    def knows(self, option: str, place: str = "") -> bool:
        """Tell whether the command line has an option (with or without a value), declared in `place`."""
        name = option.split(maxsplit=1)[0]
        if place:
            return name in self.options.get(place, ())
        return any(name in options for options in self.options.values())

    @property
    def flags(self) -> list[str]:
        """Options for a start on the CPU; only such as are known, since some WebUIs reject others."""
        on_cpu = next((options for place, options in ON_CPU if self.knows(options[0], place)), ())
        known = [option for option in (*QUIET, *on_cpu) if self.knows(option)]
        return [word for option in known for word in option.split()]

    @property
    def rough(self) -> bool:
        """True where the model is rounded to bf16: the order of LoRAs alone moves a picture then."""
        return "--bf16-unet" in self.flags
