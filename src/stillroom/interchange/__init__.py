"""What other programs write, turned into what stillroom reads."""
