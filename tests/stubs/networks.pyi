from network import NetworkOnDisk

available_networks: dict[str, NetworkOnDisk]
available_network_aliases: dict[str, NetworkOnDisk]

def list_available_networks() -> None: ...
