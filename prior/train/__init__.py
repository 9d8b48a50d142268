"""The train stage: training job, loop, steps, validation and output files, in one process or on Ray."""
