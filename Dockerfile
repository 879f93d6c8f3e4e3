# The demo as a container. tests/try_dockerfile.sh tests these steps.
# docker build -t dermrw . && docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#   -p 127.0.0.1:7860:7860 dermrw
FROM python:3.12-slim AS build
WORKDIR /build
COPY constraints.txt app/requirements.txt ./
# ONNX Runtime without CUDA is a tenth of the size
RUN sed '/^onnxruntime/d' requirements.txt > cpu.txt && echo 'onnxruntime>=1.27' >> cpu.txt
RUN python -m venv /venv && /venv/bin/python -m pip install --no-cache-dir -c constraints.txt -r cpu.txt

FROM python:3.12-slim
COPY --from=build /venv /venv
WORKDIR /dermrw
COPY dermrw dermrw
COPY app app
# a user without account and home, who can write only to /tmp
USER 10001:10001
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["/venv/bin/python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/venv/bin/python", "-m", "app", "--host", "0.0.0.0", "--port", "7860"]
