"""The language model: what it is asked, how its answer is read, and a client that survives every way a server misbehaves."""
