"""Base models: how a file tells which one it is for, their blocks, and their module names."""
