"""`dermrw score`: a model file on the user's labelled images. No torch."""
