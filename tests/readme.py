"""`python -m tests.readme`: write the generated tables into .docs/methods.md and .docs/loaders.md."""

from __future__ import annotations

import re
from pathlib import Path

from lib_merge.cli.text import methods_markdown
from lib_merge.families import FAMILIES
from lib_merge.loaders import HOSTS, Front, How, Loads

ROOT = Path(__file__).parents[1]
METHODS = ROOT / ".docs" / "methods.md"
LOADERS = ROOT / ".docs" / "loaders.md"


def main() -> None:
    for path, name, table in (
        (METHODS, "methods", methods_markdown()),
        (LOADERS, "loaders", loaders_markdown()),
    ):
        text = path.read_text(encoding="utf-8")
        block = f"<!-- {name}:begin -->\n{table}\n<!-- {name}:end -->"
        text = re.sub(
            rf"<!-- {name}:begin -->.*?<!-- {name}:end -->", lambda _, b=block: b, text, flags=re.DOTALL
        )
        path.write_text(text, encoding="utf-8")


def loaders_markdown() -> str:
    """Return the table host × family × what loads."""
    hosts = HOSTS.values()
    lines = [
        f"| base model | {' | '.join(host.title for host in hosts)} |",
        f"|---|{'---|' * len(hosts)}",
    ]
    for family in FAMILIES.values():
        if any(family.name in host.families for host in hosts):
            cells = (_cell(host.families.get(family.name)) for host in hosts)
            lines.append(f"| {family.name} | {' | '.join(cells)} |")
    lines += ["", "| host | looked at | commit |", "|---|---|---|"]
    lines += [f"| {host.title} | {host.source} | {host.commit} |" for host in hosts]
    return "\n".join(lines)


def _cell(loads: Loads | None) -> str:
    if loads is None:
        return "–"
    fronts = [front.text if isinstance(front, Front) else front for front in loads.own]
    words = ["kohya" if "lora_unet_" in fronts else "", "native" if "diffusion_model." in fronts else ""]
    words.append("diffusers" if loads.other else "")
    encoders = sorted({name for names in loads.encoders.values() for name in names})
    text = ", ".join(word for word in words if word) + (f"; {', '.join(encoders)}" if encoders else "")
    return text + (f" ({How.READ.value})" if loads.how is How.READ else "")


if __name__ == "__main__":
    main()
