"""Independent float64 references in numpy, written from the mathematics; nothing of the library is imported here."""
