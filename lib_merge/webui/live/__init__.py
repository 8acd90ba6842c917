"""Merges that act before they are saved: in prompts, and for other scripts."""
