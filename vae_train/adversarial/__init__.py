"""The second stage: a projected GAN that tunes the decoder until draws of the prior decode to faces."""
