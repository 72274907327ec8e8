"""Results for readers: as JSON, text, Markdown and CSV."""
