"""Output for people: terminal, HTML pages, and standard streams."""
