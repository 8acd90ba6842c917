"""Every file that ever led anywhere it should not, merged with a sound LoRA by the command line: one sentence, or a file
that is proven and that safetensors' own library reads.
"""

from __future__ import annotations

import functools
import json
import logging
import shutil

import pytest
from safetensors.torch import load

from lib_merge.cli import main
from lib_merge.metadata import Card
from tests.campaigns.harness import SHARED
from tests.campaigns.pickled import _saved
from tests.campaigns.small_files import METADATA, generated, good, save_tensors, seeds

HOSTILE = SHARED / "cases" / "hostile"
CASES = sorted(HOSTILE.glob("*.*")) if HOSTILE.is_dir() else []
# words that stand where Python speaks
PYTHONS = ("Traceback", "Error:", "object has no", "NoneType", "out of range", "unhashable", "dict_keys")


@functools.cache
def _files():
    """Return name -> bytes: the hostile cases, what the campaigns begin with, and pickles."""
    found = {path.name: path.read_bytes() for path in CASES if path.suffix in (".safetensors", ".pt")}
    found |= {f"seed-{number}.safetensors": data for number, data in enumerate(seeds())}
    return found | {f"seed-{number}.pt": data for number, data in enumerate(_saved())}


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "good.safetensors"
    path.write_bytes(save_tensors(good(), METADATA))
    return path


def _merged(capsys, caplog, folder, *models, more=()):
    """Merge, and return "" where it was saved and proven, else what was said."""
    out = folder / "out" / "m.safetensors"
    out.parent.mkdir(exist_ok=True)
    code = main(
        ["merge", "--models", *map(str, models), "--save_to", str(out), "--overwrite", "--json", *more]
    )
    told, said = capsys.readouterr()
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR or one.exc_info]
    if code == 0:
        report = json.loads(told)
        assert report["relative_error"] is not None
        assert report["relative_error"] < 0.01, report
        assert main(["verify", str(out), "--lora_dir", str(folder)]) == 0
        capsys.readouterr()
        load(out.read_bytes())
        return ""
    assert code == 2
    assert [path.name for path in out.parent.iterdir()] == [], said
    line = said.strip()
    assert line.isprintable()
    assert line.endswith((".", "…", ")")), line
    assert 10 < len(line) < 2500
    assert not any(word in line for word in PYTHONS), line
    return line


def test_every_hostile_file_is_refused_in_one_sentence_or_merged_and_proven(tmp_path, sound, capsys, caplog):
    said = {}
    for name, data in _files().items():
        path = tmp_path / name
        path.write_bytes(data)
        said[name] = _merged(capsys, caplog, tmp_path, sound, path, more=["--drop_unsupported"])
        if said[name]:
            alone = _merged(capsys, caplog, tmp_path, path)
            assert not alone or name.partition(".")[0] in alone, alone
        path.unlink()
        shutil.rmtree(tmp_path / "out")
    assert len(said) > 25
    merged = [name for name, line in said.items() if not line]
    assert len(merged) > 10
    assert len(merged) < len(said) - 5


@pytest.mark.skipif(not CASES, reason="the hostile cases are not here")
@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("sidecar_source_half_surrogate.json", "good.json"),
        ("sidecar_target_half_surrogate.json", "out/m.json"),
        ("sidecar_target_written_by_merge_int.json", "out/m.json"),
        ("sidecar_target_written_by_merge_int.json", "good.json"),
        ("tab_blocks_request_unencodable_reply.json", "out/m.json"),
    ],
)
def test_whatever_lies_beside_a_file_a_sound_merge_is_saved(name, beside, tmp_path, sound, capsys, caplog):
    (tmp_path / "out").mkdir()
    data = (HOSTILE / name).read_bytes()
    (tmp_path / beside).write_bytes(data)
    assert _merged(capsys, caplog, tmp_path, sound) == ""
    written = json.loads((tmp_path / "out" / "m.json").read_text(encoding="utf-8"))
    json.dumps(written, ensure_ascii=False).encode("utf-8", "surrogatepass")
    # what an earlier merge wrote is renewed, everything else is kept
    assert Card.of(data).ours or any(path.read_bytes() == data for path in tmp_path.rglob("*.json*"))


@pytest.mark.skipif(not CASES, reason="the hostile cases are not here")
def test_a_configuration_that_no_number_holds_is_one_sentence(tmp_path, sound, capsys, caplog):
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(save_tensors(generated()["peft"]))
    shutil.copy(HOSTILE / "adapter_config_lora_alpha_10e400.json", tmp_path / "adapter_config.json")
    (tmp_path / "adapter_config.json").chmod(0o644)
    said = _merged(capsys, caplog, tmp_path, sound, path)
    assert "adapter" in said or said == ""
