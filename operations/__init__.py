"""What an operator does with files: backup, restore, import."""
