class ExtraNetworkParams:
    items: list[str]
    positional: list[str]
    named: dict[str, str]

def parse_prompt(prompt: str) -> tuple[str, dict[str, list[ExtraNetworkParams]]]: ...

class ExtraNetwork:
    name: str

extra_network_registry: dict[str, ExtraNetwork]
extra_network_aliases: dict[str, ExtraNetwork]
