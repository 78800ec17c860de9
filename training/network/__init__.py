"""The network of a stage: built, begun, fitted with weights from anywhere."""
