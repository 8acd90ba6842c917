"""Bad input and bad moments: one sentence, sources untouched, the output whole or as it was."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
from pathlib import Path

import pytest
import torch

from lib_merge import Job, Source, merge, verify
from lib_merge.errors import (
    Cancelled,
    FamilyError,
    MergeError,
    ModuleError,
    NumericsError,
    OutputError,
    RecipeError,
    VerifyError,
)
from lib_merge.files import writer as writing
from lib_merge.files.reader import open_tensors
from lib_merge.files.store import write_error
from tests.factories import NAMES, lora_tensors, write, write_lora


@pytest.fixture
def pair(tmp_path):
    return [write_lora(tmp_path / "a.safetensors", seed=1), write_lora(tmp_path / "b.safetensors", seed=2)]


def _refused(kind, says, call):
    with pytest.raises(kind, match=says) as error:
        call()
    assert "\n" not in str(error.value)


def test_no_space_left_is_said_and_nothing_remains(pair, tmp_path, monkeypatch):
    out = tmp_path / "m.safetensors"
    real = writing.StreamWriter._write
    calls = []

    def full(self, view):
        calls.append(1)
        if len(calls) > 5:
            raise write_error(OSError(errno.ENOSPC, "no space"), self.target)
        real(self, view)

    monkeypatch.setattr(writing.StreamWriter, "_write", full)
    _refused(OutputError, "no space is left", lambda: merge(pair, save_to=out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_the_systems_own_no_space_error_is_understood(tmp_path):
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(OSError) as error:
        full.write(b"x")
    assert "no space is left" in str(write_error(error.value, tmp_path / "m.safetensors"))


def test_a_read_only_folder_is_said(pair, tmp_path, monkeypatch):
    def denied(self, *_, **__):
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(OutputError, match="read-only"):
        writing.StreamWriter(tmp_path / "m.safetensors", 100)


def test_the_output_may_not_be_a_source(pair):
    before = pair[0].read_bytes()
    _refused(
        OutputError, "is one of the sources", lambda: merge(pair, save_to=pair[0], job=Job(overwrite=True))
    )
    assert pair[0].read_bytes() == before


def test_an_existing_output_is_refused_before_any_work(pair, tmp_path):
    out = tmp_path / "m.safetensors"
    out.write_bytes(b"old")

    def never(path):
        raise AssertionError(path)

    _refused(OutputError, "exists already", lambda: merge(pair, save_to=out, job=Job(open_file=never)))
    assert out.read_bytes() == b"old"


def test_a_missing_folder_is_said(pair, tmp_path):
    _refused(
        OutputError,
        "the folder nowhere does not exist",
        lambda: merge(pair, save_to=tmp_path / "nowhere" / "m.safetensors"),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("role", ["lora_up", "lora_down"])
@pytest.mark.parametrize("rank", ["lossless", "2"])
def test_nan_in_a_source_is_named_with_its_key(value, role, rank, pair, tmp_path):
    tensors = lora_tensors(3, dtype=torch.float16)
    tensors[f"{NAMES[2]}.{role}.weight"][1, 2] = value
    broken = write(tmp_path / "broken.safetensors", tensors)
    out = tmp_path / "m.safetensors"
    _refused(
        NumericsError,
        rf"broken\.safetensors is broken: {NAMES[2]}\.{role}\.weight holds NaN or infinity",
        lambda: merge([*pair, broken], save_to=out, rank=rank),
    )
    assert not out.exists()


def test_a_number_beyond_the_precision_is_said(tmp_path):
    path = write_lora(tmp_path / "a.safetensors", size=3e4)
    out = tmp_path / "m.safetensors"
    _refused(
        NumericsError, "grows beyond what fp16 can hold", lambda: merge([path], ratios=[5000], save_to=out)
    )
    assert not out.exists()
    assert merge([path], ratios=[5000], save_to=out, save_precision="float").relative_error < 1e-6


def test_two_families_are_refused_in_one_sentence(pair, tmp_path):
    xl = write(
        tmp_path / "xl.safetensors",
        {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight": torch.ones(640, 2),
         "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": torch.ones(2, 2048)},
    )  # fmt: skip
    _refused(
        FamilyError,
        r"SD1.*SDXL.*cannot be merged",
        lambda: merge([pair[0], xl], save_to=tmp_path / "m.safetensors"),
    )
    _refused(
        FamilyError,
        "there is no family 'SD9'",
        lambda: merge(pair, save_to=tmp_path / "m.safetensors", family="SD9"),
    )
    _refused(
        FamilyError, "not for SDXL", lambda: merge(pair, save_to=tmp_path / "m.safetensors", family="SDXL")
    )


def test_one_module_of_two_sizes_is_named_with_both(pair, tmp_path):
    tensors = lora_tensors(1)
    tensors[f"{NAMES[0]}.lora_up.weight"] = torch.ones(25, 4)
    other = write(tmp_path / "other.safetensors", tensors)
    _refused(
        ModuleError,
        r"24 × 20 in a and 25 × 20 in other",
        lambda: merge([pair[0], other], save_to=tmp_path / "m.safetensors"),
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "tiess"}, "no merge method 'tiess'. Did you mean ties"),
        ({"method": "ties", "knobs": {"trim": 0.2}}, "no knob 'trim'.*Did you mean"),
        ({"method": "ties", "knobs": {"trim_fraction": 1.5}}, "from 0 to 0.95"),
        ({"method": "ties", "knobs": {"trim_fraction": "nan"}}, "is 'nan'"),
        ({"method": "ties", "knobs": {"elect": "me"}}, "mass or count"),
        ({"method": "ties", "rank": "lossless"}, "no lossless form"),
        ({"ratios": [1]}, "1 ratio values for 2 sources"),
        ({"ratios": [1, float("nan")]}, "ratio of b is nan"),
        ({"rank": "huge"}, "is not understood"),
        ({"save_precision": "fp8"}, "precision 'fp8'"),
        ({"blocks": ["NOSUCH", None]}, "no block preset 'NOSUCH'"),
        ({"blocks": ["1,2,3", None]}, "a list of 3 block weights does not fit SD1, which takes 17 or 26"),
        ({"blocks": ["IN77=1", None]}, "no block 'IN77'"),
        ({"blocks": ["IN01=x", None]}, "is not a number"),
        ({"prune": 7}, "prune is 7"),
        ({"conv_rank": 0}, "conv_rank is 0"),
    ],
)
def test_a_request_that_makes_no_sense_is_one_sentence_and_writes_nothing(options, says, pair, tmp_path):
    _refused(MergeError, says, lambda: merge(pair, save_to=tmp_path / "m.safetensors", **options))
    assert not (tmp_path / "m.safetensors").exists()


def test_a_method_for_two_or_three_refuses_four(pair, tmp_path):
    _refused(
        RecipeError,
        "takes 2 to 3 sources; this recipe has 4",
        lambda: merge([*pair, *pair], save_to=tmp_path / "m.safetensors", method="add_difference"),
    )


def test_a_recipe_of_weight_zero_is_not_saved_as_an_empty_file(pair, tmp_path):
    _refused(
        OutputError,
        "every module of the result is zero",
        lambda: merge(pair, ratios=[0, 0], save_to=tmp_path / "m.safetensors"),
    )


@pytest.mark.parametrize("after", [0, 1])
def test_cancelling_leaves_nothing(after, pair, tmp_path):
    asked = []

    def cancelled():
        asked.append(1)
        return len(asked) > after

    _refused(
        Cancelled,
        "nothing was written",
        lambda: merge(pair, save_to=tmp_path / "m.safetensors", job=Job(cancelled=cancelled)),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_changed_merge_no_longer_verifies(pair, tmp_path):
    out = tmp_path / "m.safetensors"
    merge(pair, ratios=[0.6, 0.4], save_to=out, rank="3")
    assert verify(out).relative_error > 0
    with open_tensors(out) as file:
        tensors = {key: file.read(key) for key in file.tensors}
        metadata = dict(file.metadata)
    tensors[f"{NAMES[0]}.lora_up.weight"] = tensors[f"{NAMES[0]}.lora_up.weight"] * 1.05
    write(out, tensors, metadata)
    _refused(VerifyError, NAMES[0], lambda: verify(out))
    del (
        tensors[f"{NAMES[0]}.lora_up.weight"],
        tensors[f"{NAMES[0]}.lora_down.weight"],
        tensors[f"{NAMES[0]}.alpha"],
    )
    write(out, tensors, metadata)
    _refused(VerifyError, NAMES[0], lambda: verify(out))
    write(out, lora_tensors(1), None)
    _refused(RecipeError, "no recipe in it", lambda: verify(out))


def test_a_source_that_changed_is_said_by_verify_and_a_renamed_one_is_found(pair, tmp_path):
    out = tmp_path / "m.safetensors"
    merge(pair, ratios=[0.6, 0.4], save_to=out)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    pair[0].rename(moved / "renamed.safetensors")
    verify(out)
    write_lora(pair[1], seed=9)
    _refused(RecipeError, r"b\.safetensors was not found: its file has changed", lambda: verify(out))


def test_a_held_output_is_saved_as_the_next_version_and_said(pair, tmp_path, monkeypatch):
    out = tmp_path / "m.safetensors"
    merge(pair, save_to=out)
    before = out.read_bytes()

    def held(source, destination):
        raise PermissionError(13, "in use")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", held)
        report = merge(pair, ratios=[1, 2], save_to=out, job=Job(overwrite=True, side_car=False))
    assert Path(report.output).name == "m_v2.safetensors"
    assert any("in use by another program" in warning for warning in report.warnings)
    assert out.read_bytes() == before
    verify(report.output)


# children that merge without end and are killed within the time of three merges; after each the output is looked at
_KILLED = """
    import hashlib, random, time
    from lib_merge.files.reader import open_tensors

    a, b, out = arguments
    out, rng = Path(out), random.Random(4)
    for _ in range(2):
        begun = time.monotonic()
        merge([a, b], save_to=out, ratios=[0.5, 0.5], job=Job(overwrite=True))
    took = time.monotonic() - begun
    for number in range(60):
        child = os.fork()
        while child == 0:
            number += 1
            merge([a, b], save_to=out, ratios=[number % 7 + 0.5, 0.5], job=Job(overwrite=True))
        time.sleep(rng.uniform(0.0, 3 * took))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
        with open_tensors(out) as file:
            for key in file.tensors:
                file.read(key)
            data = out.read_bytes()[file.data_start :]
            assert hashlib.sha256(data).hexdigest() == file.metadata["sshs_model_hash"]
        assert sum(path.name.endswith(".safetensors") for path in out.parent.iterdir()) == 1
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="kill -9 is a POSIX matter; Windows is covered by the rename tests"
)
def test_killed_at_any_moment_the_output_is_whole_and_the_sources_are_untouched(tmp_path, forked):
    sources = [write_lora(tmp_path / f"{n}.safetensors", seed=n, rank=8) for n in b"ab"]
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources]
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "m.safetensors"
    assert forked(_KILLED, [(*sources, out)]) == [0]
    assert [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources] == hashes
    for left in folder.glob(".*"):
        os.utime(left, (0, 0))
    merge(sources, save_to=out, job=Job(overwrite=True))
    names = sorted(path.name for path in folder.iterdir())
    # killed between two renames: the notes that lay there are kept beside
    assert [name for name in names if not name.endswith(".bak")] == ["m.json", "m.safetensors"]
    verify(out, [tmp_path])


def test_a_group_in_a_group_in_a_group_has_an_end(pair, tmp_path):
    from lib_merge import Recipe

    recipe = Recipe((Source(path=pair[0], name="a"),))
    for _ in range(12):
        recipe = Recipe((Source(recipe=recipe),))
    _refused(
        RecipeError,
        "nested more than",
        lambda: merge([Source(recipe=recipe)], save_to=tmp_path / "m.safetensors"),
    )


@pytest.mark.parametrize("method", ["core_ties", "knots_dare", "decorrelated_sum", "column_balanced"])
def test_modules_pruned_from_a_core_merge_are_measured_too(tmp_path, method):
    sources = [write_lora(tmp_path / f"{seed}.safetensors", seed, size=0.1) for seed in (1, 2)]
    report = merge(sources, method=method, prune=0.5, save_to=tmp_path / "out.safetensors")
    assert report.pruned["modules"] + report.pruned["ranks"] > 0
    measured = {module.name for module in report.modules}
    assert measured >= {name for name, why in report.left_out.items() if why == "pruned"}
