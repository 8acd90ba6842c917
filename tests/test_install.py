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


@pytest.fixture(scope="module")
def suites():
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        import suites

        yield suites
    finally:
        sys.path.remove(str(ROOT / ".ci"))


@pytest.mark.parametrize(
    ("arguments", "world", "first"),
    [
        (["tests/test_budget.py"], "engine", "tests/test_budget.py"),
        (["tests/test_budget.py::test_x", "-x"], "engine", "tests/test_budget.py::test_x"),
        (["tests/test_rest.py", "-k", "login"], "gradio4", "tests/test_rest.py"),
        (["tests/browser/test_grid.py"], "gradio4", "tests/browser/test_grid.py"),
        (["-k", "hook_installs_nothing"], "engine", "tests/test_advice_tried.py"),
        (["-k", "_".join(("light", "and", "sound"))], "gradio4", "tests/test_compare.py"),
    ],
)
def test_a_test_runs_in_its_one_environment(suites, arguments, world, first):
    [work] = suites.chosen(arguments, None)
    assert (work.world.name, work.arguments[0]) == (world, first)
    assert set(arguments) <= {*work.arguments}
    [work] = suites.chosen(arguments, suites.GRADIO3)
    assert work.world is suites.GRADIO3


def test_a_folder_runs_where_its_files_do_and_a_slip_is_said(suites):
    works = suites.chosen(["tests"], None)
    assert {work.world.name for work in works} == {"engine", "gradio4"}
    with pytest.raises(suites.Failure, match="there is no"):
        suites.chosen(["tests/test_budgt.py"], None)


def test_a_linked_environment_serves_a_checkout_that_is_alike(suites, tmp_path, monkeypatch):
    import environments

    here, there = tmp_path / "here", tmp_path / "there"
    (there / ".venvs" / "engine").mkdir(parents=True)
    here.mkdir()
    try:
        (here / ".venvs").symlink_to(there / ".venvs", target_is_directory=True)
    except OSError:
        pytest.skip("links are not allowed here")
    digests = set()
    for root in (there, here):
        monkeypatch.setattr(environments, "ROOT", root)
        monkeypatch.setattr(environments, "REQUIREMENTS", ROOT / ".ci" / "requirements")
        digests.add(environments._digest(root / ".venvs" / "engine", "base.txt"))
    assert len(digests) == 1
    assert environments._digest(here / ".venv", "base.txt") not in digests  # it lies in this checkout itself
    with pytest.raises(suites.Failure, match=r"\.venvs is a link to .*there"):
        environments._begin(here / ".venvs" / "engine", "", with_pip=False)
    assert (there / ".venvs" / "engine").is_dir()


def test_the_whole_suite_leaves_no_file_out(suites):
    works = [work for work in suites.whole(browser=True) if work.module == "pytest"]
    named = [argument for work in works for argument in work.arguments]
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("test_*.py")}
    assert files <= set(named)
    assert {work.world.name for work in works if "tests/browser" in work.arguments} == {"gradio3", "gradio4"}
    engine = [work for work in works if work.world is suites.ENGINE]
    assert len([work for work in engine if work.shared]) == suites.LANES
    once = [work for work in engine if not work.shared] + [work for work in engine if work.shared][:1]
    assert sorted(a for w in once for a in w.arguments if a in files) == sorted(files - set(suites.WEBUI))
    for work in engine:
        assert not {"-m", "-k"} & set(work.arguments)
    assert {*suites.LONG, *suites.CLIENTS} <= files


@pytest.mark.parametrize(
    ("output", "code", "counts"),
    [
        ("3 passed in 1.2s\n", 0, (3, 0, 0)),
        ("1 failed, 2 passed, 1 skipped, 4 deselected in 1.2s\n", 1, (2, 1, 1)),
        ("1 passed, 2 errors in 1.2s\n", 1, (1, 2, 0)),
        ("no tests ran in 0.1s\n", 5, (0, 0, 0)),
        ("Segmentation fault\n", -11, (0, 1, 0)),
        ("3 passed in 1.2s\n", 3, (3, 1, 0)),
    ],
)
def test_pytests_own_counts_are_read(suites, output, code, counts):
    outcome = suites._counted(output, code)
    assert (outcome.passed, outcome.failed, outcome.skipped) == counts


def test_contributing_names_no_file_that_is_not_there():
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([\w./]+(?:\.(?:py|js|ts|txt|md|yaml)|/))(?:::\w+)?`", text))
    assert len(names) > 40
    rooms = [ROOT, *(ROOT / room for room in (".ci/requirements", ".github", "javascript/lora_merge"))]
    rooms += [path for path in (ROOT / "lib_merge", *(ROOT / "lib_merge").iterdir()) if path.is_dir()]
    missing = sorted(name for name in names if not any((room / name).exists() for room in rooms))
    assert [name for name in missing if not name.startswith("../shared")] == []


def test_what_contributing_names_where_things_are_added_is_in_the_code():
    text = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    adding = text[text.index("## Adding things") : text.index("## Words")]
    names = set(re.findall(r"`@?([A-Za-z_]\w+)(?:\([^`]*)?`", adding))
    assert len(names) > 30
    files = [path for room in ("lib_merge", "tests") for path in (ROOT / room).rglob("*.py")]
    words = {word for path in files for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    assert sorted(names - words) == []
    lists = re.findall(r"`([A-Z_]{4,})` (?:in|of)\s+`([\w/]+\.py)`", adding)
    assert len(lists) >= 5
    for name, file in lists:
        [path] = [room / file for room in (ROOT, ROOT / "lib_merge") if (room / file).exists()]
        assert re.search(rf"^{name}\b.* = ", path.read_text(encoding="utf-8"), re.MULTILINE), (name, file)
