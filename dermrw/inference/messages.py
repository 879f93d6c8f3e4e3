"""Error messages without words on lesions, for models of other images. No torch in here."""

from dermrw.inference.model_file import ModelInfo

# in messages of functions that do not know the model
LESION_PHRASES = {
    "to show a lesion": "to classify",
    "the one that shows the lesion": "one of them",
    "the page that shows the lesion": "one page",
    "diagnoses without a share": "classes without a share",
}


def adapted(message: str, info: ModelInfo) -> str:
    """Returns an error message without words on lesions, if the model is not of HAM10000's classes."""
    for phrase, plain in LESION_PHRASES.items() if not info.is_ham10000 else ():
        message = message.replace(phrase, plain)
    return message
