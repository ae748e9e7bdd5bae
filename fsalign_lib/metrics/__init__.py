"""Measure: intervals, divergences of densities, features, the Frechet distance, precision and recall."""
