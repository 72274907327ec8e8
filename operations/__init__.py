"""The operator's work with files: backup, restore, import."""
