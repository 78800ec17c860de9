"""libjpeg-turbo: how the C part is built, how a JPEG becomes pixels inside a kernel."""
