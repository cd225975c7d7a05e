# The agent's image: docker build -t kube-router-py:0.1.0 .
# Versions of Python packages are those of .ci/requirements.lock, which the tests ran with.

FROM python:3.11-slim-bookworm AS build
# python-iptables is published as source with a small C extension.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
WORKDIR /src
COPY .ci/requirements.lock ./
# Constraints may not carry hashes; the lock file also holds what only tests need.
RUN sed -e '/^ *--hash=/d' -e 's/ *\\$//' requirements.lock > constraints.txt
COPY pyproject.toml README.md LICENSE ./
COPY kube_router_py ./kube_router_py
RUN python -m venv /opt/kube-router-py \
 && /opt/kube-router-py/bin/pip install --no-cache-dir --disable-pip-version-check \
      --constraint constraints.txt . \
 && /opt/kube-router-py/bin/python -m compileall -q /opt/kube-router-py/lib

FROM python:3.11-slim-bookworm
# frr, iptables, ipset, nft (for what kube-proxy left): what the agent runs. The others are for whoever debugs a node from inside.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends \
      conntrack frr ipset iproute2 iptables ipvsadm kmod nftables \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/kube-router-py /opt/kube-router-py
ENV PATH=/opt/kube-router-py/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
EXPOSE 20244
ENTRYPOINT ["kube-router-py"]
