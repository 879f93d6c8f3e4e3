"""The OpenAPI description of the API, and the page that shows it. Nothing is loaded from another machine."""

from typing import Any

from dermrw.inference.model_file import ModelInfo

from .engine import MAX_BYTES, MAX_PICTURES
from .render import TEMPLATES

VERSION = "1"  # of the API; fields are added without a change of it
MEGABYTES = MAX_BYTES // 10**6
ERRORS = {
    "400": "too many files, or a form that cannot be read",
    "408": "the images did not arrive in time",
    "411": "the request has no Content-Length",
    "413": "an image or the request is too large",
    "422": "an image cannot be read, or a field is wrong: `error` names it",
    "503": "too many requests are waiting: try again after `Retry-After` seconds",
}
_text = {"type": "string"}
_text_or_null = {"type": ["string", "null"]}
_probability = {"type": "number", "minimum": 0, "maximum": 1}
_box: dict[str, Any] = {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}


def openapi(info: ModelInfo, max_batch: int) -> dict[str, Any]:
    """Returns the description, in version 3.1 of OpenAPI, with the classes of this model."""
    by_class = _object(dict.fromkeys(info.codes, _probability), "by class")
    picture = _object(
        {
            "name": _text,
            "refused": {**_text_or_null, "description": "why the picture is refused; null: it is not"},
            "triage": {**_text_or_null, "enum": ["refer", "no reason to refer seen", None]},
            "notes": {"type": "array", "items": _text, "description": "how the picture was read, where that matters"},
            "box": {
                **_box,
                "description": "the part that was used: left, top, right, bottom in pixels of the upright picture",
            },
            "seen": {**_box, "description": "the part of the box that the model saw, which the heat map covers"},
            "probabilities": _or_null("Probabilities"),
            "heat_map": {
                "type": "array",
                "items": {"type": "array", "items": _probability},
                "description": "with the field heat_map: rows of the evidence for the class over `seen`, relative to "
                "its maximum",
            },
        },
        "the answer for one picture alone",
        optional=("heat_map",),
    )
    answer = _object(
        {
            "refused": {**_text_or_null, "description": "why no picture can be judged; null: at least one is judged"},
            "triage": {**_text_or_null, "enum": ["refer", "no reason to refer seen", None]},
            "malignancy_score": {
                "type": ["number", "null"],
                "minimum": 0,
                "maximum": 100,
                "description": "100 times the summed probability of the malignant classes, at triage_prevalence; refer "
                "if it is at least 100 times the threshold of triage; null: refused, or no triage",
            },
            "no_triage": {**_text, "description": "why the model has no triage"},
            "set": {"type": "array", "items": _text, "description": "prediction set, the most probable class first"},
            "not_ruled_out": {
                "type": "array",
                "items": _text,
                "description": "malignant classes in the prediction set of a lesion that triage does not refer",
            },
            "probabilities": _or_null("Probabilities"),
            "prevalence": {**_text, "description": "as in the request"},
            "thresholds": _ref("Thresholds"),
            "pictures": {"type": "array", "items": _ref("Picture")},
            "model": _object({"name": _text, "created": _text, "sha256": _text}, "the model file"),
            "warning": {**_text_or_null, "description": "why the model gives no results"},
            "note": _text,
        },
        "the answer for the lesion, from all pictures that are not refused",
        optional=("no_triage",),
    )
    thresholds = _object(
        {
            "set": {**by_class, "description": "probability, at equal prevalence, from which a class is in the set"},
            "coverage": {**_probability, "description": "share of each class's cases whose set is to hold the class"},
            "triage": {
                "type": ["number", "null"],
                "description": "summed probability of the malignant classes, at triage_prevalence, from which to refer",
            },
            "triage_prevalence": {
                "anyOf": [by_class, {"type": "null"}],
                "description": "share of each class at which triage sums the probabilities; null: equal shares",
            },
        },
        "thresholds of the model file; they do not depend on the prevalence",
    )
    failed = _object({"name": _text, "error": _text}, "a file that cannot be read")
    batch = _object(
        {"images": {"type": "array", "items": {"anyOf": [_ref("Named"), _ref("Failed")]}}},
        "answers in the files' order",
    )
    one = {
        "prevalence": {
            **_text,
            "default": "equal",
            "description": f"equal, training, or the share of each class: {info.codes[0]}=0.05,…",
        },
        "heat_map": {**_text, "enum": list(info.codes), "description": "also return the heat map of this class"},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"dermrw: {info.name}",
            "version": VERSION,
            "description": "Classifies pictures with the model that the demo serves. For research. Not a medical "
            "device; not a diagnosis. No picture is kept.",
        },
        "paths": {
            "/classify": {
                "post": _operation(
                    "classify",
                    f"One lesion: up to {MAX_PICTURES} pictures of it, {MEGABYTES} MB each, give one answer, as "
                    "`dermrw predict --lesions` gives.",
                    one,
                    MAX_PICTURES,
                    "Answer",
                )
            },
            "/classify_images": {
                "post": _operation(
                    "classify_images",
                    f"Several images, each on its own: up to {max_batch}. A file that cannot be read has an `error`, "
                    "and the others are answered.",
                    one,
                    max_batch,
                    "Answers",
                )
            },
            "/health": {
                "get": {
                    "operationId": "health",
                    "summary": "Whether the server answers, and which model it serves. Needs no password.",
                    "responses": {"200": _response("the server is ready", _ref("Health"))},
                }
            },
        },
        "components": {
            "schemas": {
                "Probabilities": {**by_class, "description": "probability of each class at the prevalence"},
                "Picture": picture,
                "Answer": answer,
                "Named": {"allOf": [_object({"name": _text}, "the file's name"), _ref("Answer")]},
                "Failed": failed,
                "Answers": batch,
                "Thresholds": thresholds,
                "Health": _object({"status": _text, "model": _text, "sha256": _text}, "the served model"),
                "Error": _object({"error": _text}, "what is wrong, as a sentence"),
            }
        },
    }


def api_page(description: dict[str, Any]) -> str:
    """Returns the description as an HTML page without scripts."""
    return TEMPLATES.get_template("api.html.jinja").render(api=description, errors=ERRORS)


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(name: str) -> dict[str, Any]:
    return {"anyOf": [_ref(name), {"type": "null"}]}


def _object(properties: dict[str, Any], description: str, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "description": description}


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _operation(name: str, summary: str, fields: dict[str, Any], files: int, answer: str) -> dict[str, Any]:
    image = {"type": "string", "contentMediaType": "application/octet-stream"}
    images = {"type": "array", "items": image, "minItems": 1, "maxItems": files}
    form = {"type": "object", "properties": {"image": images, **fields}, "required": ["image"]}
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {
            "200": _response("the answer", _ref(answer)),
            **{status: _response(meaning, _ref("Error")) for status, meaning in ERRORS.items()},
        },
    }
