"""Vision-language data in one chat format."""
