"""Results in, figures and HTML out: reads result files, never a model, and loads no torch."""
