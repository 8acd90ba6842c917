"""Journeys through the tab in a real browser, against the standalone app; run in each of the two gradio worlds."""
