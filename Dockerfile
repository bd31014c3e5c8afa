# One image for every role: `docker run penstock orchestrator`, `projection`, `api`, `worker`, `dev`.

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
WORKDIR /build
COPY requirements.lock pyproject.toml README.md LICENSE ./
# uv itself, by its own entry of the lock. It takes the lock as constraints, hashes included, and of all that stands
# there installs only what the package needs to run.
RUN sed -n '/^uv==/,/[^\\]$/p' requirements.lock > uv.lock \
    && pip install --require-hashes --no-deps -r uv.lock \
    && python -m venv /opt/penstock \
    && uv pip install --python /opt/penstock/bin/python --verify-hashes -c requirements.lock -r pyproject.toml
COPY penstock ./penstock
RUN python -m venv /opt/build \
    && uv pip install --python /opt/build/bin/python --verify-hashes -c requirements.lock hatchling \
    && /opt/build/bin/hatchling build -t wheel -d dist \
    && uv pip install --python /opt/penstock/bin/python --no-deps --no-index dist/*.whl \
    && /opt/penstock/bin/python -m compileall -q /opt/penstock/lib


FROM python:3.11-slim
ENV PATH=/opt/penstock/bin:$PATH PYTHONUNBUFFERED=1 PENSTOCK_DATA=/data PENSTOCK_LOG_FORMAT=json
RUN groupadd --system --gid 10001 penstock \
    && useradd --system --uid 10001 --gid penstock --no-create-home --home-dir /app penstock \
    && install -d -o penstock -g penstock /data /app
COPY --from=build /opt/penstock /opt/penstock
COPY examples /app/examples
WORKDIR /app
USER 10001:10001
VOLUME /data
EXPOSE 8700
STOPSIGNAL SIGTERM
ENTRYPOINT ["penstock"]
CMD ["--help"]
