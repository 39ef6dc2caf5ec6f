"""Settings that configs of older runs do not have, with the value that says what those runs did."""

SINCE_LATER = {
    "replicas": 1,
    "model.norm": "batch",
    "compile": False,
    "cuda_graphs": False,
    "streams": True,
    "profile": 0,
    "label_smoothing": 0.0,
}
