"""Output of commands: terminal, HTML pages, and standard streams."""
