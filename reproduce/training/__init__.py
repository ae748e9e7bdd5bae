"""Give the loops what they share: methods, settings, the run with its optimizer, checkpoints, averages of weights."""
