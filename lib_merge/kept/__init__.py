"""What the program remembers for itself: history, reports, measured strengths."""
