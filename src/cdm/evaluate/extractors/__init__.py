"""Feature extractors: networks that turn images into the vectors that distances are computed on."""
