# Serves a mounted encoder folder as an unprivileged user. See docs/serve.md.
#
#   docker build --tag llm2vec .                                     with CUDA, on x86
#   docker build --tag llm2vec --build-arg TORCH_INDEX=ADDRESS .     CPU only
#   docker run --rm -p 127.0.0.1:8080:8080 -v "$PWD/encoder:/encoder:ro" llm2vec

FROM python:3.11-slim AS built

# Where torch comes from, if not from pip's own index, whose wheels for Linux on x86 carry CUDA.
# PyTorch's installation page names the index of wheels for a CPU alone.
ARG TORCH_INDEX=""

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/llm2vec
ENV PATH=/opt/llm2vec/bin:$PATH

COPY constraints.txt ./
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch

COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --constraint constraints.txt ".[serve]"

FROM python:3.11-slim

RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin llm2vec
COPY --from=built /opt/llm2vec /opt/llm2vec
ENV PATH=/opt/llm2vec/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 HOME=/tmp
USER 10001
WORKDIR /
EXPOSE 8080
STOPSIGNAL SIGTERM

HEALTHCHECK --start-period=120s --interval=15s --timeout=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health')"]

ENTRYPOINT ["llm2vec", "serve", "--host", "0.0.0.0", "--port", "8080"]
CMD ["/encoder"]
