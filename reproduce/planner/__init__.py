"""Plan training runs on GPUs: count a round of a loop on the meta device, and tell what fits and how long it takes."""
