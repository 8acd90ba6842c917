"""The command line as people call it: output, exit codes, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib_merge import METHODS
from lib_merge.cli.commands import main
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


def test_usage_errors_exit_with_two():
    for arguments in ([], ["merge"], ["merge", "--models", "a"], ["nonsense"]):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2


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
