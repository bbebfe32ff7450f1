"""An example pipeline: stages that pass work through Redis Streams, and a client that replays a trace of arrivals."""
