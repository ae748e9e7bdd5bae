"""Give every command its errors in one line, its files written whole, its provenance and its shards of work."""
