"""Which part of an image is seen, how it is resized, and the arithmetic of augmentations: Pillow's, to the bit."""
