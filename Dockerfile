# The agent's image: docker build -t kube-router-py:0.1.0 .
# Pinned are: the base by a tag of one day (nobody moves those); Python packages by names, versions
# and hashes of image/*.lock, which are those of .ci/requirements.lock that the tests ran with; and
# Debian's packages by its suite, bookworm, in which FRR, iptables and Python keep their versions and
# only get fixes: of these an image has what there is on the day it is built.
# image/install does all the installing. It is tested without a container engine, in a root that
# debootstrap makes (tests/image): the tests read this file, and know no other instructions.

FROM debian:bookworm-20250520-slim AS build
COPY image /src/image
COPY pyproject.toml README.md LICENSE /src/
COPY kube_router_py /src/kube_router_py
RUN ["/src/image/install", "build"]

FROM debian:bookworm-20250520-slim
COPY image /src/image
RUN ["/src/image/install", "run"]
COPY --from=build /opt/kube-router-py /opt/kube-router-py
ENV PATH=/opt/kube-router-py/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ENV PYTHONUNBUFFERED=1
EXPOSE 20244
ENTRYPOINT ["kube-router-py"]
