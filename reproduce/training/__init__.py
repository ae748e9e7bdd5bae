"""What the loops share: methods, the run with its optimizer and checkpoints, averages of weights."""
