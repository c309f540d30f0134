"""Files of a distant folder through a bounded cache on disk, fetched ahead of their use."""
