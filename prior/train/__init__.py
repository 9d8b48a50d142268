"""The train stage: a training job, its loop, steps, validation and output, in one process or on Ray."""
