# The server or the page, as a user without rights; `docs/guides/deploy.md` has the commands.
#   docker build --tag blip-diffusion .                            # CPU
#   docker build --tag blip-diffusion --build-arg DEVICE=cuda .    # CUDA
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG DEVICE=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
RUN python -m venv /opt/blip-diffusion
ENV PATH="/opt/blip-diffusion/bin:$PATH"
COPY constraints.txt ./
# Gradio wants Pillow below 13, and the server takes either. PyPI's torch is built for CUDA.
RUN sed -i '/^pillow==/d' constraints.txt \
    && if [ "$DEVICE" = cpu ]; then export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu; fi \
    && pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY LICENSES LICENSES
COPY src src
RUN pip install --constraint constraints.txt ".[app]"

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid 1000 user && install --directory --owner user /data
COPY --from=build /opt/blip-diffusion /opt/blip-diffusion
ENV PATH="/opt/blip-diffusion/bin:$PATH" PYTHONUNBUFFERED=1
USER 1000
WORKDIR /data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["blip-diffusion"]
CMD ["serve", "--host", "0.0.0.0", "--keys", "/data/keys", "--out", "/data/server"]
