"""Training of the demonstration model from nothing: a toy world, an autoencoder, a text encoder and a denoiser."""
