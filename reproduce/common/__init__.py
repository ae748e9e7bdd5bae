"""What every command uses: the command line, files, where a result came from, shards of work."""
