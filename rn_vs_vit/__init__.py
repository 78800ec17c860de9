"""Which augmentation for which network? The paper's comparison of ResNet-50 and ViT, as a grid that anyone can run."""
