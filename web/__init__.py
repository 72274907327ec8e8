"""HTTP plumbing: requests read, answers and errors shaped, tokens verified."""
