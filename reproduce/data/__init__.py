"""Read what models are trained on and tested on: prompt sets, pictures, pairs, latents."""
