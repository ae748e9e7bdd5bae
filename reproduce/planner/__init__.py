"""What a run takes of a GPU, counted before one is rented."""
