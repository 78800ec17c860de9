"""From the bytes of a .beton file to uint8 batches: crops, resampling and augmentation, one pass per sample."""
