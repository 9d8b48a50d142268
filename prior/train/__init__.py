"""The train stage: job, loop, step, validation, and output."""
