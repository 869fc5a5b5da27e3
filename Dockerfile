# One file, four images: operator, agent, engine (the reference engine, CPU), router. Each target is
#   docker build --target agent -t disagg-agent .
# Layers go from slow to quick: packages first, our own source last, so that an edit rebuilds one COPY.
ARG BASE_IMAGE=docker.io/library/debian:trixie-slim

FROM ${BASE_IMAGE} AS python
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 65532 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin disagg
ENV HOME=/tmp \
    PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1
WORKDIR /app

# Only here is pip; the images below get the finished environment.
FROM python AS packages
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv --system-site-packages /opt/venv

FROM packages AS operator-packages
COPY requirements/operator.txt /tmp/requirements.txt
RUN pip install --no-deps --no-compile -r /tmp/requirements.txt \
    && pip uninstall -y pip

FROM packages AS agent-packages
COPY requirements/agent.txt /tmp/requirements.txt
RUN pip install --no-deps --no-compile -r /tmp/requirements.txt \
    && pip uninstall -y pip

FROM packages AS engine-packages
COPY requirements/engine.txt /tmp/requirements.txt
RUN pip install --no-deps --no-compile -r /tmp/requirements.txt \
    && pip uninstall -y pip

FROM packages AS router-packages
COPY requirements/router.txt /tmp/requirements.txt
RUN pip install --no-deps --no-compile -r /tmp/requirements.txt \
    && pip uninstall -y pip

FROM python AS operator
COPY --from=operator-packages /opt/venv /opt/venv
COPY transfer/disagg_transfer/__init__.py transfer/disagg_transfer/contract.py \
     transfer/disagg_transfer/strict_json.py /app/disagg_transfer/
COPY operator/disagg_operator /app/disagg_operator
USER 65532:65532
ENTRYPOINT ["python3", "-m", "disagg_operator"]
CMD []

FROM python AS agent
COPY --from=agent-packages /opt/venv /opt/venv
RUN printf '#!/opt/venv/bin/python3\nimport sys\nfrom disagg_transfer.cli import main\nsys.exit(main())\n' \
      > /usr/local/bin/disagg-agent \
    && chmod 0755 /usr/local/bin/disagg-agent
COPY transfer/disagg_transfer /app/disagg_transfer
USER 65532:65532
ENTRYPOINT ["disagg-agent"]
CMD ["serve"]

FROM python AS engine
# Debian's torch is built for the CPU: the registry's would bring 4 GB of CUDA libraries along.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-numpy python3-torch \
    && rm -rf /var/lib/apt/lists/*
COPY --from=engine-packages /opt/venv /opt/venv
RUN printf '#!/opt/venv/bin/python3\nimport sys\nfrom disagg_engine.server import main\nsys.exit(main())\n' \
      > /usr/local/bin/disagg-engine \
    && chmod 0755 /usr/local/bin/disagg-engine
COPY transfer/disagg_transfer /app/disagg_transfer
COPY e2e/engine/disagg_engine /app/disagg_engine
USER 65532:65532
ENTRYPOINT ["disagg-engine"]
CMD []

FROM python AS router
COPY --from=router-packages /opt/venv /opt/venv
USER 65532:65532
ENTRYPOINT ["python3", "-m", "sglang_router.launch_router"]
CMD []
