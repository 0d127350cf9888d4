#!/usr/bin/env bash
# install.sh   installs the Debian packages that up.sh needs, without starting the system's ssh server.
set -euo pipefail
made=0
if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; made=1
fi
trap '[ $made = 0 ] || rm -f /usr/sbin/policy-rc.d' EXIT
install() { DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends openssh-server openssh-client iproute2; }
install || { apt-get update && install; }
