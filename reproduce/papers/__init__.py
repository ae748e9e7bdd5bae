"""State what the papers say: printed values, claims, and what tables of one paper share."""
