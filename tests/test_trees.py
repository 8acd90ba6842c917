"""How `tests.webui` finds out what an installed WebUI can."""

from __future__ import annotations

import pytest

from tests.webui.trees import Tree


def _tree(folder, **files):
    for name, options in files.items():
        path = folder / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f'parser.add_argument("{option}")\n' for option in options.split()))
    return Tree.of(folder)


A1111 = "--skip-install --do-not-download-clip --use-cpu --no-half --precision --api"


def test_flags_are_those_that_the_command_line_knows(tmp_path):
    a1111 = _tree(tmp_path / "a", **{"modules__cmd_args_py": A1111})
    assert a1111.flags == [
        "--skip-install", "--do-not-download-clip", "--use-cpu", "all", "--no-half", "--precision", "full",
    ]  # fmt: skip
    assert not a1111.rough
    forge = _tree(tmp_path / "f", **{"modules__cmd_args_py": A1111, "backend__args_py": "--always-cpu"})
    assert forge.flags == ["--skip-install", "--do-not-download-clip", "--always-cpu"]
    neo = _tree(
        tmp_path / "n",
        **{"modules__cmd_args_py": "--skip-install", "backend__args_py": "--cpu --bf16-unet --bf16-vae"},
    )
    assert neo.flags == ["--skip-install", "--cpu", "--bf16-unet", "--bf16-vae"]
    assert neo.rough
    classic = _tree(
        tmp_path / "c",
        **{
            "modules__cmd_args_py": "--skip-install --use-cpu --no-half",
            "ldm_patched__modules__args_parser_py": "--always-cpu",
        },
    )
    assert classic.flags == ["--skip-install", "--use-cpu", "all", "--no-half", "--always-cpu"]


def test_a_folder_that_is_no_webui_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="is no WebUI"):
        Tree.of(tmp_path)
