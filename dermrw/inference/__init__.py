"""Using an exported model file: classify images, files and lesions. No torch."""
