class ExtraNetworkParams:
    items: list[str]
    positional: list[str]
    named: dict[str, str]

def parse_prompt(prompt: str) -> tuple[str, dict[str, list[ExtraNetworkParams]]]: ...
