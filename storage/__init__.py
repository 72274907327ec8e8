"""The database: where it is, how it is written, what its schema must be."""
