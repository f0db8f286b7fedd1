"""pixtok: generative language models in which every image pixel is a token, next to word tokens."""
