"""Messages on the network: codecs, dialects and options of requests. Safe to decode, whoever sent them."""
