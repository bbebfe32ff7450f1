"""The hook on a real GPU: one command that builds on the spot, measures, and ends with a table."""
