# lvmae in a container, not as root.
#
#   docker build -t lvmae .                              CPU
#   docker build -t lvmae:cuda --build-arg TORCH=cuda .  NVIDIA GPUs; run it with --gpus all
#
#   docker run --rm -v "$PWD:/data" -v lvmae-cache:/cache lvmae embed films --out store
#
# /data has to be writable for user 1000, or name another with --user. /dev/shm may stay at Docker's 64 MB.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/lvmae
ENV PATH=/opt/lvmae/bin:$PATH
WORKDIR /src
COPY requirements requirements
RUN if [ "$TORCH" = cuda ]; \
    then pip install --no-deps --require-hashes -r requirements/cuda.txt; \
    else pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu; fi
RUN pip install --no-deps --require-hashes -r requirements/base.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-deps .

FROM python:${PYTHON}
COPY --from=build /opt/lvmae /opt/lvmae
RUN useradd --uid 1000 --create-home lvmae && mkdir /data /cache && chown lvmae:lvmae /data /cache
ENV PATH=/opt/lvmae/bin:$PATH \
    LVMAE_CACHE=/cache \
    MPLCONFIGDIR=/cache/matplotlib \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /data
VOLUME /cache
STOPSIGNAL SIGTERM
ENTRYPOINT ["lvmae"]
CMD ["--help"]
