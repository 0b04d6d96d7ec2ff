"""Takes runs back: what that would lose, keeping it, and doing it."""
