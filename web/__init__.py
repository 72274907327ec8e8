"""HTTP plumbing: reading requests, shaping answers and errors, verifying tokens."""
