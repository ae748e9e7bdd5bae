"""Make a table: its declaration, command, rows, snapshots, claims, page and figures."""
