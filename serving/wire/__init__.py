"""What travels over the network: codecs, dialects and options of requests. Safe to decode from anyone."""
