"""The LoRA folders: what lies in them, what a file holds, where a recipe's sources are."""
