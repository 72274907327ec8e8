"""Who gets which variant (pure)."""
