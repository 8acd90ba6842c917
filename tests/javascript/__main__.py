"""`python -m tests.javascript`: the page's JavaScript by its types, by eslint, by prettier, and its unit tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".ci"))

from environments import NODE, node, node_tools  # noqa: E402

FILES = ("javascript/*.js", "javascript/lora_merge/**/*.js", "tests/javascript/*.js")


def main() -> int:
    """Run everything; return 1 if one of them found something."""
    program = node()
    if program is None:
        print(f"NOT RUN  the JavaScript's checks and unit tests: {NODE}")
        return 1
    tools = node_tools(ROOT / ".venvs" / "node")
    modules = tools / "node_modules"
    tests = sorted(str(path) for path in (ROOT / "tests" / "javascript").glob("*.test.js"))
    ci = ROOT / ".ci" / "node"
    works = {
        "unit tests": ["--test", *tests],
        "types": [modules / "typescript" / "bin" / "tsc", "-p", ci / "tsconfig.json"],
        "eslint": [modules / "eslint" / "bin" / "eslint.js", "-c", tools / "eslint.config.js", *FILES],
        "prettier": [
            modules / "prettier" / "bin" / "prettier.cjs",
            *("--config", ci / "prettier.json", "--log-level", "warn", "--check"),
            *FILES,
        ],
    }
    failed = []
    for name, arguments in works.items():
        done = subprocess.run(
            [program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, encoding="utf-8",
            errors="replace", check=False,
        )  # fmt: skip
        print(f"{name}: {'failed' if done.returncode else 'fine'}", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stdout + done.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
