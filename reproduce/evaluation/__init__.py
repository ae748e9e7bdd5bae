"""Scores of pictures and of models: metrics, likeness, diversity, cost, the report."""
