"""The parts of the shm provider: `files` is what the kernel is asked for, `frames` and `state` the formats, the others use them."""
