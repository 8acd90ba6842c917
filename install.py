"""Front doors of the project, and the WebUI's install hook.

python install.py              what a WebUI runs at its start: silent, installs nothing
python install.py --app        try it on this machine: sample LoRAs, a first merge, the tab where there is one
python install.py --test       make the test environments and run the whole test suite (see .ci/suites.py)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NEEDED = ("torch", "safetensors", "gradio", "numpy")


class Failure(Exception):
    """Something a person has to act on; said in one sentence."""


def main() -> int:
    """Run one of the three doors."""
    if len(sys.argv) == 1:
        return hook()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    door = parser.add_mutually_exclusive_group(required=True)
    door.add_argument("--app", action="store_true", help="try it on this machine")
    door.add_argument("--test", action="store_true", help="run the test suite")
    parser.add_argument(
        "--lora-dir", metavar="DIR", help="your LoRAs instead of samples (they are only read)"
    )
    parser.add_argument(
        "--port", type=int, help="of the tab; 7870 by default, the next free one if it is busy"
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    arguments, rest = parser.parse_known_args()
    if rest and not arguments.test:
        parser.error(f"unknown: {' '.join(rest)}")
    sys.path.insert(0, str(ROOT / ".ci"))
    import environments

    try:
        if arguments.test:
            return test(rest)
        return app(arguments.lora_dir, tab_options(arguments.port, no_browser=arguments.no_browser))
    except (Failure, environments.Failure) as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def hook() -> int:
    """Say in one sentence when the WebUI lacks a package; it ships all four, so nothing is ever installed
    into it.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"LoRA Merge: {' and '.join(missing)} is missing in this WebUI's Python; reinstall the WebUI.")
    return 0


# ------------------------------------------------------------------------------------------------ --app


def app(lora_dir: str | None, options: list[str]) -> int:
    """Merge two LoRAs, say what came out, and serve the tab."""
    from environments import complete

    python = complete(ROOT / ".venv", "app.txt")
    if lora_dir is None:
        folder = ROOT / "samples-loras"
        _engine(python, "demo", str(folder))
        print(f"Sample LoRAs (synthetic) are in {folder.name}.")
        pair = [
            folder / name for name in ("sample-ink-style.safetensors", "sample-mira-character.safetensors")
        ]
    else:
        folder = Path(lora_dir).expanduser()
        pair = _pair(python, folder)
    try:
        if pair:
            _tell(_first_merge(python, pair))
        else:
            print(f"{folder} has no two LoRAs of one base model yet, so there is no first merge.")
    except Failure as failure:  # the tab shows what is there all the same
        print(f"No first merge: {failure}")
    command = [python, "-m", "lib_merge.ui.app", "--lora-dir", str(folder), "--data-dir", str(ROOT / "user")]
    return subprocess.run([*command, *options], cwd=ROOT, check=False).returncode


def tab_options(port: int | None, *, no_browser: bool) -> list[str]:
    """Return what the tab's own command line is given."""
    return [*([] if port is None else ["--port", str(port)]), *(["--no-browser"] if no_browser else [])]


def _engine(python: Path, *arguments: str) -> str:
    run = subprocess.run(
        [python, "-m", "lib_merge", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    if run.returncode:
        raise Failure(run.stderr.strip().splitlines()[-1] if run.stderr.strip() else "the engine failed")
    return run.stdout


def _pair(python: Path, folder: Path) -> list[Path]:
    """Return two LoRAs of one family in a user's folder, the first there are by name; nothing where there are
    none.
    """
    files = sorted(path for path in folder.rglob("*.safetensors") if path.is_file())[:200]
    families: dict[str, list[Path]] = {}
    for path in files:
        try:
            found = json.loads(_engine(python, "inspect", str(path), "--json"))[0]
        except Failure:
            continue
        if found["family"] and found["modules"]:
            members = families.setdefault(found["family"], [])
            members.append(path)
            if len(members) == 2:
                return members
    return []


def _first_merge(python: Path, pair: list[Path]) -> dict:
    output = ROOT / "merged-loras"
    output.mkdir(exist_ok=True)
    target = output / ("first-merge_" + "+".join(path.stem for path in pair)[:80] + ".safetensors")
    print(f"Merging 0.6 × {pair[0].name} + 0.4 × {pair[1].name} …", flush=True)
    text = _engine(
        python,
        "merge",
        "--models",
        *map(str, pair),
        "--ratios",
        "0.6",
        "0.4",
        "--save_to",
        str(target),
        "--overwrite",
        "--drop_unsupported",
        "--json",
    )
    return json.loads(text)


def _tell(report: dict) -> None:
    ranks = report["rank"]
    print(
        f"\nSaved {Path(report['output']).relative_to(ROOT)}\n"
        f"  {report['family']}, {report['modules']} modules, rank {ranks['min']} to {ranks['max']}, "
        f"{report['bytes'] / 1e6:.1f} MB, {report['seconds']['total']:.1f} s\n"
        f"  {'; '.join(filter(None, (report['proof'], report['choice'])))}"
    )
    for warning in report["warnings"]:
        print(f"  note: {warning}")


# ------------------------------------------------------------------------------------------------ --test


def test(arguments: list[str]) -> int:
    """Run tests; the last line says how many passed, failed and were skipped."""
    import suites

    return suites.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
