"""The command line as people call it: output, exit codes, never a traceback."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib_merge import METHODS
from lib_merge.cli.commands import main
from lib_merge.cli.manual import COMMANDS
from tests.factories import dense_of, relative, write_lora

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pair(tmp_path):
    return [str(write_lora(tmp_path / f"{n}.safetensors", seed=n)) for n in (1, 2)]


def _json(capsys):
    return json.loads(capsys.readouterr().out)


def test_merge_prints_one_json_object_with_every_promised_field(pair, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    assert main(["merge", "--models", *pair, "--ratios", "0.6", "0.4", "--save_to", str(out), "--json"]) == 0
    found = _json(capsys)
    assert {
        "output",
        "method",
        "modules",
        "rank",
        "relative_error",
        "worst_module",
        "energy_kept",
        "bytes",
        "seconds",
        "peak_rss_mb",
        "warnings",
    } <= set(found)
    assert set(found["rank"]) == {"min", "max", "mean"}
    assert {"read", "combine", "compress", "write", "hash", "verify", "total"} <= set(found["seconds"])
    assert found["bytes"] == out.stat().st_size
    assert found["relative_error"] <= 5e-4
    assert (
        relative(
            dense_of(out), {n: 0.6 * a + 0.4 * dense_of(pair[1])[n] for n, a in dense_of(pair[0]).items()}
        )
        <= 5e-4
    )


def test_inspect_resize_run_and_verify(pair, tmp_path, capsys):
    out, small, again = (tmp_path / name for name in ("m.safetensors", "s.safetensors", "again.safetensors"))
    assert (
        main(
            [
                "merge",
                "--models",
                *pair,
                "--save_to",
                str(out),
                "--blocks",
                "M00=0.5",
                "-",
                "--te_ratios",
                "-",
                "0.3",
            ]
        )
        == 0
    )
    assert main(["verify", str(out), "--json"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(out), pair[0], "--json"]) == 0
    merged, source = _json(capsys)
    assert merged["family"] == "SD1"
    assert merged["recipe"]["method"] == "weighted_sum"
    assert merged["recipe"]["sources"][0]["blocks"] == {"M00": 0.5}
    assert source["alpha"] == 2.0
    assert source["rank"] == {"min": 4, "max": 4}
    assert sum(source["block_energy"].values()) == pytest.approx(1.0)
    assert main(["resize", "--model", str(out), "--rank", "3", "--save_to", str(small)]) == 0
    assert main(["run", str(out), "--save_to", str(again)]) == 0
    assert relative(dense_of(again), dense_of(out)) == 0
    recipe = tmp_path / "r.json"
    recipe.write_text(json.dumps(merged["recipe"]))
    assert (
        main(["run", str(recipe), "--lora_dir", str(tmp_path), "--save_to", str(tmp_path / "r.safetensors")])
        == 0
    )
    assert relative(dense_of(tmp_path / "r.safetensors"), dense_of(out)) == 0


def test_verify_of_a_changed_file_returns_one(pair, tmp_path, capsys):
    from safetensors import safe_open

    from tests.factories import lora_tensors, write

    out = tmp_path / "m.safetensors"
    assert main(["merge", "--models", *pair, "--save_to", str(out)]) == 0
    with safe_open(str(out), "pt") as file:
        metadata = file.metadata()
    write(out, lora_tensors(7), metadata)
    assert main(["verify", str(out)]) == 1
    assert "differs from what was asked" in capsys.readouterr().err


BAD = {
    "no such file": (
        ["merge", "--models", "nope.safetensors", "--save_to", "m.safetensors"],
        "nope.safetensors does not exist",
    ),
    "no such method": (
        ["merge", "--models", "{a}", "--save_to", "{m}", "--method", "tie"],
        "Did you mean ties",
    ),
    "knob without a value": (
        ["merge", "--models", "{a}", "--save_to", "{m}", "--method", "ties", "--knob", "elect"],
        "is not NAME=VALUE",
    ),
    "knob of no source": (
        ["merge", "--models", "{a}", "--save_to", "{m}", "--method", "ties", "--knob", "elect@2=mass"],
        "one value for the whole merge",
    ),
    "ratio count": (
        ["merge", "--models", "{a}", "--save_to", "{m}", "--ratios", "1", "2"],
        "2 values for 1 models",
    ),
    "te ratio": (["merge", "--models", "{a}", "--save_to", "{m}", "--te_ratios", "x"], "is not a number"),
    "output extension": (["merge", "--models", "{a}", "--save_to", "m.ckpt"], "must end in .safetensors"),
    "device": (
        ["merge", "--models", "{a}", "--save_to", "{m}", "--device", "quantum"],
        "the device 'quantum' is not available",
    ),
    "no recipe": (["verify", "{a}"], "there is no recipe in it"),
    "broken recipe": (["run", "{broken}"], "is not valid JSON"),
    "inspect a text": (["inspect", "{broken}"], "is damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_on_stderr_and_exit_code_two(name, tmp_path, capsys):
    a = write_lora(tmp_path / "a.safetensors")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    places = {"a": str(a), "m": str(tmp_path / "m.safetensors"), "broken": str(broken)}
    arguments, says = BAD[name]
    assert main([argument.format(**places) for argument in arguments]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert says in found.err
    assert found.err.count("\n") == 1
    assert not (tmp_path / "m.safetensors").exists()


SLIPS = {
    "": "say what is to be done: python -m lib_merge COMMAND, with one of merge, resize,",
    "merge": "merge needs --models and --save_to.",
    "merge --models a": "merge needs --save_to.",
    "nonsense": "there is no command nonsense; there are merge, resize,",
    "merg": "there is no command merg; did you mean merge?",
    "merge --models a --save_to b --raito 3": "there is no option --raito; did you mean --ratios?",
    "merge --models a --save_to b --ratios x": "--ratios takes numbers, and 'x' is none.",
    "merge --models a --save_to b --seed 1.5": "--seed takes a whole number, and '1.5' is none.",
    "merge --models a --save_to": "--save_to needs a value.",
    "merge --models a --save_to b --target x": "--target takes one of kohya, ",
    "inspect a --json=3": "--json takes no value.",
    "methods extra": "there is no place for extra.",
}


@pytest.mark.parametrize("typed", SLIPS)
def test_a_slip_is_one_sentence_first_and_then_where_help_is(typed, capsys):
    with pytest.raises(SystemExit) as error:
        main(typed.split())
    assert error.value.code == 2
    found = capsys.readouterr()
    first, second = found.err.splitlines()
    assert first.startswith(SLIPS[typed])
    assert first.endswith((".", "?"))
    assert re.fullmatch(r"Help and examples: python -m lib_merge( \w+)? --help", second)
    assert found.out == ""


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_examples_and_says_what_can_be_typed(command, capsys):
    with pytest.raises(SystemExit) as error:
        main([*command.split(), "--help"])
    assert error.value.code == 0
    said = capsys.readouterr().out
    assert command == "methods" or f"  python -m lib_merge {command}".rstrip() in said
    assert max(map(len, said.splitlines())) <= 119
    if command == "merge":
        assert all(f"--{name} " in said for name in ("blocks", "elements", "knob", "group", "rank"))


# ------------------------------------------------------------------------------------------------ groups


@pytest.fixture
def four(tmp_path):
    return [str(write_lora(tmp_path / f"{n}.safetensors", seed=n)) for n in (1, 2, 3, 4)]


def _sum(paths, ratios):
    parts = [dense_of(path) for path in paths]
    return {name: sum(r * part[name] for r, part in zip(ratios, parts)) for name in parts[0]}


def test_groups_are_merged_first_and_their_levels_kept(four, tmp_path, capsys):
    out, levels = tmp_path / "m.safetensors", tmp_path / "levels"
    typed = ["merge", "--models", *four, "--ratios", "1", "3", "0.5", "0.25", "--save_to", str(out)]
    typed += ["--group", "a", "B", "name=styles", "method=average", "--keep_levels", str(levels)]
    assert main([*typed, "--group", "styles", "D", "ratio=0.4", "--json"]) == 0
    recipe = json.loads(Path(f"{out.with_suffix('')}.json").read_text(encoding="utf-8"))
    assert recipe
    capsys.readouterr()
    # 0.4 · (mean(1·A + 3·B) + 0.25·D) + 0.5·C
    wanted = _sum([four[0], four[1], four[2], four[3]], [0.4 / 4, 0.4 * 3 / 4, 0.5, 0.4 * 0.25])
    assert relative(dense_of(out), wanted) <= 5e-4
    kept = {path.name: path for path in levels.glob("*.safetensors")}
    assert set(kept) == {"level-1-group_2.safetensors", "level-1-group_2-level-1-styles.safetensors"}
    styles = kept["level-1-group_2-level-1-styles.safetensors"]
    assert relative(dense_of(styles), _sum(four[:2], [0.25, 0.75])) <= 5e-4
    assert main(["verify", str(out), "--lora_dir", str(tmp_path)]) == 0
    assert main(["verify", str(styles), "--lora_dir", str(tmp_path)]) == 0


def test_a_group_has_knobs_ranks_and_roles_of_its_own(four):
    from lib_merge.cli.commands import VERBS
    from lib_merge.cli.options import parser_of
    from lib_merge.cli.typed import recipe_of

    def typed(*more):
        given = ["merge", "--models", *four, "--save_to", "x.safetensors", *more]
        return recipe_of(parser_of(VERBS).parse_args(given))

    recipe = typed(
        "--group", "B", "C", "method=core_ties", "trim_fraction@2=0.5", "rank=8", "ratio=-0.5", "--seed", "7"
    )
    assert [source.handle for source in recipe.sources] == ["A", "1", "D"]
    group = recipe.sources[1]
    assert (group.ratio, group.recipe.method, group.recipe.rank.text) == (-0.5, "core_ties", "8")
    assert group.recipe.seed == recipe.seed == 7
    assert [float(value) for value in group.recipe.knobs["trim_fraction"]] == [0.2, 0.5]
    recipe = typed(
        "--group", "A", "B", "role=style", "--group", "C", "D", "role=subject", "--method", "np_lora"
    )
    recipe.check()
    assert [source.role for source in recipe.sources] == ["style", "subject"]
    recipe = typed("--group", "A", "B", "--aside", "D")
    assert recipe.sources[-1].path == Path(four[3])
    flat = typed()
    assert flat.flat
    assert flat.dumps() == typed("--seed", "0").dumps()


BAD_GROUPS = {
    "unknown letter": (
        ["A", "E"],
        "the group 1 asks for 'E', and what can still go into a group is A, B, C, D.",
    ),
    "no source": (["ratio=1"], "the group 1 has no sources"),
    "twice": (["A", "A"], "is there twice, or holds a source twice"),
    "a knob of nothing": (["A", "nom=3"], "weighted_sum has no knob 'nom'"),
    "ratio": (["A", "ratio=x"], "the ratio of the group 1 is 'x'; it takes a number."),
    "name like a letter": (["A", "name=B"], "the group's name 'B' is none"),
    "name like a place": (["A", "name=../x"], "the group's name '../x' is none"),
    "method": (["A", "B", "method=tie"], "Did you mean ties"),
    "rank": (["A", "B", "rank=many"], "many"),
}


@pytest.mark.parametrize("name", BAD_GROUPS)
def test_a_wrong_group_is_refused_in_a_sentence(name, four, tmp_path, capsys):
    group, says = BAD_GROUPS[name]
    out = tmp_path / "m.safetensors"
    assert main(["merge", "--models", *four, "--save_to", str(out), "--group", *group]) == 2
    assert says in capsys.readouterr().err
    assert not out.exists()


def test_a_source_is_in_one_group_only(four, tmp_path, capsys):
    typed = ["merge", "--models", *four, "--save_to", str(tmp_path / "m.safetensors")]
    assert main([*typed, "--group", "A", "B", "--group", "B", "C"]) == 2
    assert (
        "the group 2 asks for 'B', and what can still go into a group is 1, C, D." in capsys.readouterr().err
    )


def test_levels_are_of_groups(four, tmp_path, capsys):
    out = str(tmp_path / "m.safetensors")
    levels = ["--keep_levels", str(tmp_path / "levels")]
    assert main(["merge", "--models", *four, "--save_to", out, *levels]) == 2
    assert "this one has none: make some with --group" in capsys.readouterr().err
    assert main(["merge", "--models", *four, "--save_to", out]) == 0
    assert main(["run", out, "--save_to", str(tmp_path / "n.safetensors"), *levels]) == 2
    assert not (tmp_path / "levels").exists()


def test_a_resize_asks_for_a_rank_and_names_those_there_are(tmp_path, capsys):
    model = str(write_lora(tmp_path / "a.safetensors", rank=6))
    out = tmp_path / "small.safetensors"
    assert main(["resize", "--model", model, "--save_to", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "resize needs --rank: a.safetensors has rank 6; give a number such as --rank 3, energy:0.99,"
    )
    assert said.count("\n") == 1
    assert not out.exists()
    assert main(["resize", "--model", model, "--save_to", str(out), "--prune", "0.5"]) == 0
    assert main(["convert", "--model", model, "--save_to", str(tmp_path / "same.safetensors")]) == 0


def test_presets_are_listed_with_what_they_are_for(capsys):
    assert main(["presets", "--family", "SDXL", "--json"]) == 0
    found = _json(capsys)
    assert found["STYLE"]["OUT00"] == 1
    assert found["STYLE"]["IN00"] < 1
    assert main(["presets", "--family", "SDXL"]) == 0
    said = capsys.readouterr().out.splitlines()
    at = next(place for place, line in enumerate(said) if line.startswith("STYLE  High in OUT"))
    from lib_merge.blocks.weights import resolve_blocks

    typed, _ = resolve_blocks(said[at + 1].strip(), "SDXL", (), random.Random(0), "the line")
    assert {block: weight for block, weight in found["STYLE"].items() if weight != 1} == typed
    assert main(["presets", "--family", "nothing"]) == 2
    assert "there are no block presets for 'nothing'; there are for SD1," in capsys.readouterr().err


def test_words_of_other_tools_are_understood_and_said(pair, tmp_path, capsys):
    typed = [
        "merge",
        "--models",
        *pair,
        "--save_to",
        str(tmp_path / "m.safetensors"),
        "--method",
        "core_ties",
    ]
    assert main([*typed, "--knob", "elect=majority", "--knob", "density=0.7"]) == 0
    said = capsys.readouterr().out
    assert "note: elect majority is elect count" in said
    assert "note: density 0.7 is trim_fraction 0.3" in said


def test_methods_lists_every_method(capsys):
    assert main(["methods", "--json"]) == 0
    rows = _json(capsys)
    assert [row["name"] for row in rows] == list(METHODS)
    assert all(row["sentence"] and row["paper"].startswith("http") for row in rows)
    assert main(["methods"]) == 0


def test_demo_writes_samples_that_merge(tmp_path, capsys):
    folder = tmp_path / "demo"
    assert main(["demo", str(folder)]) == 0
    made = sorted(folder.glob("*.safetensors"))
    assert len(made) == 3
    assert sum(path.stat().st_size for path in made) < 60e6
    assert (
        main(
            [
                "merge",
                "--models",
                *map(str, made),
                "--save_to",
                str(tmp_path / "m.safetensors"),
                "--rank",
                "energy:0.95",
            ]
        )
        == 0
    )
    assert "of the merge is kept" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl+C is sent as a signal")
def test_an_interrupt_ends_with_130_and_leaves_nothing(tmp_path):
    from lib_merge.samples import write_samples

    folder = tmp_path / "samples"
    folder.mkdir()
    models = [str(path) for path in write_samples(folder)]
    run = subprocess.Popen(
        [sys.executable, "-m", "lib_merge", "merge", "--models", *models, "--save_to", str(tmp_path / "m.safetensors"), "--method", "ties"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*.merging")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "nothing was written" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples"]


@pytest.mark.slow
def test_the_engine_runs_without_tqdm(pair, tmp_path):
    code = "import sys; sys.modules['tqdm'] = None; from lib_merge.cli.commands import main; sys.exit(main(sys.argv[1:]))"
    run = subprocess.run(
        [sys.executable, "-c", code, "merge", "--models", *pair, "--save_to", str(tmp_path / "m.safetensors")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
