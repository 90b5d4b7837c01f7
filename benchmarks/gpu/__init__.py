"""`make gpu`: builds, tests and measures on the GPU at hand, and says what falls short."""
