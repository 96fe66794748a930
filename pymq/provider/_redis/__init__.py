"""The parts of the Redis provider, and `script.lua`, which does it all on the server."""
