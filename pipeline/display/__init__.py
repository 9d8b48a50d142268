"""Command output: terminal, HTML pages and standard streams."""
