"""The front doors that can be tried without making environments."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def doors():
    sys.path.insert(0, str(ROOT))
    try:
        import install

        yield install
    finally:
        sys.path.remove(str(ROOT))


@pytest.fixture
def started(doors, tmp_path, monkeypatch):
    """Return what `--app` started: the front door without making an environment, in a folder of its own."""
    environments = types.ModuleType("environments")
    environments.complete = lambda folder, requirements: Path(sys.executable)
    monkeypatch.setitem(sys.modules, "environments", environments)
    monkeypatch.setattr(doors, "ROOT", tmp_path)
    commands = []
    real = subprocess.run

    def run(command, **options):
        if "lib_merge.ui.app" in command:
            commands.append([str(word) for word in command])
            return subprocess.CompletedProcess(command, 0)
        return real(command, **{**options, "cwd": ROOT})

    monkeypatch.setattr(doors.subprocess, "run", run)
    return commands


def test_the_app_starts_whatever_the_folder_of_loras_holds(doors, started, tmp_path, capsys):
    from tests.factories import write_lora

    folder = tmp_path / "loras"
    for there in ("missing", "empty", "one"):
        if there == "empty":
            folder.mkdir()
        if there == "one":
            write_lora(folder / "ink.safetensors")
            (folder / "broken.safetensors").write_bytes(b"nothing")
        assert doors.app(str(folder), doors.tab_options(7999, no_browser=True)) == 0
        assert (
            "has no two LoRAs of one base model yet, so there is no first merge." in capsys.readouterr().out
        )
    assert len(started) == 3
    assert started[0][-5:] == ["--data-dir", str(tmp_path / "user"), "--port", "7999", "--no-browser"]


@pytest.mark.slow
def test_the_app_merges_two_loras_first_and_starts_where_that_is_refused(doors, started, tmp_path, capsys):
    from tests.factories import write_lora

    folder = tmp_path / "loras"
    folder.mkdir()
    for number in (1, 2):
        write_lora(folder / f"{number}.safetensors", seed=number)
    assert doors.app(str(folder), []) == 0
    assert "asked = saved" in capsys.readouterr().out
    assert (tmp_path / "merged-loras" / "first-merge_1+2.safetensors").is_file()
    write_lora(folder / "2.safetensors", seed=2, size=float("nan"))
    assert doors.app(str(folder), []) == 0
    assert "No first merge: " in capsys.readouterr().out
    assert len(started) == 2
    assert "--port" not in started[0]


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
        (["-k", "_".join(("light", "and", "sound"))], "gradio4", "tests/test_app.py"),
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


@pytest.mark.parametrize(
    ("told", "fine"),
    [("v20.19.0", True), ("v26.1.0", True), ("v20.18.3", False), ("v18.20.4", False), ("", False)],
)
def test_the_javascript_is_checked_where_node_is_new_enough(suites, monkeypatch, told, fine):
    import environments

    monkeypatch.setattr(environments.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(
        environments.subprocess,
        "run",
        lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=f"{told}\n"),
    )
    assert (environments.node() is not None) == fine
    assert (suites.JAVASCRIPT in suites.whole(browser=False)) == fine
    monkeypatch.setattr(
        environments.shutil, "which", lambda name: "/usr/bin/node" if name == "node" else None
    )
    assert environments.node() is None


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
