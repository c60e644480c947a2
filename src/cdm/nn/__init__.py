"""Networks. They know no noise schedule and draw no randomness."""
