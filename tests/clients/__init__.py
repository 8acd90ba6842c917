"""Models of other people's libraries, with random weights, that real LoRAs fit."""
