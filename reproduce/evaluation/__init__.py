"""Score pictures and models: metrics, likeness, diversity, cost, the report."""
