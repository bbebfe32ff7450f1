"""The experience memory in Redis, in plain types and readable names, so that people read it with ``redis-cli``."""
