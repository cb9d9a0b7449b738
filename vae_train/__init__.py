"""Train a convolutional VAE on pictures of faces and export it as two ONNX graphs. Needs torch."""
