"""The doctor command: what this machine has, and which stages it can run."""
