"""A city that does not exist: its plan in metres, and the painting of it as a photograph and as a map."""
