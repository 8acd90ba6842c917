"""README and .docs: what they show is run as it is printed, what they point at is there."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib_merge.cli import manual
from lib_merge.cli.commands import main
from lib_merge.cli.text import methods_markdown
from lib_merge.methods import METHODS
from lib_merge.ranks.policy import parse_policy
from lib_merge.recipe import Recipe, Source, loads
from lib_merge.samples import write_samples
from lib_merge.ui.desk import OPERATIONS
from lib_merge.ui.operations import TOPICS
from tests.documentation import PAGES, README, ROOT, anchors, blocks, commands, links, prose

MOST_WORDS = 1200
PROGRAM = "python -m lib_merge "
RUN = ("sh", "python", "json")
DOCS = ROOT / ".docs"


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder)
    return folder


@pytest.fixture
def beside_samples(samples, tmp_path, monkeypatch):
    for path in samples.iterdir():
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(line):
    """Run one command line as `python -m lib_merge` does, in this process."""
    assert line.startswith(PROGRAM), f"{line!r} is no command that a test can run: mark the block as shown"
    said, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(wrong):
        try:
            code = main(shlex.split(line.removeprefix(PROGRAM)))
        except SystemExit as end:
            code = end.code
    assert code == 0, f"{line}\n{wrong.getvalue()}"
    return said.getvalue()


def _ids(pages):
    return [page.name for page in pages]


RUNNING = [
    page for page in PAGES if any(one.language in ("sh", "python") and not one.sort for one in blocks(page))
]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=_ids(RUNNING))
def test_commands_and_snippets_run_as_printed(page, beside_samples):
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.sort == "file":
            (beside_samples / block.about).write_text(block.text, encoding="utf-8")
        elif block.sort:
            continue
        elif block.language == "sh":
            for line in commands(block.text):
                _run(line)
        elif block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.text, page.name, "exec"), names)  # the page's own text


@pytest.mark.slow
@pytest.mark.parametrize("command", manual.EPILOGS)
def test_examples_of_the_help_run_as_printed(command, beside_samples):
    epilog = manual.EPILOGS[command]
    lines = [line for line in commands(epilog) if line.startswith(PROGRAM)]
    assert lines
    for line in lines:
        _run(line)


@pytest.mark.slow
def test_a_command_in_this_process_is_the_command_that_is_printed(beside_samples):
    line = next(
        line
        for block in blocks(README)
        for line in commands(block.text)
        if line.startswith(f"{PROGRAM}merge")
    )
    here = _run(line)
    [made] = set(beside_samples.glob("*.safetensors")) - {beside_samples / f"{n}.safetensors" for n in (
        "sample-ink-style", "sample-mira-character", "sample-neon-concept")}  # fmt: skip
    before = made.read_bytes()
    made.unlink()
    words = [sys.executable, *shlex.split(line)[1:]]
    run = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", check=False,
                         env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"})  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert made.read_bytes() == before
    assert run.stdout.splitlines()[:2] == here.splitlines()[:2]


@pytest.mark.parametrize("page", PAGES, ids=_ids(PAGES))
def test_every_block_is_run_or_says_why_not(page):
    for block in blocks(page):
        assert block.language in RUN, f"{page.name}: {block.text[:60]!r} has no language that is tested"
        assert block.sort in ("", "shown", "file", "body"), block.sort
        assert block.sort != "shown" or len(block.about.split()) >= 3, "say why it is not run"
        if block.language == "json":
            json.loads(block.text)
            assert block.sort, f"{page.name}: {block.text[:60]!r}: a file, a body or shown?"
    fences = len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert fences == 2 * len(blocks(page))


@pytest.mark.parametrize("page", PAGES, ids=_ids(PAGES))
def test_links_and_pictures_lead_somewhere(page):
    for target in links(page):
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


def test_every_page_and_picture_can_be_reached_from_the_readme():
    seen, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        if page in seen:
            continue
        seen.add(page)
        if page in PAGES:
            waiting += [(page.parent / target.partition("#")[0]).resolve() for target in links(page)]
    assert set(DOCS.iterdir()) <= seen


def test_the_readme_is_short_and_opens_with_the_two_commands():
    text = README.read_text(encoding="utf-8")
    assert len(text.split()) <= MOST_WORDS
    head = text[:1500]
    assert "python install.py --app" in head
    assert "python install.py --test" in head
    assert len(re.findall(r"!\[", text)) == 1


def test_every_command_of_the_pages_and_no_other_is_named():
    said = {
        name
        for page in PAGES
        for name in re.findall(r"python -m lib_merge (\w+)", page.read_text(encoding="utf-8"))
    }
    assert said - {"COMMAND"} == set(manual.COMMANDS)


def test_the_table_of_methods_is_the_registrys():
    text = (DOCS / "methods.md").read_text(encoding="utf-8")
    table = text.split("<!-- methods:begin -->")[1].split("<!-- methods:end -->")[0]
    assert table.strip() == methods_markdown().strip(), "run: python -m tests.readme"


def test_methods_named_anywhere_are_methods():
    known = set(METHODS)
    readme = README.read_text(encoding="utf-8").split("## Which method first")[1].split("\n## ")[0]
    first = re.findall(r"^\| `(\w+)` \|", readme, re.MULTILINE)
    assert len(first) == 5
    assert set(first) <= known
    guide = prose(DOCS / "guide.md").split("## Does the order matter?")[1].split("\n## ")[0]
    ordered = {name for name, method in METHODS.items() if not method.symmetric}
    assert ordered <= set(re.findall(r"`(\w+)`", guide))


def test_the_command_lines_page_names_every_option_of_merge():
    from lib_merge.cli.commands import VERBS
    from lib_merge.cli.options import parser_of

    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    [commands_of] = [action for action in parser_of(VERBS)._actions if action.metavar == "COMMAND"]
    merge = commands_of.choices["merge"]
    options = {name for action in merge._actions for name in action.option_strings if name.startswith("--")}
    named = set(re.findall(r"--\w+", page))
    assert options - {"--help"} <= named
    every = {
        name
        for one in commands_of.choices.values()
        for action in one._actions
        for name in action.option_strings
    }
    assert named <= every | {"--app", "--help"}


def test_the_rest_page_names_every_route_and_no_other():
    assert TOPICS  # importing them registers the operations
    page = (DOCS / "rest.md").read_text(encoding="utf-8")
    named = {(method, path) for method, path in re.findall(r"`(GET|POST) (/[\w/{}]+)(?:\?[^`]*)?`", page)}
    assert {tuple(one.rest.split(" ")) for one in OPERATIONS.values() if one.rest} <= named
    assert {path for _, path in named} <= {one.rest.split(" ")[1] for one in OPERATIONS.values() if one.rest}


def test_the_recipe_page_has_every_field_and_every_one_in_its_example():
    texts = [block.text for block in blocks(DOCS / "recipe.md") if block.sort == "file"]
    recipes = [loads(text) for text in texts]
    for recipe in recipes:
        recipe.check()
    fields, of_sources = set(Recipe.__dataclass_fields__), set(Source.__dataclass_fields__)
    told = {"said", "handle", "path"}  # never written to JSON
    whole = json.loads(max(texts, key=len))
    names = {name for text in texts for source in json.loads(text)["sources"] for name in source}
    assert fields - told <= set(whole)
    assert of_sources - told - {"sha256", "size"} <= names
    page = prose(DOCS / "recipe.md")
    assert {name for name in fields | of_sources if f"`{name}`" not in page} == told
    assert all(parse_policy(text) for text in re.findall(r"`((?:energy|error|budget):[\w.]+)`", page))


def test_the_report_page_has_the_same_complaints():
    """One row per complaint, in the same order and words."""
    from lib_merge.analysis.symptoms import TABLE

    section = (
        (DOCS / "report.md").read_text(encoding="utf-8").split("## Reading the report")[1].split("\n## ")[0]
    )
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")]
    titles = [row[1] for row in TABLE]
    assert [row for row in rows if row in titles] == titles


def test_the_security_page_names_every_campaign():
    from tests.campaigns import ASKED_FOR, CAMPAIGNS

    page = (DOCS / "security.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| ([\w-]+): ", page, re.MULTILINE)) == set(CAMPAIGNS) - set(ASKED_FOR)


def test_contributing_points_at_files_and_pages_that_are_there():
    page = ROOT / ".github" / "CONTRIBUTING.md"
    for target in links(page):
        assert (page.parent / target.partition("#")[0]).resolve().exists(), target


def test_pictures_are_what_they_are_called():
    marks = {".png": b"\x89PNG", ".jpg": b"\xff\xd8"}
    for picture in [path for path in DOCS.iterdir() if path.suffix != ".md"]:
        assert Path(picture).read_bytes().startswith(marks[picture.suffix]), picture
