"""The front doors that can be tried without making environments, and the README they are promised in."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lib_merge.cli.text import methods_markdown

ROOT = Path(__file__).parents[1]
CHANGES = ROOT / ".github" / "CHANGELOG.md"


def _install(*arguments, **kw):
    return subprocess.run(
        [sys.executable, str(ROOT / "install.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        **kw,
    )


def test_the_hook_installs_nothing_and_says_at_most_one_sentence(tmp_path):
    run = _install(cwd=tmp_path)
    assert run.returncode == 0
    assert run.stderr == ""
    missing = [
        name
        for name in ("torch", "safetensors", "gradio", "numpy")
        if subprocess.run(
            [
                sys.executable,
                "-c",
                f"import importlib.util,sys; sys.exit(importlib.util.find_spec('{name}') is None)",
            ],
            check=False,
        ).returncode
    ]
    assert run.stdout.count("\n") == (1 if missing else 0)
    assert all(name in run.stdout for name in missing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--app", "--what"], ["--app", "--test"]])
def test_unknown_arguments_are_said(arguments):
    run = _install(*arguments)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr


def test_the_readme_opens_with_the_two_commands_and_its_tables_are_the_registrys():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    head = text[:1500]
    assert "python install.py --app" in head
    assert "python install.py --test" in head
    start, end = "<!-- methods:begin -->", "<!-- methods:end -->"
    table = text[text.index(start) + len(start) : text.index(end)].strip()
    assert table == methods_markdown().strip(), "run: python -m tests.readme"


def test_every_command_of_the_readme_exists():
    from lib_merge.cli.commands import _parser

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = set(_parser()._subparsers._group_actions[0].choices)
    used = set(re.findall(r"python -m lib_merge (\w+)", text))
    assert used
    assert used <= known


def test_the_readme_names_no_file_that_is_not_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


def test_the_version_stands_in_one_place(capsys):
    import tomllib

    from lib_merge import __version__
    from lib_merge.cli.commands import main

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lib_merge.__version__"}
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.strip() == f"lora-merge {__version__}"
    newest = re.search(r"^## \[(\S+)\]", CHANGES.read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert newest == "Unreleased" if "dev" in __version__ else newest == __version__
