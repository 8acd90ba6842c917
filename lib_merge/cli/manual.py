"""What `--help` says beyond the options: examples, and the grammar of what is typed into one option.

Every example is run by tests/test_documentation.py, in a folder with the sample LoRAs.
"""

from __future__ import annotations

from collections.abc import Mapping

PROGRAM = "Merge LoRAs exactly: what was asked for is what is saved, and each merge is proven."

COMMANDS: Mapping[str, str] = {
    "merge": "merge LoRAs into one",
    "resize": "save one LoRA at another rank",
    "convert": "write one LoRA with other names, or as plain LoRA",
    "run": "run a recipe (.json, or the one inside a merged LoRA)",
    "verify": "hold a merged LoRA against its recipe",
    "inspect": "say what is in LoRA files",
    "analyze": "say what is in LoRAs, what merging them will do, and what to do about it",
    "methods": "list the merge methods with their settings",
    "presets": "list the block presets of a family",
    "demo": "write synthetic sample LoRAs into a folder",
}

# the samples as every example names them
_INK, _MIRA, _NEON = (
    f"{name}.safetensors" for name in ("sample-ink-style", "sample-mira-character", "sample-neon-concept")
)

OVERVIEW = f"""\
examples, with the samples that `demo` writes:
  python -m lib_merge demo .
  python -m lib_merge merge --models {_INK} {_MIRA} \\
      --ratios 0.6 0.4 --save_to ink+mira.safetensors
  python -m lib_merge verify ink+mira.safetensors
  python -m lib_merge analyze {_INK} {_MIRA}

`python -m lib_merge COMMAND --help` has more of them, and the grammar of blocks, elements, knobs and groups.
Exit codes: 0 done, 1 verify found a difference, 2 something is wrong with what was asked, 130 interrupted.
"""

_BLOCKS = """\
--blocks SPEC multiplies the ratio block by block; one SPEC per source, - for none:
  STYLE                       a preset (`presets` lists them), or a list as other tools have it:
  1,0,0,0,1,1,1,1,1,1,1,1     12, 17, 20, 26 or 61 numbers; R and U draw one, X stands for x= behind the list
  OUT00-OUT05=0.5,M00=1       blocks and ranges by name; what is not named is 1
  SD1, SDXL: BASE IN00…IN11 M00 OUT00…OUT11   Flux: CLIP T5 IN D00…D18 S00…S37 OUT

--elements RULES replaces block weights where a module's name holds a word; rules BLOCKS:WORDS:WEIGHT with
commas between them, the later one wins; empty BLOCKS or WORDS match everything, NOT turns either round:
  OUT00-OUT05:attn2:0.5       cross-attention of these blocks at half
  :NOT attn:0                 nothing but attention
  :unique_only:0              without the modules that no other source has
  shared_only                 nothing but the modules that every source has
"""

_KNOBS = """\
--knob NAME=VALUE sets the method (`methods` lists them); on, off, a number or a word. NAME@2=VALUE is for the
second source alone, where it trims or drops. Other tools' words are understood: density=0.8 is
trim_fraction=0.2, elect=majority is elect=count.
"""

_GROUPS = """\
--group SOURCE … [NAME=VALUE …] merges these sources first; the result stands in the place of the first of
them. Sources are letters in the order of --models; groups are called 1, 2, … or by name=, and a later group
may hold earlier ones. ratio= is the group's own; method=, rank=, role= and the method's knobs are how it is
merged: --group A B method=ties trim_fraction=0.3 ratio=0.7. --keep_levels saves every group.
"""

_RANKS = """\
--rank POLICY: lossless, a number (16), energy:0.99 (least rank that keeps 99 %), error:0.01, budget:50MB.
"""

EPILOGS: Mapping[str, str] = {
    "merge": f"""\
examples:
  python -m lib_merge merge --models {_INK} {_MIRA} \\
      --ratios 0.6 0.4 --save_to a.safetensors
  python -m lib_merge merge --models {_INK} {_MIRA} \\
      --blocks OUTALL INS --save_to b.safetensors
  python -m lib_merge merge --models {_INK} {_MIRA} \\
      --elements :attn2:0.5 - --save_to c.safetensors
  python -m lib_merge merge --models {_INK} {_MIRA} \\
      --method core_ties --knob trim_fraction@2=0.5 --rank 16 --save_to d.safetensors
  python -m lib_merge merge --models {_INK} {_NEON} \\
      {_MIRA} --ratios 0.7 0.5 0.5 \\
      --group A B name=styles method=average --keep_levels levels --save_to e.safetensors

{_BLOCKS}
{_KNOBS}
{_GROUPS}
{_RANKS}""",
    "resize": f"""\
examples:
  python -m lib_merge resize --model {_INK} --rank 8 --save_to small.safetensors
  python -m lib_merge resize --model {_INK} \\
      --rank energy:0.95 --save_to smaller.safetensors

{_RANKS}""",
    "convert": f"""\
examples:
  python -m lib_merge convert --model {_MIRA} \\
      --target diffusers --save_to mira-diffusers.safetensors
  python -m lib_merge convert --model {_MIRA} \\
      --target a1111 --save_to mira-a1111.safetensors

{_RANKS}""",
    "run": f"""\
examples:
  python -m lib_merge merge --models {_INK} {_MIRA} \\
      --save_to merged.safetensors
  python -m lib_merge run merged.safetensors --save_to again.safetensors
""",
    "verify": f"""\
examples:
  python -m lib_merge merge --models {_INK} {_MIRA} \\
      --save_to verified.safetensors
  python -m lib_merge verify verified.safetensors --lora_dir .
""",
    "inspect": f"""\
examples:
  python -m lib_merge inspect {_INK} {_MIRA}
""",
    "analyze": f"""\
examples:
  python -m lib_merge analyze {_INK} {_MIRA} \\
      --ratios 0.6 0.4 --html report.html
  python -m lib_merge analyze {_INK} {_MIRA} \\
      --method ties --compare average slerp --json --no_tensors
""",
    "presets": """\
examples:
  python -m lib_merge presets --family SDXL
""",
    "demo": """\
examples:
  python -m lib_merge demo samples-loras
""",
}
