"""What the commands do; ``tools/`` has a door to each."""
