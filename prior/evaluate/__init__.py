"""The evaluate stage: predictors, metrics and comparisons."""
