"""From a run to one self-contained .onnx file: `python -m export RUN`."""
