"""The parts of the Redis provider, and the script in `lua/`, which does it all on the server."""
