"""How many ranks a module keeps: the policy people type, a budget shared over the whole LoRA."""
